"""Whatever is typed becomes a valid plan or a one-line error, in the time of a typo."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import train
from configs.checking import all_keys
from configs.plan import Plan
from configs.schema import Config

TYPOS = [
    *("regulariser=dropblock", "regularizer=drop_block", "regularizer=[dropblock,label_smothing]", "modell=resnet18"),
    *("model=resnet19", "model=ResNet50", "data=cifar", "data=mnist", "recipe=imagenet", "experiment=tabel1"),
    *(
        "+sweep=table2",
        "sweep=table1",
        "+typo=1",
        "+typo.deep=1",
        "++lr2=3",
        "+model.typo=1",
        "~nothing",
        "keepprob=0.9",
    ),
    *("keep_prob=1.1", "keep_prob=-0.1", "keep_prob=abc", "keep_prob=", "keep_prob=[0.9]", "block_size=0"),
    *("block_size=7.5", "block_size=seven", "groups=3,4", "groups=[]", "groups=[-1]", "groups=[a]", "skip=maybe"),
    *("schedule=linaer", "epochs=0", "epochs=-1", "epochs=1e3x", "batch_size=1", "lr=0", "lr=-1", "lr=nan"),
    *("seed=-1", "seed=1.5", "device=gpu", "device=tpu", "workers=-1", "log_every=0", "precision=float32"),
    *("recipe.precision=fp17", "recipe.optimizer=adam", "recipe.momentum=2", "data.on_bad_image=ignore"),
    *("data.val_fraction=0.9", "label_smoothing=1", "model.width=0", "model.stem=big", "recipe.accumulate=5"),
    *("--multi-run", "-x", "seed", "=1", "hydra.run.dir=/tmp", "lr=0.1=0.2", "recipe.lr_shedule=cosine"),
]
TARGETS = [
    *("model._target_=os.system", "+model._target_=torch.load", "+x={_target_:torch.hub.load}"),
    *("hydra.callbacks.a._target_=os.system", "+hydra.callbacks.a={_target_:builtins.eval}"),
    *("hydra/callbacks=evil", "hydra.launcher._target_=subprocess.Popen", "hydra.job_logging._target_=os.system"),
    *("+model.options={_target_:os.system}", "+regularizer.x.layer._target_=os.system", "hydra.searchpath=[/tmp]"),
    *("--config-path=/tmp", "--config-name=evil", "hydra.sweeper._target_=os.system", "+hydra/output=evil"),
]


@pytest.fixture
def carried_out(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """The plans that reach the training, which does not happen."""
    plans: list[Plan] = []

    def note(plan: Plan, *_: Any) -> dict[str, Any]:
        plans.append(plan)
        return {"last": {}, "headline": "top1"}

    monkeypatch.setattr("experiment.run.run_plan", note)
    return plans


@pytest.mark.parametrize("word", [*TYPOS, *TARGETS])
def test_typos_are_answered_in_one_line(carried_out: list[Plan], capsys: pytest.CaptureFixture[str], word: str) -> None:
    begin = time.process_time()
    assert train.main(["data=fake", word]) == 2
    assert time.process_time() - begin < 3
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert not carried_out


NAMES = {
    "model": ["resnet18", "resnet50", "amoebanet_b", "nothing", "[resnet18]", ""],
    "data": ["fake", "digits", "cifar10", "imagenet", "null", "fake,digits"],
    "recipe": ["quick", "cifar", "imagenet_90", "??"],
    "regularizer": [
        "none",
        "dropblock",
        "dropout",
        "[dropblock,cutout]",
        "[none,dropout]",
        "[]",
        "[",
        "cutout",
        "null",
    ],
    "+sweep": ["table", "table1,fig5_inference", ""],
    "experiment": ["null", "table1/dropblock", "fig3"],
}
VALUES = st.one_of(
    st.sampled_from(
        ["null", "true", "false", "nan", "inf", "-1", "0", "1", "0.5", "1e9", "[]", "[3,4]", "{}", "[1,", "'"]
    ),
    st.integers(-3, 2000).map(str),
    st.floats(allow_nan=True).map(str),
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8),
    st.sampled_from(["constant", "linear", "cosine", "sgd", "float16", "a,b", "1,2", "${seed}", "${nothing}", "???"]),
)
WORDS = st.one_of(
    st.tuples(st.sampled_from(sorted(set(all_keys(Config)) - {"output_root", "run_dir", "estimate"})), VALUES).map(
        "=".join
    ),
    st.sampled_from(sorted(NAMES)).flatmap(lambda group: st.sampled_from(NAMES[group]).map(lambda n: f"{group}={n}")),
    st.tuples(st.sampled_from(["", "+", "++", "~"]), st.text("abcdekmnor_./@", min_size=1, max_size=9), VALUES).map(
        lambda parts: f"{parts[0]}{parts[1]}={parts[2]}"
    ),
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12),
    st.sampled_from(
        ["-m", "--multirun", "--cfg", "--resolve", "-c", "-h", "--help", "--hydra-help", "-p", "--info", "--"]
    ),
)


def try_words(words: list[str], carried_out: list[Plan], capsys: pytest.CaptureFixture[str], root: Path) -> None:
    carried_out.clear()
    capsys.readouterr()
    code = train.main([*words, f"output_root={root}"])
    printed = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert not any("Traceback" in line for line in printed), printed
    assert code in (0, 1, 2)
    errors = [line for line in printed if line.startswith("error: ")]
    if code == 2:
        assert len(errors) == 1, printed
        assert not carried_out
    elif code == 1:  # jobs of a grid, each with its line
        assert errors
    for plan in carried_out:  # what reaches the training is complete and within range
        assert plan.recipe.epochs >= 1
        assert 0 < plan.recipe.lr < float("inf")
        assert plan.layer is None or 0 <= plan.layer.keep_prob <= 1
        assert plan.hash()


FUZZ = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=60, **FUZZ)
@given(words=st.lists(WORDS, max_size=3))
def test_any_words_become_a_plan_or_one_line(
    carried_out: list[Plan], capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str]
) -> None:
    try_words(words, carried_out, capsys, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@settings(max_examples=1500, **FUZZ)
@given(words=st.lists(WORDS, max_size=4))
def test_any_words_at_all(
    carried_out: list[Plan], capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str]
) -> None:
    try_words(words, carried_out, capsys, tmp_path)


SENTENCES = [
    (["seed=2", "seed=3"], "seed: given twice; several values are a grid: -m seed=A,B"),
    (["seed=1,2"], "seed=1,2: several values make a grid, which needs -m; a list is written [a,b]"),
    (["groups=(3,4)"], "groups=(3,4): a list is written groups=[3,4]"),
    (["lr=\u22120.1"], "lr=\u22120.1: '\u2212' is no minus sign; write lr=-0.1"),
    (["blok_size=7"], "unknown key 'blok_size' (did you mean 'block_size'?)"),
    (["hydra/launcher=slurm"], "hydra/launcher: a launcher starts the runs of a grid; it needs -m or +sweep=NAME"),
    (["+sweep=table1", "keep_prob=0.8"], "keep_prob=0.8: +sweep=table1 sets this itself, run by run; leave it out"),
    (["regularizer=none", "block_size=5"], "block_size=5 does not apply to regularizer=none"),
    (
        ["keep_prob=[0.9,0.8]"],
        "keep_prob=[0.9,0.8]: expected a number; several values make a grid: -m keep_prob=0.9,0.8",
    ),
    (["jobs=2"], "jobs=2: a single run is one job; -m or +sweep= start many"),
]


@pytest.mark.parametrize(("words", "sentence"), SENTENCES, ids=[" ".join(words) for words, _ in SENTENCES])
def test_the_line_of_a_mistake(capsys: pytest.CaptureFixture[str], words: list[str], sentence: str) -> None:
    """Its wording, which no other test asserts."""
    assert train.main(["data=fake", *words]) == 2
    assert capsys.readouterr().err == f"error: {sentence}\n"
