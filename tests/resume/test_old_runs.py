"""Run directories that older code left, stopped in the middle of an epoch, are resumed to their end.

`run_of_728fafb.tar.xz` holds one, `runs_of_c48c186.tar.xz` one of each task; beside each what the same code computed
uninterrupted (`whole.json`, `whole.jsonl`). A run of today leaves the files, log entries and results of before.
"""

from __future__ import annotations

import json
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.checking import UserError, load_yaml
from configs.plan import plan_from
from engine.checkpoint import load
from engine.run_directory import RunDirectory
from experiment import plan_of, run_plan

HERE = Path(__file__).parent
SHORT = ("progress=false", "log_every=3", "device=cpu")
FAKE = (
    *("data=fake", "model=resnet18", "model.width=1", "model.zero_gamma=false", "epochs=2", "batch_size=48"),
    *("regularizer=[dropblock,label_smoothing]", "keep_prob=0.7", "block_size=3", "recipe.ema_decay=0.9"),
)
SCENES = (
    *("data.train_subset=64", "epochs=2", "batch_size=16", "regularizer=dropblock", "block_size=3", "keep_prob=0.7"),
    *(
        "groups=[3,4,head]",
        "head_share=0.5",
        "model.width=2",
        "model.options.fpn_width=4",
        "model.options.head_width=4",
    ),
    *("recipe.ema_decay=0.9", "recipe.accumulate=2", "recipe.eval_every=2"),
)
# Archive, folder in it, command, steps that were done.
OLD_RUNS = {
    "728fafb": ("run_of_728fafb.tar.xz", "run", FAKE, 4),
    "classification": (
        *("runs_of_c48c186.tar.xz", "classification"),
        (*FAKE, "data.image_size=16", "recipe.augment.flip=true", "recipe.accumulate=2"),
        8,
    ),
    "segmentation": (
        *("runs_of_c48c186.tar.xz", "segmentation"),
        ("data=digit_masks", "data.image_size=33", "recipe.precision=float32", "recipe.augment.scale_min=0.8", *SCENES),
        5,
    ),
    "detection": (
        *("runs_of_c48c186.tar.xz", "detection"),
        (
            *(
                "data=digit_boxes",
                "data.image_size=32",
                "data.val_fraction=0.02",
                "model.options.head_depth=1",
                *SCENES,
            ),
            *("recipe.score_threshold=0.02", "lr=0.2"),
        ),
        5,
    ),
}
# What the record has gained since.
CALIBRATION = ("macro_accuracy", "brier", "ece")
NEWER = {"data_card.json", "headline", "revision", "metric_units", "lower_is_better", *CALIBRATION}
NEWER |= {f"{split}/{metric}" for split in ("val", "test") for metric in CALIBRATION}


def unpacked(name: str, place: Path) -> RunDirectory:
    archive, folder, _, _ = OLD_RUNS[name]
    with tarfile.open(HERE / archive) as file:
        file.extractall(place, filter="data")
    return RunDirectory(place / folder)


def losses(lines: list[dict[str, Any]]) -> list[float]:
    return [line["train/loss"] for line in lines if "train/loss" in line]


def sums_of_magnitudes(values: dict[str, Any]) -> dict[str, float]:
    """Of the floating-point tensors of a state dict."""
    return {name: float(value.double().abs().sum()) for name, value in values.items() if value.is_floating_point()}


@pytest.mark.parametrize("name", OLD_RUNS)
def test_a_run_of_older_code_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    run, (_, _, overrides, steps) = unpacked(name, tmp_path), OLD_RUNS[name]
    assert load(run.checkpoints / "last.pt")["step"] == steps
    plan = plan_of(*overrides, *SHORT, f"run_dir={run.path}")
    if plan.revision > 1:  # their numbers moved: to go on would mix two rules in one run
        before = (run.checkpoints / "last.pt").read_bytes()
        with pytest.raises(UserError, match=r"recipe\.accumulate"):
            run_plan(plan)
        assert (run.checkpoints / "last.pt").read_bytes() == before
        return
    summary = run_plan(plan)
    assert f"resuming after step {steps}" in capsys.readouterr().out
    expected = json.loads((run.path / "whole.json").read_text())
    assert summary["steps"] == expected["steps"]
    for which in ("last", "best"):
        found = {name: summary[which][name] for name in expected[which]}
        assert found == pytest.approx(expected[which], rel=1e-5)
    for group, drop in expected["drop_last_epoch"].items():
        assert summary["drop_last_epoch"][group]["measured"] == pytest.approx(drop["measured"], rel=1e-12)
    lines = [json.loads(line) for line in (run.path / "whole.jsonl").read_text().splitlines()]
    assert losses(run.metrics()) == pytest.approx(losses(lines), rel=1e-5)
    if name == "728fafb":  # before the record had its present form
        return
    state = load(run.checkpoints / "last.pt")
    for part, values in (("model", state["model"]), ("ema", state["ema"]["module"])):
        assert sums_of_magnitudes(values) == pytest.approx(expected["magnitudes"][part], rel=1e-4, abs=1e-6)
    for part, names in record_of(run).items():
        theirs = json.loads((HERE / "records_of_c48c186.json").read_text())[name][part]
        assert [name for name in names if name in theirs or name not in NEWER] == theirs


def record_of(run: RunDirectory) -> dict[str, list[str]]:
    """Everything by name that a finished run leaves to TensorBoard, reports and scripts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = EventAccumulator(str(run.path)).Reload().Tags()
    files = {re.sub(r"tfevents.*?(\.hparams)?$", r"tfevents...\1", p.name): p for p in run.path.rglob("*")}
    checkpoint = load(run.checkpoints / "last.pt")
    return {
        "files": sorted(
            name for name, path in files.items() if path.is_file() and not name.startswith(("whole.", "code.diff"))
        ),
        "scalars": sorted(tags["scalars"]),
        "images": sorted(tags["images"]),
        "metrics.jsonl": sorted({name for line in run.metrics() for name in line}),
        "summary.json": sorted(run.summary()),
        "environment": sorted(run.summary()["environment"]),
        "metric_labels": sorted(run.summary()["metric_labels"]),
        "status.json": sorted(run.read("status.json")),
        "plan.yaml": sorted(load_yaml(run.path / "plan.yaml")),
        "checkpoint": sorted(checkpoint),
        "window": sorted(checkpoint["window"]),
    }


def test_its_plan_is_the_one_of_the_same_command_today(tmp_path: Path) -> None:
    for name, (_, _, overrides, _) in OLD_RUNS.items():
        old = plan_from(load_yaml(unpacked(name, tmp_path).path / "plan.yaml"))
        today = plan_of(*overrides, *SHORT)
        # Accumulation and the masks of a head moved the numbers of segmentation and detection: these plans have a
        # directory of their own now.
        assert today.revision == (4 if name in ("segmentation", "detection") else 1)
        assert today.revision == 1 or old.hash() != today.hash()
        today = replace(today, revision=old.revision)
        assert old.identity() == today.identity()
        assert old.hash() == today.hash()
        assert replace(old, recipe=replace(old.recipe, lr=0.3)).hash() != today.hash()
