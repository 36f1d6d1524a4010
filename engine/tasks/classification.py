"""Classification: cross-entropy, accuracy, and the calibration of the predicted probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.tasks.interface import Metric, Table

BINS = 15  # of the expected calibration error, equal in width (Guo et al. 2017)
Criterion = Callable[[Tensor, Tensor], Tensor]


class Classification:
    """Cross-entropy, or another loss of training; accuracy, Brier score and calibration error.

    Args:
        classes: their names, in the order of the labels.
        criterion: (logits, labels) -> mean loss of a training batch. Evaluation reports the plain cross-entropy.
        aux_weight: weight of the loss of an auxiliary head, for networks that return (logits, auxiliary logits) in
            training.
    """

    name = "classification"
    headline = "top1"
    metrics = {  # noqa: RUF012 - the same for every instance
        "loss": Metric("cross-entropy", "", higher_is_better=False),
        "top1": Metric("top-1 accuracy"),
        "top5": Metric("top-5 accuracy"),
        "macro_accuracy": Metric("accuracy, mean of the classes"),
        "brier": Metric("Brier score", "", higher_is_better=False),
        "ece": Metric("expected calibration error", higher_is_better=False),
    }
    num_pictures = 0

    def __init__(self, classes: Sequence[str], criterion: Criterion = F.cross_entropy, aux_weight: float = 0.0) -> None:
        self.classes, self.criterion, self.aux_weight = tuple(classes), criterion, aux_weight

    def loss(self, network: nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The mean over the images, which are its weight.

        Sums: loss times images, images classified correctly; of a mixed target the larger part counts.
        """
        output = network(batch.images)
        logits, *auxiliary = output if isinstance(output, tuple) else (output,)
        loss = self._loss(logits, batch)
        for other in auxiliary:
            loss = loss + self.aux_weight * self._loss(other, batch)
        with torch.no_grad():
            larger, share = batch.labels, batch.share
            if isinstance(share, Tensor):
                larger = torch.where(share >= 0.5, batch.labels, batch.other_labels)
            elif share is not None and share < 0.5:
                larger = batch.other_labels
            correct = (logits.argmax(1) == larger).sum()
            sums = torch.stack([loss.double() * batch.size, correct.double()])
        return loss, sums.new_full((), batch.size), sums

    def normalizer(self, weight: Tensor) -> Tensor:
        return weight

    def _loss(self, logits: Tensor, batch: Any) -> Tensor:
        logits, share = logits.float(), batch.share
        if share is None:
            return self.criterion(logits, batch.labels)
        # Linear in the target: the loss of a mixed target is the mixture of the losses. A criterion gives means; where
        # each image has a share of its own, it is asked image by image.
        if isinstance(share, Tensor):
            each, logits = torch.vmap(self.criterion), logits[:, None]
            own, other = each(logits, batch.labels[:, None]), each(logits, batch.other_labels[:, None])
            return (share * own + (1.0 - share) * other).mean()
        return share * self.criterion(logits, batch.labels) + (1.0 - share) * self.criterion(logits, batch.other_labels)

    def train_metrics(self, sums: Tensor, images: int) -> dict[str, float]:
        loss, correct = sums.tolist()
        return {"loss": loss / images, "top1": 100.0 * correct / images}

    def evaluator(self, loader: Any) -> ClassificationEvaluator:
        return ClassificationEvaluator(self.classes)

    def pictures(self, network: nn.Module, batch: Any) -> Tensor:
        return torch.empty(0, 3, *batch.images.shape[2:], dtype=torch.uint8)


