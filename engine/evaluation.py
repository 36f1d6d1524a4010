"""One pass over a split: every sample exactly once, sums in float64, so that equal weights give equal numbers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from engine.distributed import Ranks
from engine.tasks import Task

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision with float32 weights; `float32` switches it off."""
    return torch.autocast(device.type, dtype=PRECISIONS[precision], enabled=precision != "float32")


@torch.no_grad()
def evaluate(
    task: Task,
    model: nn.Module,
    loader: Any,
    ranks: Ranks,
    device: torch.device,
    precision: str,
    look_up: Callable[[], None] = lambda: None,
) -> Tensor:
    """The task's sums over one split, on the CPU.

    Args:
        task, model, loader: what is evaluated. The model is in evaluation mode, except for layers that the caller
            wants to drop at inference.
        ranks: the split is shared out among them and the sums are added up.
        device, precision: as in training.
        look_up: called before every batch, equally often on all ranks; may raise to leave.

    Raises:
        ValueError: for a split without samples.
    """
    total: Tensor | None = None
    with autocast(device, precision):
        batches = iter(loader.epoch(0))
        for _ in range(ranks.max(len(loader))):  # a rank may have no share of the last one
            look_up()
            batch = next(batches, None)
            if batch is not None:
                sums = task.measure(model, batch)
                total = sums if total is None else total + sums
    parts = [part for part in ranks.gather(None if total is None else total.cpu()) if part is not None]
    if not parts:
        raise ValueError("a split without samples cannot be evaluated")
    return torch.stack(parts).sum(0)
