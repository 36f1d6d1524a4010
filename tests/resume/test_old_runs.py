"""A run directory that the code of commit 728fafb left, stopped in the middle of an epoch, is resumed to its end.

`run_of_728fafb.tar.xz` holds it (a ResNet-18 of width 1), and beside it what the same code computed uninterrupted.
"""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from configs.checking import load_yaml
from configs.plan import plan_from
from engine.records import RunFolder
from experiment import plan_of, run_plan

ARCHIVE = Path(__file__).parent / "run_of_728fafb.tar.xz"
OVERRIDES = (
    *("data=fake", "model=resnet18", "model.width=1", "model.zero_gamma=false", "epochs=2", "batch_size=48"),
    *("regularizer=[dropblock,label_smoothing]", "keep_prob=0.7", "block_size=3", "recipe.ema_decay=0.9"),
    *("progress=false", "log_every=3", "device=cpu"),
)


def test_a_run_of_older_code_is_resumed(tmp_path: Path) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    run = RunFolder(tmp_path / "run")
    summary = run_plan(plan_of(*OVERRIDES, f"run_dir={run.path}"))
    expected = json.loads((run.path / "whole.json").read_text())
    assert summary["environments"][-1]["from_step"] == 4
    for key in ("last", "best", "steps"):
        assert summary[key] == pytest.approx(expected[key], rel=1e-5)
    for group, drop in expected["drop_last_epoch"].items():
        assert summary["drop_last_epoch"][group]["measured"] == pytest.approx(drop["measured"], rel=1e-12)
    lines = [json.loads(line) for line in (run.path / "whole.jsonl").read_text().splitlines()]
    losses = [[line["train/loss"] for line in found if "train/loss" in line] for found in (run.metrics(), lines)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_its_plan_is_the_one_of_the_same_command_today(tmp_path: Path) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    old, today = plan_from(load_yaml(tmp_path / "run" / "plan.yaml")), plan_of(*OVERRIDES)
    assert old.identity() == today.identity()
    assert old.hash() == today.hash()
    assert replace(old, recipe=replace(old.recipe, lr=0.3)).hash() != today.hash()
