"""Detection keeps what classification promises: kills, ranks, bad numbers and bad files, from the command line."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

import evaluate
import train
from engine.checkpoint import load
from engine.run_directory import RunDirectory
from tests.box_files import write_coco, write_voc
from tests.comparison import assert_identical
from tests.faults.two_ranks import trained_by_two_ranks
from tests.resume.test_kills import kill_often
from tests.trainer import DETECTION, Starter, assert_no_scars, only_run

Reference = Callable[..., RunDirectory]


@pytest.mark.slow
def test_killed_at_random(starter: Starter, tmp_path: Path, uninterrupted: Reference) -> None:
    words = (*DETECTION, "checkpoint_every=2", f"output_root={tmp_path}")
    run, kills, _ = kill_often(lambda: [starter.start(*words)], tmp_path, 1, random.Random(0))
    assert kills == 1
    assert_identical(run, uninterrupted(base=DETECTION))
    assert_no_scars(run)


def test_evaluation_gives_the_summary_again(uninterrupted: Reference, tmp_path: Path) -> None:
    run, out = uninterrupted(base=DETECTION), tmp_path / "result.json"
    summary = run.summary()
    assert evaluate.main([f"run={run.path}", f"json={out}", "device=cpu"]) == 0
    result = json.loads(out.read_text())
    metrics = {name.removeprefix("test/"): value for name, value in summary["last"].items() if name.startswith("test/")}
    assert {name: result[name] for name in metrics} == metrics
    assert metrics["ap50"] > 0  # else equal by having found nothing
    assert {"ap", "ap50", "ap75", "ar100", "voc_ap50"} <= metrics.keys()
    (classes,) = summary["tables"]
    assert result["tables"] == [classes]
    assert classes["header"] == ["class", "AP (%)", "AP50 (%)", "objects"]
    assert [name for name, *_ in classes["rows"]] == [*"0123456789"]
    precisions = [ap for _, ap, *_ in classes["rows"] if ap is not None]
    assert sum(precisions) / len(precisions) == pytest.approx(result["ap"])
    # A site of the head is met on five levels, each with masks of its own.
    heads = [row for row in json.loads((run.path / "sites.json").read_text()) if row["group"] == "head"]
    assert [len(row["map_sizes"]) for row in heads] == [5, 5]
    drops = summary["drop_last_epoch"]
    assert set(drops) == {"group3", "group4", "head"}
    assert drops["head"]["expected"] < drops["group4"]["expected"]  # head_share


@pytest.mark.slow
def test_two_ranks_hold_the_same_and_count_every_image_once(starter: Starter, tmp_path: Path) -> None:
    result, summary = trained_by_two_ranks(starter, tmp_path, DETECTION, samples=96, epochs=2)
    assert result["ap"] == summary["last"]["test/ap"]
    assert result["voc_ap50"] == summary["last"]["test/voc_ap50"]


def test_a_loss_that_is_no_number(starter: Starter, tmp_path: Path) -> None:
    words = (*DETECTION, "checkpoint_every=2", f"output_root={tmp_path}")
    code, output = starter.run(*words, bad_loss={"step": 9, "task": "detection"})  # the second half of step 4
    assert code == 1
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "the loss is not finite at step 4" in line
    assert "Traceback" not in output
    run = only_run(tmp_path)
    assert load(run.path / "nonfinite.pt")["batch"]["boxes"].shape == (8, 100, 4)
    assert load(run.checkpoints / "last.pt")["step"] == 4


@pytest.mark.parametrize(
    ("data", "write", "path", "content", "expected"),
    [
        ("voc_detection", write_voc, "Annotations/train_1.xml", b"<annotation>", "train_1.xml: not an annotation"),
        ("voc_detection", write_voc, "JPEGImages/train_1.jpg", b"no image", "train_1.jpg"),
        ("coco", write_coco, "annotations/instances_val2017.json", b'{"images": [', "instances_val2017.json"),
    ],
    ids=["XML cut short", "damaged image", "JSON cut short"],
)
def test_a_bad_file_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    data: str,
    write: Callable[[Path], Path],
    path: str,
    content: bytes,
    expected: str,
) -> None:
    root = write(tmp_path / "mine")
    (root / path).write_bytes(content)
    words = [f"data={data}", f"data.root={root}", "data.image_size=64", "model=retinanet_small", "model.width=4"]
    lists = ["data.val_split=val", "data.test_split=test"] if data == "voc_detection" else ["batch_size=2"]
    words = [*words, *lists, "regularizer=none", "device=cpu", f"output_root={tmp_path / 'out'}", "workers=0"]
    assert train.main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert expected in line
    assert not list((tmp_path / "out").rglob("*.pt"))
