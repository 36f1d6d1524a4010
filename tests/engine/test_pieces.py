"""Seeds, metrics, curves, tables and run directories."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, brier_score_loss
from torch import Tensor, nn
from torch.nn import functional as F

from data import ClassificationBatch
from engine.console import duration, table
from engine.distributed import Ranks, find_device
from engine.loggers import MetricsWriter
from engine.run_directory import RunDirectory, RunLocked, differences
from engine.seeding import mix
from engine.tasks import Classification, Table
from engine.tasks.losses import LabelSmoothing


def batch_of(images: Tensor, labels: Tensor) -> ClassificationBatch:
    return ClassificationBatch(images, labels, torch.arange(len(labels)))


def evaluated(batches: list[ClassificationBatch], classes: int) -> tuple[dict[str, float], Table]:
    evaluator = Classification([str(k) for k in range(classes)]).evaluator(None)
    for batch in batches:
        evaluator.update(nn.Identity(), batch)
    evaluator.merge([evaluator.state()])
    return evaluator.metrics(), evaluator.tables()[0]


def test_seeds_do_not_collide_and_look_random() -> None:
    seeds = [mix(a, b, c) for a in range(20) for b in range(20) for c in range(20)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Each of the 63 bits is a fair coin over 8,000 seeds; 5.5 standard deviations: false alarm below 63 * 4e-8.
    for bit in range(63):
        ones = sum(seed >> bit & 1 for seed in seeds)
        assert abs(ones - 4000) < 5.5 * math.sqrt(2000)
    assert mix(1, 2) != mix(2, 1)
    assert mix(0) != mix(0, 0)


def test_metrics_do_not_depend_on_how_a_split_is_cut_into_batches() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 7), torch.randint(7, (50,))
    whole, _ = evaluated([batch_of(logits, labels)], 7)
    cut, table = evaluated([batch_of(x, y) for x, y in zip(logits.split(8), labels.split(8), strict=True)], 7)
    assert cut == pytest.approx(whole, rel=1e-12)
    assert whole["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-5)
    assert whole["top1"] == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())
    top5 = (logits.argsort(1, descending=True)[:, :5] == labels[:, None]).any(1)
    assert whole["top5"] == pytest.approx(100 * top5.double().mean().item())
    few, _ = evaluated([batch_of(logits[:, :5], labels.clamp(max=4))], 5)
    assert set(whole) - set(few) == {"top5"}  # of five classes every hit is among the first five
    for k, (name, top1, images) in enumerate(table.rows):
        right = (logits.argmax(1) == labels)[labels == k].double().mean().item()
        assert (name, images) == (str(k), int((labels == k).sum()))
        assert top1 == pytest.approx(100 * right)


@pytest.mark.parametrize("sharpness", [0.1, 1.0, 40.0])
def test_calibration_against_other_libraries(sharpness: float) -> None:
    """scikit-learn's Brier score and balanced accuracy; the calibration error from its definition, bin by bin."""
    torch.manual_seed(0)
    logits, labels = sharpness * torch.randn(500, 7), torch.randint(6, (500,))  # the last class does not occur
    batches = [batch_of(x, y) for x, y in zip(logits.split(37), labels.split(37), strict=True)]
    found, _ = evaluated(batches, 7)
    p, y = logits.double().softmax(1).numpy(), labels.numpy()
    assert found["brier"] == pytest.approx(brier_score_loss(y, p, labels=range(7), scale_by_half=False), rel=1e-9)
    with warnings.catch_warnings():  # of classes that are predicted but do not occur, which are not counted
        warnings.simplefilter("ignore")
        assert found["macro_accuracy"] == pytest.approx(100 * balanced_accuracy_score(y, p.argmax(1)), rel=1e-12)
    error, confidence, right = 0.0, p.max(1), p.argmax(1) == y
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15 + 1e-12)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert found["ece"] == pytest.approx(100 * error, rel=1e-9)


def test_label_smoothing_is_uniform_over_all_classes() -> None:
    logits, labels = torch.randn(20, 5), torch.randint(5, (20,))
    loss, *_ = Classification("abcde", LabelSmoothing(0.1)).loss(nn.Identity(), batch_of(logits, labels))
    target = 0.9 * F.one_hot(labels, 5) + 0.1 / 5
    torch.testing.assert_close(loss, -(target * logits.log_softmax(1)).sum(1).mean())


