"""docs/EXTEND.md, carried out: its files and lines go into a copy of the repository, and its commands run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import experiment
from configs.compose import plan_of
from tests.examples.test_examples import example

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "EXTEND.md").read_text()
PARTS = ("configs", "data", "dropblock", "engine", "experiment", "models", "train.py")

COMMANDS = """
import shlex, sys
sys.path.insert(0, ".")
from train import main
for line in sys.stdin:
    words = shlex.split(line)
    code = main([*words, "epochs=1", "device=cpu", "progress=false", "workers=0", "data.train_subset=64"])
    assert code == 0, (code, line)
"""


def blocks(kind: str) -> list[tuple[str, str]]:
    """(path, text) of every block of this kind that names a file."""
    return re.findall(rf"`([\w/.]+)`, (?:new|changed):\n\n```{kind}\n(.*?)```", PAGE, re.DOTALL)


def changed(text: str, diff: str) -> str:
    """The text with the lines of a diff, each of whose paragraphs stands in it once."""
    for paragraph in diff.strip("\n").split("\n\n"):
        lines = paragraph.split("\n")
        old, new = ("\n".join(line[1:] for line in lines if line[:1] in ("", " ", sign)) for sign in "-+")
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def test_every_addition_works(tmp_path: Path) -> None:
    for part in PARTS:
        source, target = ROOT / part, tmp_path / part
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    for path, text in [*blocks("python"), *blocks("yaml")]:
        assert not (tmp_path / path).exists(), path
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    for path, diff in blocks("diff"):
        (tmp_path / path).write_text(changed((tmp_path / path).read_text(), diff))
    # Every command but whole sweeps, of which the plan is shown.
    commands = re.findall(r"^python train\.py ((?!-m )(?!.*jobs=).*)$", PAGE, re.MULTILINE)
    ran = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        cwd=tmp_path,
        input="\n".join(commands),
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, f"{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}"
    assert "DropLines" in ran.stdout
    assert "last test/near" in ran.stdout
    files = tmp_path.glob("outputs/fake-resnet18/none-*/seed-1/summary.json")
    summaries = [json.loads(file.read_text()) for file in files]
    assert {summary["plan"]["recipe"]["optimizer"] for summary in summaries} == {"sgd", "nadam"}
    assert all(0 <= summary["last"]["test/worst_class"] <= 100 for summary in summaries)


def test_every_block_names_its_file_or_is_run_here() -> None:
    named = len(re.findall(r"^`[\w/.]+`, (?:new|changed):$", PAGE, re.MULTILINE))
    assert named == sum(len(blocks(kind)) for kind in ("python", "yaml", "diff"))
    assert len(re.findall(r"^```\w+$", PAGE, re.MULTILINE)) == named + 1  # the one below


def test_parts_from_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(from experiment import .*?)```", PAGE, re.DOTALL)
    ran: list[Any] = []
    monkeypatch.setattr(experiment, "run_plan", lambda plan, model=None: ran.append(plan))
    monkeypatch.setattr(experiment, "run_sweep", lambda plans, name: ran.extend(plans))
    parts = example("own_parts.py")
    own = {"MyNet": parts["SmallNet"], "MyLayer": parts["SharedDropBlock"], "MyLoss": lambda power: None}
    exec(compile(code, "EXTEND.md", "exec"), own)
    assert (ran[0].model.name, ran[0].regularizer, ran[0].layer.schedule) == ("my_net", ["my_layer"], "half")
    assert [plan.seed for plan in ran] == [1, 1, 2, 3, 1]


def test_the_layer_in_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/LAYER.md: its two programs, and its command."""
    page = (ROOT / "docs" / "LAYER.md").read_text()
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, "LAYER.md", "exec"), names)
    assert capsys.readouterr().out.splitlines()[1].startswith("  own  4.95%")
    groups = {site.group for site in names["sites"].values()}
    assert groups == {3, 4}
    (words,) = re.findall(r"^python train.py (data=fake model=torchvision .*) plan=true$", page, re.MULTILINE)
    plan = plan_of(*shlex.split(words))
    assert plan.model.options["places"] == [{"modules": "inception5*.branch*", "group": 4}]
