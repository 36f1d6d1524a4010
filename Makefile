PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: train test test-long test-hydra-next test-integrations gpu check docs setup pins clean

# The main job. Overrides: make train ARGS="regularizer=none seed=2"
train: setup
	$(RUN) train.py $(ARGS)

test: setup
	$(RUN) -m pytest -n auto --dist worksteal $(ARGS)

# The long forms of tests that `make test` has a short form of: more kills, more seeds, larger networks.
test-long: setup
	$(RUN) -m pytest -n auto --dist worksteal -m slow --timeout 3600 $(ARGS)

# What only a GPU can show, in at most nine minutes; exits with 0 only where it ran and passed.
gpu: setup
	$(RUN) -m scripts.gpu_check

# The command line on the next Hydra, which pyproject.toml does not admit yet; it lies beside .venv's, not in its place.
HYDRA_NEXT ?= 1.4.0rc3
test-hydra-next: setup
	$(RUN) -m pip install --quiet --disable-pip-version-check --upgrade --pre --target build/hydra-next hydra-core==$(HYDRA_NEXT)
	PYTHONPATH=build/hydra-next $(RUN) -c "import hydra; assert hydra.__version__ == '$(HYDRA_NEXT)'"
	PYTHONPATH=$(CURDIR)/build/hydra-next $(RUN) -m pytest tests/configs tests/cli $(ARGS)

# The callbacks in Lightning's and Hugging Face's trainers, which lie in an environment of their own that sees .venv's packages.
TRAINERS := build/integrations
test-integrations: setup
	test -x $(TRAINERS)/bin/python || $(RUN) -m venv $(TRAINERS)
	$(RUN) -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
		"$$($(TRAINERS)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/of_venv.pth"
	$(TRAINERS)/bin/python -m pip install --quiet --disable-pip-version-check lightning pytorch-lightning transformers accelerate
	$(TRAINERS)/bin/python -m pytest -n 0 tests/integrations $(ARGS)

# Lint, format and types.
check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The documentation site, into build/site. Its packages (the extra `docs`) lie beside .venv's, not among them.
docs: setup build/docs-packages/installed
	PYTHONPATH=build/docs-packages $(RUN) -m sphinx --fail-on-warning --keep-going --quiet docs build/site

build/docs-packages/installed: pyproject.toml
	$(RUN) -m pip install --quiet --disable-pip-version-check --upgrade --target build/docs-packages $$($(RUN) -c \
		"import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['docs'])")
	@touch $@

setup: $(VENV)/installed

# The stamp is written last, so an interrupted installation is taken up again.
$(VENV)/installed: requirements.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# requirements.txt from requirements.in: every package that is needed, exactly, for all platforms and Pythons. What still
# fits keeps its version; ARGS=--upgrade takes the newest.
pins:
	test -x build/pins/bin/uv || ($(PYTHON) -m venv build/pins && build/pins/bin/python -m pip install --quiet uv)
	build/pins/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate \
		--custom-compile-command "make pins" --output-file requirements.txt $(ARGS) requirements.in

clean:
	rm -rf $(VENV) build dist *.egg-info
