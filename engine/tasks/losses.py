"""Regularizers that change the loss of classification: one class each, its options as keyword arguments.

An instance is called with logits (B, K) in float32 and labels (B,) and returns the mean loss over the batch. Evaluation
reports the plain cross-entropy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F


class LabelSmoothing:
    """Cross-entropy with a part of the target spread uniformly over all classes (Szegedy et al. 2016, section 7).

    Args:
        label_smoothing: this part, epsilon in [0, 1).
    """

    def __init__(self, label_smoothing: float) -> None:
        self.label_smoothing = label_smoothing

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


LOSSES: dict[str, Callable[..., Any]] = {
    "label_smoothing": LabelSmoothing,
}
