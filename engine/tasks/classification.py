"""Classification: cross-entropy, top-1 and top-5 accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.tasks.interface import Table

Criterion = Callable[[Tensor, Tensor], Tensor]


class Classification:
    """Cross-entropy, or another loss of training; top-1 and top-5 accuracy, accuracy per class.

    Args:
        classes: their names, in the order of the labels.
        criterion: (logits, labels) -> mean loss of a training batch. Evaluation reports the plain cross-entropy.
        aux_weight: weight of the loss of an auxiliary head, for networks that return (logits, auxiliary logits) in
            training.
    """

    name = "classification"
    headline = "top1"
    labels = {  # noqa: RUF012 - the same for every instance
        "loss": "cross-entropy",
        "top1": "top-1 accuracy (%)",
        "top5": "top-5 accuracy (%)",
    }
    num_pictures = 0

    def __init__(self, classes: Sequence[str], criterion: Criterion = F.cross_entropy, aux_weight: float = 0.0) -> None:
        self.classes, self.criterion, self.aux_weight = tuple(classes), criterion, aux_weight

    def loss(self, network: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Sums: loss times images, images classified correctly; of a mixed target the larger part counts."""
        output = network(batch.images)
        logits, *auxiliary = output if isinstance(output, tuple) else (output,)
        loss = self._loss(logits, batch)
        for other in auxiliary:
            loss = loss + self.aux_weight * self._loss(other, batch)
        with torch.no_grad():
            larger = batch.labels if batch.share is None or batch.share >= 0.5 else batch.other_labels
            correct = (logits.argmax(1) == larger).sum()
            sums = torch.stack([loss.double() * batch.size, correct.double()])
        return loss, sums

    def _loss(self, logits: Tensor, batch: Any) -> Tensor:
        loss = self.criterion(logits.float(), batch.labels)
        if batch.share is None:
            return loss
        # Linear in the target: the loss of a mixed target is the mixture of the losses.
        return batch.share * loss + (1.0 - batch.share) * self.criterion(logits.float(), batch.other_labels)

    def train_metrics(self, sums: Tensor, images: int) -> dict[str, float]:
        loss, correct = sums.tolist()
        return {"loss": loss / images, "top1": 100.0 * correct / images}

    def evaluator(self, loader: Any) -> ClassificationEvaluator:
        return ClassificationEvaluator(self.classes)

    def pictures(self, network: nn.Module, batch: Any) -> Tensor:
        return torch.empty(0, 3, *batch.images.shape[2:], dtype=torch.uint8)


class ClassificationEvaluator:
    """Loss, top-1, top-5 and the top-1 of every class, from one vector of float64 sums.

    Args:
        classes: their names, in the order of the labels.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = classes
        # [loss, top-5 hits, top-1 hits of every class, images of every class]
        self.sums = torch.zeros(2 + 2 * len(classes), dtype=torch.float64)

    def update(self, network: nn.Module, batch: Any) -> None:
        logits, labels, count = network(batch.images).float(), batch.labels, len(self.classes)
        loss = F.cross_entropy(logits, labels, reduction="none").double().sum()
        hits = logits.topk(min(5, count), dim=1).indices == labels[:, None]
        right = torch.zeros(count, dtype=torch.float64, device=logits.device)
        seen = torch.zeros_like(right)
        right.index_add_(0, labels, hits[:, 0].double())
        seen.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))
        sums = torch.cat([torch.stack([loss, hits.any(1).double().sum()]), right, seen])
        self.sums = self.sums.to(sums.device) + sums

    def state(self) -> Tensor:
        return self.sums.cpu()

    def merge(self, states: list[Tensor]) -> None:
        self.sums = torch.stack(states).sum(0)

    def metrics(self) -> dict[str, float]:
        loss, top5 = self.sums[:2].tolist()
        right, seen = (part.sum().item() for part in self.sums[2:].split(len(self.classes)))
        values = {"loss": loss / seen, "top1": 100.0 * right / seen}
        return {**values, "top5": 100.0 * top5 / seen} if len(self.classes) > 5 else values  # of five all are hits

    def tables(self) -> list[Table]:
        right, seen = (part.tolist() for part in self.sums[2:].split(len(self.classes)))
        rows = [
            (name, 100.0 * hits / images if images else None, int(images))
            for name, hits, images in zip(self.classes, right, seen, strict=True)
        ]
        return [Table("classes", ("class", "top1 (%)", "images"), rows)]