def test_an_auxiliary_head_adds_its_weighted_loss() -> None:
    class TwoHeads(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, 2 * x

    logits, labels = torch.randn(20, 5), torch.randint(5, (20,))
    loss, *_ = Classification("abcde", aux_weight=0.4).loss(TwoHeads(), batch_of(logits, labels))
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels) + 0.4 * F.cross_entropy(2 * logits, labels))


def test_micro_batches_cover_the_batch_once() -> None:
    batch = batch_of(torch.arange(7.0), torch.arange(7))
    parts = batch.split(3)
    assert [part.size for part in parts] == [3, 2, 2]
    assert torch.cat([part.images for part in parts]).equal(batch.images)


def test_points_that_a_kill_undid_are_forgotten(tmp_path: Path) -> None:
    curves = MetricsWriter(tmp_path, 0)
    for step in range(1, 11):
        curves.add(step, step / 5, {"train/loss": float(step)})
    curves.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 11, "train/lo')  # cut off by a kill
    resumed = MetricsWriter(tmp_path, 6)
    for step in range(7, 13):
        resumed.add(step, step / 5, {"train/loss": 100.0 + step})
    resumed.close()
    values = [line["train/loss"] for line in RunDirectory(tmp_path).metrics()]
    assert values == [1, 2, 3, 4, 5, 6, 107, 108, 109, 110, 111, 112]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == list(enumerate(values, start=1))


def test_an_evaluation_that_is_repeated_stands_once(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, 0) as curves:
        curves.add(5, 1.0, {"train/loss": 1.0})
        curves.add(5, 1.0, {"val/top1": 50.0, "test/top1": 50.0})
    with MetricsWriter(tmp_path, 5, evaluates=True) as curves:
        curves.add(5, 1.0, {"val/top1": 50.0, "test/top1": 50.0})
    assert [sorted(line)[2:] for line in RunDirectory(tmp_path).metrics()] == [
        ["train/loss"],
        ["test/top1", "val/top1"],
    ]

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    for name, value in (("train/loss", 1.0), ("val/top1", 50.0)):
        assert [(event.step, event.value) for event in events.Scalars(name)] == [(5, value)]


def test_files_of_the_user_stay_in_a_run_folder(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    own = ["error_notes.txt", "checkpoints/thesis.tmp.docx"]
    left = ["error.txt", "error-rank3.txt", "plan.yaml.tmp.123", "checkpoints/last.pt.tmp.7"]
    for name in own + left:
        (tmp_path / name).write_text("x")
    directory = RunDirectory(tmp_path)
    with directory.session(Ranks()):
        directory.start(Ranks())
    assert all((tmp_path / name).exists() for name in own)
    assert not any((tmp_path / name).exists() for name in left)


@pytest.mark.parametrize("name", ["gpu", "CPU", "cuda:x", "tpu"])
def test_a_device_of_another_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"device={name}"):
        find_device(name)


def test_a_run_folder_belongs_to_one_process(tmp_path: Path) -> None:
    held = RunDirectory(tmp_path / "run").lock()
    other = f"from engine.run_directory import RunDirectory, Path; RunDirectory(Path({str(tmp_path / 'run')!r})).lock()"
    result = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"in use by process {os.getpid()}" in result.stderr
    held.close()
    RunDirectory(tmp_path / "run").lock().close()
    held = RunDirectory(tmp_path / "run").lock()
    with pytest.raises(RunLocked):
        RunDirectory(tmp_path / "run").lock()
    held.close()


def test_an_earlier_run_is_moved_aside_not_lost(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "seed-1")
    for _ in range(2):
        run.path.mkdir()
        run.write("summary.json", {"a": 1})
        run.move_aside()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["seed-1-old-1", "seed-1-old-2"]
    assert json.loads((tmp_path / "seed-1-old-2" / "summary.json").read_text()) == {"a": 1}


def test_differences_are_named_by_their_key() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ["a.c=2 (there: 3)"]
    assert differences({"a": 1}, {"a": 1}) == []
    assert differences({}, {"a": 1}) == ["a=None (there: 1)"]


def test_text() -> None:
    assert table(("name", "x"), [("a", 1), ("bcd", 20)]) == "name   x\n----  --\na      1\nbcd   20"
    assert [duration(s) for s in (5, 61, 3661)] == ["5 s", "1 min 01 s", "1 h 01 min"]
