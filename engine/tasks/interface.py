"""The contract between loop and task: the loss of a training batch, and an evaluator of a split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn


@dataclass(frozen=True)
class Table:
    """Finer results of a split, such as one number per class: plain values.

    Args:
        name: what the rows are.
        header: names of the columns, with units.
        rows: one cell per column each.
    """

    name: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | int | float | None]]


class Evaluator(Protocol):
    """One pass over one split. Batches and ranks may be cut in any way: the result is the same."""

    def update(self, network: nn.Module, batch: Any) -> None:
        """Take in a batch of this rank; called without gradients, in evaluation mode."""

    def state(self) -> Any:
        """Everything this rank has seen, as plain types and tensors on the CPU."""

    def merge(self, states: list[Any]) -> None:
        """Replace what was seen by that of all ranks: `states` are their `state()`, this one's among them."""

    def metrics(self) -> dict[str, float]:
        """Losses, and percentages of which more is better."""

    def tables(self) -> list[Table]:
        """Finer results."""


class Task(Protocol):
    """Classification, segmentation or detection.

    name: as in the configuration.
    headline: the metric that the best checkpoint is chosen by.
    labels: the axis label of each metric, with its unit.
    num_pictures: test samples that `pictures` draws; 0: none.
    """

    name: str
    headline: str
    labels: dict[str, str]
    num_pictures: int

    def loss(self, network: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Mean loss to differentiate and float64 vector of sums of a training batch; vectors of batches add up."""

    def train_metrics(self, sums: Tensor, images: int) -> dict[str, float]:
        """Metrics of training, "loss" among them, from the sum of such vectors over `images` images."""

    def evaluator(self, loader: Any) -> Evaluator:
        """A new evaluator for one pass over this loader's split."""

    def pictures(self, network: nn.Module, batch: Any) -> Tensor:
        """Draw the network's answers to a batch: (N, 3, H, W) uint8, one image a sample."""
