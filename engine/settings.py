"""The numbers that a training loop runs by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoopSettings:
    """How long and how often.

    Args:
        epochs: length of the run.
        seed: of the run; masks draw from (seed, rank, step, micro-batch, layer).
        accumulate: micro-batches per optimizer step.
        grad_clip: largest norm of all gradients together, None for no limit.
        precision: `float32`, `bfloat16` or `float16` (autocast; the last with a scaled loss).
        eval_every: epochs between evaluations.
        log_every: optimizer steps between log entries.
        checkpoint_every: optimizer steps between checkpoints, beside that after every epoch; 0: none.
    """

    epochs: int
    seed: int
    accumulate: int = 1
    grad_clip: float | None = None
    precision: str = "float32"
    eval_every: int = 1
    log_every: int = 50
    checkpoint_every: int = 0
