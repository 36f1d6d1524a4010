"""What differs between classification and other tasks: the loss of a batch, and the metrics of a split."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Task(Protocol):
    """A task turns batches into sums and sums into metrics; sums of batches and ranks simply add up.

    `headline` names the metric that the best checkpoint is chosen by (higher is better).
    """

    headline: str

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """(scalar to differentiate, float64 vector of running sums) of a training batch."""

    def train_metrics(self, sums: Tensor) -> dict[str, float]:
        """Metrics of training from the sum of such vectors."""

    def measure(self, model: nn.Module, batch: Any) -> Tensor:
        """The float64 vector of sums of an evaluation batch."""

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """Metrics of a split from the sum of such vectors."""

    def details(self, sums: Tensor) -> dict[str, list[float]]:
        """Finer results, such as one number per class."""


class Classification:
    """Cross-entropy with label smoothing; top-1 and top-5 accuracy in percent, accuracy per class.

    Args:
        num_classes: number of classes.
        label_smoothing: epsilon of the training loss, in [0, 1), spread uniformly over all classes (Szegedy et al.
            2016). Evaluation reports the plain cross-entropy.
        aux_weight: weight of the loss of an auxiliary head, for networks that return (logits, auxiliary logits) in
            training.
    """

    headline = "top1"

    def __init__(self, num_classes: int, label_smoothing: float = 0.0, aux_weight: float = 0.0) -> None:
        self.num_classes, self.label_smoothing, self.aux_weight = num_classes, label_smoothing, aux_weight

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        output = model(batch.images)
        logits, *auxiliary = output if isinstance(output, tuple) else (output,)
        loss = self._cross_entropy(logits, batch.labels)
        for other in auxiliary:
            loss = loss + self.aux_weight * self._cross_entropy(other, batch.labels)
        with torch.no_grad():
            correct = (logits.argmax(1) == batch.labels).sum()
            n = len(batch.labels)
            sums = torch.stack([loss.double() * n, correct.double(), torch.full_like(correct, n, dtype=torch.float64)])
        return loss, sums

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)

    def train_metrics(self, sums: Tensor) -> dict[str, float]:
        loss, correct, n = sums.tolist()
        return {"loss": loss / n, "top1": 100.0 * correct / n} if n else {}

    def measure(self, model: nn.Module, batch: Any) -> Tensor:
        logits, labels = model(batch.images).float(), batch.labels
        loss = F.cross_entropy(logits, labels, reduction="none").double().sum()
        hits = logits.topk(min(5, self.num_classes), dim=1).indices == labels[:, None]
        right = torch.zeros(self.num_classes, dtype=torch.float64, device=logits.device)
        seen = torch.zeros_like(right)
        right.index_add_(0, labels, hits[:, 0].double())
        seen.index_add_(0, labels, torch.ones_like(labels, dtype=torch.float64))
        return torch.cat([torch.stack([loss, hits.any(1).double().sum()]), right, seen])

    def metrics(self, sums: Tensor) -> dict[str, float]:
        loss, top5 = sums[:2].tolist()
        right, seen = sums[2:].split(self.num_classes)
        n = seen.sum().item()
        return {"loss": loss / n, "top1": 100.0 * right.sum().item() / n, "top5": 100.0 * top5 / n} if n else {}

    def details(self, sums: Tensor) -> dict[str, list[float]]:
        right, seen = sums[2:].split(self.num_classes)
        return {"top1_per_class": (100.0 * right / seen.clamp(min=1)).tolist(), "samples_per_class": seen.tolist()}
