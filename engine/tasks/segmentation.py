"""Semantic segmentation: cross-entropy at the stride of the logits, mean intersection over union at full size.

Loss, strides and metric follow the code released with the paper (tensorflow/tpu@d2694ea,
models/official/retinanet/retinanet_segmentation_model.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.tasks.interface import Metric, Table
from engine.tasks.pictures import as_pixels, class_colours

IGNORE = 255  # the label of pixels that count neither in the loss nor in a metric


class Segmentation:
    """Cross-entropy over the labelled pixels of a batch; mIoU and pixel accuracy.

    Position (i, j) of the logits (B, K, h, w) stands for the pixel (s i, s j); the stride s is a power of two.

    Args:
        classes: their names, in the order of the labels.
    """

    name = "segmentation"
    headline = "miou"
    metrics = {  # noqa: RUF012 - the same for every instance
        "loss": Metric("cross-entropy per pixel", "", higher_is_better=False),
        "miou": Metric("mean IoU"),
        "pixel_accuracy": Metric("pixel accuracy"),
    }
    num_pictures = 4

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    def loss(self, network: nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The mean over the labelled pixels of all images given, which are its weight; 0 where there are none.

        Sums: cross-entropy, labelled pixels, pixels classified correctly; all at the stride of the logits.
        """
        logits = network(batch.images).float()
        masks = subsampled(batch.masks, logits)
        total, pixels = cross_entropy(logits, masks)
        with torch.no_grad():
            correct = ((logits.argmax(1) == masks) & (masks != IGNORE)).sum()
            sums = torch.stack([total.double(), pixels.double(), correct.double()])
        return total / pixels.clamp(min=1), pixels.double(), sums

    def normalizer(self, weight: Tensor) -> Tensor:
        return weight.clamp(min=1)

    def train_metrics(self, sums: Tensor, images: int) -> dict[str, float]:
        total, pixels, correct = sums.tolist()
        return {"loss": total / max(1, pixels), "pixel_accuracy": 100.0 * correct / max(1, pixels)}

    def evaluator(self, loader: Any) -> SegmentationEvaluator:
        return SegmentationEvaluator(self.classes)

    def pictures(self, network: nn.Module, batch: Any) -> Tensor:
        """Input, truth and prediction side by side: (N, 3, H, 3 W). Ignored pixels are white in the truth."""
        predicted = full_size(network(batch.images).float(), batch.masks.shape[1:]).argmax(1)
        return torch.cat([as_pixels(batch.images), class_colours(batch.masks), class_colours(predicted)], dim=3).cpu()


class SegmentationEvaluator:
    """mIoU, pixel accuracy and loss from a confusion matrix and two sums, all float64.

    The logits are brought to the size of the label, not the label to theirs, which would flatter thin objects.

    Args:
        classes: their names, in the order of the labels.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        # [cross-entropy, pixels it was taken at, pixels by (label, prediction)]
        self.sums = torch.zeros(2 + len(classes) ** 2, dtype=torch.float64)

    def update(self, network: nn.Module, batch: Any) -> None:
        logits, count = network(batch.images).float(), len(self.classes)
        total, pixels = cross_entropy(logits.double(), subsampled(batch.masks, logits))
        confusion = torch.zeros(count * count, dtype=torch.int64, device=logits.device)
        for maps, mask in zip(logits, batch.masks, strict=True):  # one by one: full-size logits of a batch are large
            predicted = full_size(maps[None], mask.shape).argmax(1)[0]
            labelled = mask != IGNORE
            confusion += torch.bincount(count * mask[labelled] + predicted[labelled], minlength=count * count)
        sums = torch.cat([torch.stack([total, pixels.double()]), confusion.double()])
        self.sums = self.sums.to(sums.device) + sums

    def state(self) -> Tensor:
        return self.sums.cpu()

    def merge(self, states: list[Tensor]) -> None:
        self.sums = torch.stack(states).sum(0)

    def metrics(self) -> dict[str, float]:
        """Raises ValueError for a split without a labelled pixel."""
        hits, labelled, union = self._counts()
        if not labelled.sum():
            raise ValueError("a split without labelled pixels cannot be evaluated")
        total, pixels = self.sums[:2].tolist()
        occurring = union > 0
        return {
            "loss": total / max(1.0, pixels),
            "miou": 100.0 * (hits[occurring] / union[occurring]).mean().item(),
            "pixel_accuracy": 100.0 * (hits.sum() / labelled.sum()).item(),
        }

    def tables(self) -> list[Table]:
        """IoU of each class; None for one that is neither in the labels nor predicted."""
        rows = [
            (name, 100.0 * hits / union if union else None, int(labelled))
            for name, hits, labelled, union in zip(self.classes, *(c.tolist() for c in self._counts()), strict=True)
        ]
        return [Table("classes", ("class", "IoU (%)", "pixels"), rows)]

    def _counts(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels per class: correct, labelled so, labelled or predicted so."""
        confusion = self.sums[2:].view(len(self.classes), -1)
        hits, labelled = confusion.diagonal(), confusion.sum(1)
        return hits, labelled, labelled + confusion.sum(0) - hits


def cross_entropy(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The sum over the labelled pixels of logits (B, K, h, w) and masks (B, h, w), and their number."""
    return F.cross_entropy(logits, masks, ignore_index=IGNORE, reduction="sum"), (masks != IGNORE).sum()


def stride_of(height: int, logits_height: int) -> int:
    """Pixels per position of the logits, a power of two: 8 for 65 positions of 513 pixels and 64 of 512."""
    return 2 ** math.ceil(math.log2(height / logits_height))


def subsampled(masks: Tensor, logits: Tensor) -> Tensor:
    """The labels (B, h, w) at the positions of the logits, of masks (B, H, W).

    Raises:
        ValueError: if no power of two takes the size of the masks to that of the logits.
    """
    stride = stride_of(masks.shape[1], logits.shape[2])
    labels = masks[:, ::stride, ::stride]
    if labels.shape[1:] != logits.shape[2:]:
        raise ValueError(f"logits of {tuple(logits.shape[2:])} are no {stride}th of masks of {tuple(masks.shape[1:])}")
    return labels


def full_size(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Logits (B, K, h, w), bilinear at every pixel of a label of this size.

    Between the positions they stand for, the same as aligned corners at s (h - 1) + 1 pixels, s the stride; beyond the
    last one its value.
    """
    stride = stride_of(size[0], logits.shape[2])
    spanned = [stride * (side - 1) + 1 for side in logits.shape[2:]]
    between = F.interpolate(logits, spanned, mode="bilinear", align_corners=True)
    return F.pad(between, (0, size[1] - spanned[1], 0, size[0] - spanned[0]), mode="replicate")
