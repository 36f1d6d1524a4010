"""Segmentation keeps what classification promises: kills, ranks, bad numbers and bad files, from the command line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import evaluate
import train
from engine.checkpoint import load
from engine.guard import all_finite
from engine.run_directory import RunDirectory
from tests.comparison import assert_identical
from tests.data.mask_files import write_folder, write_mask
from tests.faults.two_ranks import trained_by_two_ranks
from tests.resume.test_kills import kill_often
from tests.trainer import SEGMENTATION, Starter, assert_no_scars, only_run

Reference = Callable[..., RunDirectory]
FOUR_EPOCHS = (*SEGMENTATION, "epochs=4")


@pytest.mark.slow
def test_killed_at_random(starter: Starter, tmp_path: Path, uninterrupted: Reference) -> None:
    words = (*FOUR_EPOCHS, "checkpoint_every=2", f"output_root={tmp_path}")
    run, kills, _ = kill_often(lambda: [starter.start(*words)], tmp_path, 2, random.Random(0))
    assert kills >= 1
    assert_identical(run, uninterrupted(base=FOUR_EPOCHS))
    assert_no_scars(run)


def test_evaluation_gives_the_summary_again(uninterrupted: Reference, tmp_path: Path) -> None:
    run, out = uninterrupted(base=(*SEGMENTATION, "epochs=2")), tmp_path / "result.json"
    summary = run.summary()
    assert evaluate.main([f"run={run.path}", f"json={out}", "device=cpu"]) == 0
    result = json.loads(out.read_text())
    for metric in ("loss", "miou", "pixel_accuracy"):
        assert result[metric] == summary["last"][f"test/{metric}"]
    (classes,) = summary["tables"]
    assert result["tables"] == [classes]
    assert classes["header"] == ["class", "IoU (%)", "pixels"]
    assert [name for name, *_ in classes["rows"]] == ["background", *"0123456789"]
    assert sum(pixels for *_, pixels in classes["rows"]) == 500 * 33 * 33  # every pixel once, no padding
    ious = [iou for _, iou, _ in classes["rows"] if iou is not None]
    assert sum(ious) / len(ious) == pytest.approx(result["miou"])
    assert set(summary["drop_last_epoch"]) == {"group3", "group4", "head"}
    shares = {name: drop["expected"] for name, drop in summary["drop_last_epoch"].items()}
    assert shares["head"] < shares["group4"]


@pytest.mark.slow
def test_two_ranks_hold_the_same_and_count_every_image_once(starter: Starter, tmp_path: Path) -> None:
    result, summary = trained_by_two_ranks(starter, tmp_path, (*SEGMENTATION, "epochs=2"), samples=96, epochs=2)
    assert result["miou"] == summary["last"]["test/miou"]
    assert result["loss"] == pytest.approx(summary["last"]["test/loss"], rel=1e-12)  # sums of another order


@pytest.mark.slow
def test_a_loss_that_is_no_number(starter: Starter, tmp_path: Path) -> None:
    words = (*SEGMENTATION, "epochs=2", "checkpoint_every=2", f"output_root={tmp_path}")
    code, output = starter.run(*words, bad_loss={"step": 9, "task": "segmentation"})  # the second half of step 4
    assert code == 1
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "the loss is not finite at step 4" in errors[0]
    assert "Traceback" not in output
    run = only_run(tmp_path)
    assert run.status()["status"] == "FAILED"
    assert load(run.path / "nonfinite.pt")["batch"]["masks"].shape == (8, 33, 33)
    last = load(run.checkpoints / "last.pt")
    assert last["step"] == 4
    assert all_finite(last["model"].values())


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda root: write_mask(root / "masks" / "3.png", np.full((20, 30), 7)), "masks/3.png: label 7"),
        (lambda root: (root / "images" / "3.png").write_bytes(b"no image"), "images/3.png"),
        (lambda root: (root / "masks" / "3.png").unlink(), "'3' has no mask"),
    ],
    ids=["label above the classes", "damaged image", "no mask"],
)
def test_a_bad_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object], expected: str
) -> None:
    damage(write_folder(tmp_path / "fields"))
    words = ["data=segmentation_folder", f"data.root={tmp_path / 'fields'}", "regularizer=none", "device=cpu"]
    assert train.main([*words, f"output_root={tmp_path / 'out'}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert not list((tmp_path / "out").rglob("*.pt"))
