"""Segmentation: loss and metrics against independent sums, and a known answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data import SegmentationBatch
from engine.tasks.segmentation import IGNORE, Segmentation, full_size

CLASSES = ("sky", "road", "tree", "never")


def batch_of(logits: Tensor, masks: Tensor) -> SegmentationBatch:
    """The network is the identity: the images are the logits."""
    return SegmentationBatch(logits, masks, torch.arange(len(masks)))


def evaluated(*batches: SegmentationBatch) -> tuple[dict[str, float], list]:
    evaluator = Segmentation(CLASSES).evaluator(None)
    for batch in batches:
        evaluator.update(nn.Identity(), batch)
    return evaluator.metrics(), list(evaluator.tables()[0].rows)


def test_the_loss_is_taken_at_the_stride_over_the_labelled_pixels() -> None:
    torch.manual_seed(0)
    logits, masks = torch.randn(3, 4, 5, 3), torch.randint(4, (3, 33, 17))  # 5 = ceil(33 / 8), 3 = ceil(17 / 8)
    masks[:, :9] = IGNORE
    loss, _, sums = Segmentation(CLASSES).loss(nn.Identity(), batch_of(logits, masks))
    expected = []
    for b in range(3):
        for i in range(5):
            for j in range(3):
                label = int(masks[b, 8 * i, 8 * j])
                if label != IGNORE:
                    row = logits[b, :, i, j].double()
                    expected.append(math.log(sum(math.exp(v) for v in row.tolist())) - row[label].item())
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-5)
    assert sums.tolist()[:2] == pytest.approx([np.sum(expected), len(expected)])
    assert len(expected) == 3 * 3 * 3


def test_without_a_labelled_pixel_the_loss_is_nothing_and_so_is_its_gradient() -> None:
    logits = torch.randn(2, 4, 2, 2, requires_grad=True)
    loss, _, sums = Segmentation(CLASSES).loss(nn.Identity(), batch_of(logits, torch.full((2, 16, 16), IGNORE)))
    loss.backward()
    assert loss.item() == 0 == logits.grad.abs().sum().item()  # type: ignore[union-attr]
    assert Segmentation(CLASSES).train_metrics(sums, 2) == {"loss": 0.0, "pixel_accuracy": 0.0}
    with pytest.raises(ValueError, match="without labelled pixels"):
        evaluated(batch_of(logits.detach(), torch.full((2, 16, 16), IGNORE)))


def test_metrics_equal_a_sum_over_all_pixels() -> None:
    torch.manual_seed(1)
    logits, masks = torch.randn(3, 4, 4, 4), torch.randint(3, (3, 25, 25))
    logits[:, 3] = -100.0  # never predicted, never a label: out of the mean
    masks[torch.rand(masks.shape) < 0.2] = IGNORE
    metrics, rows = evaluated(batch_of(logits, masks))
    predicted = F.interpolate(logits, (25, 25), mode="bilinear", align_corners=True).argmax(1).numpy()
    labels = masks.numpy()
    seen = labels != IGNORE
    ious = []
    for k in range(3):
        ours, theirs = (predicted == k) & seen, labels == k
        ious.append(100 * (ours & theirs).sum() / (ours | theirs).sum())
    assert metrics["miou"] == pytest.approx(np.mean(ious))
    assert metrics["pixel_accuracy"] == pytest.approx(100 * (predicted == labels)[seen].mean())
    assert [row[1] for row in rows[:3]] == pytest.approx(ious)
    assert rows[3] == ("never", None, 0)
    loss, *_ = Segmentation(CLASSES).loss(nn.Identity(), batch_of(logits, masks))
    assert metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_a_perfect_prediction_and_a_known_one() -> None:
    masks = torch.zeros(1, 16, 16, dtype=torch.int64)
    masks[:, :, 8:] = 1
    perfect = F.one_hot(masks, 4).movedim(3, 1).float() * 50
    metrics, _ = evaluated(batch_of(perfect, masks))
    assert (metrics["miou"], metrics["pixel_accuracy"]) == (100.0, 100.0)
    # All is called sky: half of the union of sky, nothing of road.
    sky = torch.zeros(1, 4, 2, 2)
    sky[:, 0] = 1.0
    metrics, rows = evaluated(batch_of(sky, masks))
    assert (metrics["miou"], metrics["pixel_accuracy"]) == (25.0, 50.0)
    assert rows[:2] == [("sky", 50.0, 128), ("road", 0.0, 128)]


def test_a_class_that_is_only_predicted_counts_as_nothing_found() -> None:
    masks = torch.zeros(1, 16, 16, dtype=torch.int64)
    answer = masks.clone()
    answer[:, :, 8:] = 2  # half of the sky is called tree, of which there is none
    metrics, rows = evaluated(batch_of(F.one_hot(answer, 4).movedim(3, 1).float(), masks))
    assert metrics["miou"] == 25.0
    assert rows == [("sky", 50.0, 256), ("road", None, 0), ("tree", 0.0, 0), ("never", None, 0)]


@pytest.mark.parametrize("size", [(33, 33), (32, 40), (27, 30)])
def test_logits_come_to_full_size_where_the_labels_were_taken(size: tuple[int, int]) -> None:
    """A plane stays a plane, and at the sampled pixels nothing changes."""
    rows, columns = (-(-side // 8) for side in size)
    plane = (torch.arange(rows)[:, None] * 8.0 + torch.arange(columns)[None] * 80.0)[None, None]
    full = full_size(plane, size)
    assert full.shape[2:] == size
    torch.testing.assert_close(full[:, :, ::8, ::8], plane)
    i, j = 5, 8 * (columns - 1) - 3
    assert full[0, 0, i, j].item() == pytest.approx(i + 10 * j)


def test_logits_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="logits of"):
        Segmentation(CLASSES).loss(nn.Identity(), batch_of(torch.zeros(1, 4, 4, 9), torch.zeros(1, 32, 32).long()))


def test_pictures_show_input_truth_and_prediction() -> None:
    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0, ::8, ::8] * 0, x[:, 0, ::8, ::8] * 0 + 1], 1)

    masks = torch.zeros(2, 16, 16, dtype=torch.int64)
    masks[:, 0] = IGNORE
    shown = Segmentation(("a", "b")).pictures(First(), batch_of(torch.randn(2, 3, 16, 16), masks))
    assert (shown.shape, shown.dtype) == ((2, 3, 16, 48), torch.uint8)
    assert (shown[:, :, 0, 16:32] == 255).all()
    assert (shown[:, :, 1:, 16:32] == 0).all()
    assert shown[0, :, 3, 40].tolist() == [128, 0, 0]


def test_pixels_beyond_the_last_position_have_its_class() -> None:
    road = torch.zeros(1, 4, 4, 4)
    road[:, 1] = 1.0
    metrics, _ = evaluated(batch_of(road, torch.ones(1, 32, 32, dtype=torch.int64)))  # the positions span 25 of 32
    assert (metrics["miou"], metrics["pixel_accuracy"]) == (100.0, 100.0)
