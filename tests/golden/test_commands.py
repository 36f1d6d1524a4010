"""Command lines come to the same run directories and exit codes as when `commands.json` was written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.schema import Config
from tests.golden.measure_commands import CODES, GRIDS, HERE, command, jobs

COMMITTED: dict[str, Any] = json.loads((HERE / "commands.json").read_text())
# One of each kind and few jobs; the others take half a minute.
SHORT = {
    *("", "regularizer=[dropblock,label_smoothing] keep_prob=0.8 groups=3", r"output_root='out of here/it\'s'"),
    *("++regularizer.dropblock.layer.options.new=1 seed=3", "-m seed=range(4,0,-2) data=fake", "-m seed=1"),
    *("-m keep_prob=choice(0.8,0.9) block_size=3,7", "-m keep_prob=0.9,2 seed=1", "-m output_root='a, b' seed=1,2"),
    *("-m data=folder data.root=/my/cats,'/my/brown dogs'", "-m experiment=glob(fig5/*)"),
    *("+sweep=fig5_inference data=fake model=resnet18 model.width=4 epochs=1",),
}


def long_form(words: Sequence[str]) -> Any:
    return pytest.param(words, marks=() if " ".join(words) in SHORT else pytest.mark.slow, id=" ".join(words))


@pytest.mark.parametrize("words", [long_form(words) for words in GRIDS])
def test_every_job_has_its_run_directory(words: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert jobs(words, tmp_path / "out") == COMMITTED["jobs"][" ".join(words)]


@pytest.mark.parametrize("words", CODES, ids=" ".join)
def test_exit_codes(words: Sequence[str], tmp_path: Path) -> None:
    code, _, errors = command(words, tmp_path)
    assert code == COMMITTED["codes"][" ".join(words)], errors
    assert code != 2 or len(set(errors.splitlines())) == 1 or "estimate=true" in words or words[0] == "-m", errors
    assert list(tmp_path.iterdir()) == []


def test_the_composed_configuration_is_shown(tmp_path: Path) -> None:
    """`--cfg` shows every key of a run with its value, Hydra's own, or both; nothing runs."""
    words = ("data=fake", "lr=0.05", "regularizer=[dropblock,label_smoothing]")
    job, hydra, both = (
        yaml.safe_load(command((f"--cfg={what}", *words), tmp_path)[1]) for what in ("job", "hydra", "all")
    )
    assert {f.name for f in fields(Config)} == {*job}
    assert (job["lr"], job["data"]["name"], [*job["regularizer"]]) == (0.05, "fake", ["dropblock", "label_smoothing"])
    assert {*hydra} == {"hydra"}
    assert {*both} == {*job, "hydra"}
    assert yaml.safe_load(command(("-c", "job", "--resolve", *words), tmp_path)[1])["lr"] == 0.05
    code, shown, _ = command(("+sweep=table1", "--cfg=job"), tmp_path)
    assert (code, yaml.safe_load(shown)["experiment"]) == (0, None)  # of the sweep, not of a job
