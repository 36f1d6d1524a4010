"""scripts/predictions.py: its pictures hold what the network and the truth say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from configs.checking import UserError
from data import ClassificationBatch, Data
from data.interface import DetectionBatch, SegmentationBatch
from scripts import predictions

INDEX = torch.zeros(1, dtype=torch.int64)


def data_of(task: str, classes: int) -> Any:
    return SimpleNamespace(task=task, classes=tuple(f"class{i}" for i in range(classes)), num_classes=classes)


def test_samples_are_spread_over_the_split_and_few_batches_are_read() -> None:
    read: list[int] = []

    class Loader:
        num_samples = 23

        def epoch(self, epoch: int, start: int = 0) -> Any:
            for number in range(start, 6):
                read.append(number)
                rows = torch.arange(4 * number, min(4 * number + 4, 23))
                yield ClassificationBatch(rows.float().view(-1, 1, 1, 1), rows, rows)

    batches = predictions.spread_over(Loader(), 5, 4)
    assert [int(batch.indices) for batch in batches] == [0, 4, 9, 13, 18]
    assert read == [0, 1, 2, 3, 4]
    assert len(predictions.spread_over(Loader(), 99, 4)) == 23


def test_errors_of_a_segmentation_are_red_and_padding_is_cut() -> None:
    mask = torch.full((1, 4, 4), 255)
    mask[0, :3, :2] = 1
    predicted = torch.ones_like(mask)
    predicted[0, 0, 0] = 0
    drawn = predictions.error_colours(mask, predicted)[0]
    assert drawn[:, 0, 0].tolist() == [214, 39, 40]
    assert drawn[:, 1, 1].tolist() == [255] * 3
    assert drawn[:, 3, 3].tolist() == [170] * 3
    _, grid = plt.subplots(5)
    batch = SegmentationBatch(torch.randn(1, 3, 4, 4), mask, INDEX)
    logits = torch.zeros(1, 2, 4, 4)
    logits[0, 1] = 1
    predictions.draw_segmentation(list(grid), lambda _: logits, batch, data_of("segmentation", 2), 0.3)  # type: ignore[arg-type]
    assert grid[0].get_title() == "100.0 % of pixels right"
    assert grid[3].images[0].get_array().shape == (3, 2, 3)
    p = np.array([1, np.e]) / (1 + np.e)  # of logits 0 and 1
    assert np.allclose(grid[4].images[0].get_array(), -(p * np.log2(p)).sum())
    unlabelled = SegmentationBatch(torch.randn(1, 3, 4, 4), torch.full_like(mask, 255), INDEX)  # nothing to cut by
    predictions.draw_segmentation(list(grid), lambda _: logits, unlabelled, data_of("segmentation", 2), 0.3)  # type: ignore[arg-type]
    assert grid[3].images[1].get_array().shape == (4, 4, 3)
    plt.close("all")


def test_detections_stand_below_the_truth_with_class_and_score() -> None:
    boxes, labels = torch.full((1, 100, 4), -1.0), torch.full((1, 100), -1)
    boxes[0, 0], labels[0, 0] = torch.tensor([2.0, 3.0, 10.0, 12.0]), 1
    batch = DetectionBatch(torch.randn(1, 3, 16, 16), boxes, labels, torch.ones(1).double(), INDEX, INDEX)
    anchors = torch.tensor([[2.0, 3.0, 10.0, 12.0], [0.0, 0.0, 4.0, 4.0]])
    output = (torch.tensor([[[-9.0, 2.0], [-9.0, -9.0]]]), torch.zeros(1, 2, 4), anchors)
    _, grid = plt.subplots(2)
    network: Any = lambda _: output  # noqa: E731
    predictions.draw_detection(list(grid), network, batch, data_of("detection", 2), 0.3)
    for axes, text in zip(grid, ("class1", "class1 0.88"), strict=True):
        (drawn,) = axes.patches
        assert np.allclose(drawn.get_bbox().extents, (2, 3, 10, 12))
        assert [label.get_text() for label in axes.texts] == [text]
    plt.close("all")


def test_the_picture_of_a_run(train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("regularizer=none", "epochs=1", "recipe.warmup_epochs=0") == 0
    (run,) = {path.parent for path in tmp_path.rglob("plan.yaml")}
    assert predictions.main([f"run={run}", "images=3", "device=cpu"]) == 0
    with Image.open(run / "predictions-test.png") as picture:
        assert picture.size[0] > picture.size[1] > 200
    assert predictions.main([f"run={run}", "split=both"]) == 2
    assert predictions.main([f"run={run}", "images=0"]) == 2
    assert predictions.main(["run=nowhere"]) == 2
    assert all(line.startswith("error: ") for line in capsys.readouterr().err.splitlines() if "rror" in line)


def test_a_task_without_pictures_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ordinal"):
        predictions.draw(nn.Identity(), data_of("ordinal", 3), [], 0.3, "title", tmp_path / "p.png")


@pytest.mark.parametrize("task", predictions.PICTURES)
def test_every_task_has_a_picture(task: str, tmp_path: Path) -> None:
    images = torch.randn(1, 3, 16, 16)
    boxes = torch.tensor([[[1.0, 1.0, 9.0, 9.0]]])
    batches: dict[str, Any] = {
        "classification": ClassificationBatch(images, INDEX, INDEX),
        "segmentation": SegmentationBatch(images, torch.zeros(1, 16, 16, dtype=torch.int64), INDEX),
        "detection": DetectionBatch(images, boxes, INDEX[None], torch.ones(1).double(), INDEX, INDEX),
    }
    outputs: dict[str, Any] = {
        "classification": torch.zeros(1, 3),
        "segmentation": torch.zeros(1, 3, 4, 4),
        "detection": (torch.zeros(1, 1, 3), torch.zeros(1, 1, 4), boxes[0]),
    }

    class Network(nn.Module):
        def forward(self, _: torch.Tensor) -> Any:
            return outputs[task]

    data: Data = data_of(task, 3)
    predictions.draw(Network(), data, [batches[task]] * 2, 0.3, "title", tmp_path / "new" / "p.png")
    assert (tmp_path / "new" / "p.png").stat().st_size > 5_000