class ClassificationEvaluator:
    """All metrics and the tables of classes and of calibration, from one vector of float64 sums.

    Args:
        classes: their names, in the order of the labels.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        # [loss, top-5 hits, Brier score; hits and images of every class; images, hits and confidence of every bin]
        self.sums = torch.zeros(3 + 2 * len(classes) + 3 * BINS, dtype=torch.float64)

    def update(self, network: nn.Module, batch: Any) -> None:
        self.add(network(batch.images).float(), batch.labels)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Take in the logits (B, K), float32, of a batch with these labels."""
        count = len(self.classes)
        loss = F.cross_entropy(logits, labels, reduction="none").double().sum()

        # Accuracy, over images and by class.
        hits = logits.topk(min(5, count), dim=1).indices == labels[:, None]
        right = torch.zeros(count, dtype=torch.float64, device=logits.device)
        seen = torch.zeros_like(right)
        right.index_add_(0, labels, hits[:, 0].double())
        seen.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))

        # Brier (1950): the squared distance between the probabilities and the one-hot label, 0 to 2.
        probabilities = logits.double().softmax(1)
        of_label = probabilities.gather(1, labels[:, None])
        brier = probabilities.square().sum() + (1.0 - 2.0 * of_label).sum()

        bins = binned(probabilities.amax(1), hits[:, 0])
        ours = [torch.stack([loss, hits.any(1).double().sum(), brier]), right, seen, bins.flatten()]
        self.sums = self.sums.to(logits.device) + torch.cat(ours)

    def state(self) -> Tensor:
        return self.sums.cpu()

    def merge(self, states: list[Tensor]) -> None:
        self.sums = torch.stack(states).sum(0)

    def metrics(self) -> dict[str, float]:
        (loss, top5, brier), right, seen, bins = self._parts()
        images = seen.sum().item()
        values = {"loss": loss.item() / images, "top1": 100.0 * right.sum().item() / images}
        if len(self.classes) > 5:  # of five all are hits
            values["top5"] = 100.0 * top5.item() / images
        occurring = seen > 0
        values["macro_accuracy"] = 100.0 * (right[occurring] / seen[occurring]).mean().item()
        values["brier"] = brier.item() / images
        values["ece"] = calibration_error(bins)
        return values

    def tables(self) -> list[Table]:
        _, right, seen, bins = self._parts()
        classes = [
            (name, 100.0 * hits / images if images else None, int(images))
            for name, hits, images in zip(self.classes, right.tolist(), seen.tolist(), strict=True)
        ]
        calibration = [
            (
                f"{100 * m / BINS:.0f} to {100 * (m + 1) / BINS:.0f}",
                100 * sure / images,
                100 * hits / images,
                int(images),
            )
            for m, (images, hits, sure) in enumerate(bins.T.tolist())
            if images
        ]
        return [
            Table("classes", ("class", "top1 (%)", "images"), classes),
            Table("calibration", ("confidence (%)", "mean confidence (%)", "top1 (%)", "images"), calibration),
        ]

    def _parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(loss, top-5 hits, Brier score); hits and images of every class; (images, hits, confidence) of every bin."""
        count = len(self.classes)
        of_all, right, seen, bins = self.sums.split([3, count, count, 3 * BINS])
        return of_all, right, seen, bins.view(3, BINS)


def binned(confidence: Tensor, right: Tensor) -> Tensor:
    """(3, 15) predictions, those that are right, and their confidence, summed in every bin of confidence.

    Guo et al. (2017), section 2: bin m holds confidences in ((m - 1) / M, m / M].

    Args:
        confidence: (N,) float64, the highest probabilities.
        right: (N,) bool.
    """
    bins = (confidence * BINS).ceil().clamp(min=1)
    # By a product, not by index_add_, whose sums of fractions have no fixed order on a GPU.
    of_bin = (bins == torch.arange(1, BINS + 1, device=bins.device)[:, None]).double()
    return torch.stack([torch.ones_like(confidence), right.double(), confidence]) @ of_bin.mT


def calibration_error(bins: Tensor) -> float:
    """The mean over predictions of |accuracy - confidence| of their bin, in %; bins as `binned` gives them."""
    return 100.0 * (bins[1] - bins[2]).abs().sum().item() / bins[0].sum().item()
