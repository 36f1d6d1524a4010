"""The contract between loop and task: the loss of a training batch, and an evaluator of a split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

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


class Metric(NamedTuple):
    """Declaration of a metric by its task: all that anything else knows of it.

    Args:
        name: text for axes and tables.
        unit: behind a number, such as "%" or "nats"; "" for a plain number.
        higher_is_better: False for a loss or an error.
    """

    name: str
    unit: str = "%"
    higher_is_better: bool = True

    @property
    def label(self) -> str:
        """The name with its unit, for an axis."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


def metrics_record(metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Labels, units and directions of metrics as plain values, for the record of a run."""
    return {
        "metric_labels": {name: metric.label for name, metric in metrics.items()},
        "metric_units": {name: metric.unit for name, metric in metrics.items()},
        "lower_is_better": [name for name, metric in metrics.items() if not metric.higher_is_better],
    }


class Evaluator(Protocol):
    """One pass over one split. Batches and ranks may be cut in any way: the result is the same."""

    def update(self, network: nn.Module, batch: Any) -> None:
        """Take in a batch of this rank; called without gradients, in evaluation mode."""

    def state(self) -> Any:
        """Everything this rank has seen, as plain types and tensors on the CPU."""

    def merge(self, states: list[Any]) -> None:
        """Replace what was seen by that of all ranks: `states` are their `state()`, this one's among them."""

    def metrics(self) -> dict[str, float]:
        """The value of every metric that this split has, by name; each is declared in the task's `metrics`."""

    def tables(self) -> list[Table]:
        """Finer results."""


class Task(Protocol):
    """Classification, segmentation or detection.

    name: as in the configuration.
    headline: the metric that the best checkpoint is chosen by.
    metrics: every metric by name, with its unit and direction.
    num_pictures: test samples that `pictures` draws; 0: none.
    """

    name: str
    headline: str
    metrics: dict[str, Metric]
    num_pictures: int

    def loss(self, network: nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Mean loss to differentiate, its weight, and float64 vector of sums of a training batch.

        Weights (a float64 number each) and vectors of batches add up. The loop forms the mean over all micro-batches
        and ranks of a step: the sum of loss * normalizer(weight), divided by the normalizer of all weights together.
        """

    def normalizer(self, weight: Tensor) -> Tensor:
        """The number by which a loss, summed over samples of this weight, was divided to be their mean."""

    def train_metrics(self, sums: Tensor, images: int) -> dict[str, float]:
        """Metrics of training, "loss" among them, from the sum of such vectors over `images` images."""

    def evaluator(self, loader: Any) -> Evaluator:
        """A new evaluator for one pass over this loader's split."""

    def pictures(self, network: nn.Module, batch: Any) -> Tensor:
        """Draw the network's answers to a batch: (N, 3, H, W) uint8, one image a sample."""
