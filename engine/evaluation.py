"""One pass over a split: every sample exactly once, sums in float64, so that equal weights give equal numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from engine.distributed import Ranks
from engine.precision import autocast
from engine.tasks import Table, Task


@dataclass(frozen=True)
class Evaluation:
    """The result of a pass over a split, equal on all ranks.

    Args:
        metrics: by name; the task says their units.
        tables: finer results.
        images: how many were counted, over all ranks.
    """

    metrics: dict[str, float]
    tables: list[Table]
    images: int


@torch.no_grad()
def evaluate(
    task: Task,
    network: nn.Module,
    loader: Any,
    ranks: Ranks,
    device: torch.device,
    precision: str,
    poll: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate a network on one split.

    Args:
        task, network, loader: the network is in evaluation mode, except for layers that the caller wants to drop at
            inference.
        ranks: share the split; rank 0 merges what they saw.
        device, precision: those of training.
        poll: called before every batch, equally often on all ranks; may raise to end the pass.

    Raises:
        ValueError: on all ranks, for a split without samples or one that the task cannot measure.
    """
    # Every rank takes its share of the split; one that has no part of the last batch still polls with the others.
    evaluator, images = task.evaluator(loader), 0
    batches = iter(loader.epoch(0))
    for _ in range(ranks.max(len(loader))):
        poll()
        batch = next(batches, None)
        if batch is not None:
            with autocast(device, precision):  # of the network alone: a corrupted image is the same in every precision
                evaluator.update(network, batch)
            images += batch.size

    # Rank 0 merges and measures; the others wait for its result or its error.
    seen, states = zip(*ranks.gather((images, evaluator.state())), strict=True)
    if not sum(seen):
        raise ValueError("a split without samples cannot be evaluated")
    merged: Evaluation | ValueError | None = None
    if ranks.is_main:
        try:
            evaluator.merge(list(states))
            merged = Evaluation(evaluator.metrics(), evaluator.tables(), sum(seen))
        except ValueError as error:
            merged = error
    merged = ranks.gather(merged)[0]
    if not isinstance(merged, Evaluation):
        raise merged or ValueError("rank 0 has no result")
    return merged
