"""Non-finite checks: stop before a NaN or Inf reaches weights, logs or checkpoints, and save what a replay needs.

Skipping a batch whose loss is not finite is not safe: its forward pass has already changed BatchNorm's running
statistics. So the run stops. The one case that is skipped is the gradient that overflows in float16 though the loss is
finite: the scale of the loss is too large then, and halving it is the fix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine import checkpoint
from engine.distributed import Ranks
from engine.records import RunFolder
from engine.state import TrainState

REPLAY = "nonfinite.pt"
# The scale of the loss starts at 2^16 and halves with each skip: after 16 in a row it is gone, and not the cause.
MAX_SKIPS_IN_A_ROW = 16


class NonFinite(RuntimeError):
    """A loss, a gradient, a weight or a metric is not finite."""

    exit_code = 1


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every entry is finite; one transfer from the device where it is so."""
    floating = [tensor.detach() for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    if not floating:
        return True
    # The sum is not finite if any entry is not; ten times cheaper than norms.
    if bool(torch.stack([tensor.sum().float() for tensor in floating]).isfinite().all()):
        return True
    # It may have overflowed: the largest magnitude is NaN or infinite exactly if an entry is.
    return bool(torch.stack([n.float() for n in torch._foreach_norm(floating, math.inf)]).isfinite().all())


def refuse_metrics(values: dict[str, float]) -> None:
    """Raises NonFinite if a metric is not finite."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise NonFinite(f"{name} is {value}: the network has gone wrong")


class Seen(NamedTuple):
    """Where in the run a number was computed."""

    step: int  # optimizer steps done before
    lr: float
    samples: Tensor  # of the training set, this rank's


class Guard:
    """Checks the numbers of a run, on all ranks together; every method raises NonFinite on all of them or on none.

    Args:
        state: of the run.
        statistics: BatchNorm's running statistics.
        ranks, device: where this process stands.
        folder, identity: where `nonfinite.pt` goes, and what every file of the run says about its origin.
    """

    def __init__(
        self,
        state: TrainState,
        statistics: list[Tensor],
        ranks: Ranks,
        device: torch.device,
        folder: RunFolder,
        identity: dict[str, Any],
    ) -> None:
        self.state, self.statistics, self.ranks, self.folder, self.identity = state, statistics, ranks, folder, identity
        self.parameters = list(state.model.parameters())
        self.at_once = device.type == "cpu"
        self.unchecked: list[tuple[Seen, Tensor]] = []

    def loss(self, loss: Tensor, batch: Any, micro: int) -> None:
        """Check a loss before its gradient is taken; on a GPU, where that would wait for the device, later."""
        if self.at_once:
            self._refuse("the loss", [loss], batch, micro)
        else:
            self.unchecked.append((self._here(batch), loss.detach()))

    def gradients(self, batch: Any) -> None:
        """Check the gradients before the step. On a GPU they show as weights or as the next loss."""
        if self.at_once and not self.state.scaler.is_enabled():
            self._refuse("a gradient", [p.grad for p in self.parameters if p.grad is not None], batch, 0)

    def look_back(self) -> None:
        """Check the losses of all steps since the last call, in one transfer."""
        if self.at_once:
            return
        steps, self.unchecked = self.unchecked, []
        good = torch.stack([loss for _, loss in steps]).isfinite().tolist() if steps else []
        bad = not all(good)
        if self.ranks.any(bad):
            seen = steps[good.index(False)][0] if bad else Seen(0, 0.0, torch.tensor([]))
            raise self._stop("the loss", bad, seen, None)

    def weights(self) -> None:
        """Check what a checkpoint is about to keep."""
        if not all_finite([*self.parameters, *self.statistics]):
            raise NonFinite(f"a weight or a running statistic is not finite after step {self.state.step}")

    def scaled_step(self, scale: float) -> None:
        """Count a step that the scaler of the loss refused, seen from the scale before it."""
        scaler, state = self.state.scaler, self.state
        if scaler.is_enabled():
            skipped = scaler.get_scale() < scale
            state.skipped += skipped
            state.skipped_in_a_row = state.skipped_in_a_row + 1 if skipped else 0
            if state.skipped_in_a_row > MAX_SKIPS_IN_A_ROW:
                raise NonFinite(f"gradients overflow in {state.skipped_in_a_row} steps in a row, to step {state.step}")

    def _here(self, batch: Any) -> Seen:
        return Seen(self.state.step, self.state.optimizer.param_groups[0]["lr"], batch.indices)

    def _refuse(self, what: str, numbers: Iterable[Tensor], batch: Any, micro: int) -> None:
        bad = not all_finite(numbers)
        if self.ranks.any(bad):
            kept = {"rank": self.ranks.rank, "micro": micro, "batch": batch.plain(), **self.identity}
            raise self._stop(what, bad, self._here(batch), {**self.state.state_dict(), **kept} if bad else None)

    def _stop(self, what: str, bad: bool, seen: Seen, kept: dict[str, Any] | None) -> NonFinite:
        """The error to raise, equal on all ranks; the first rank that is concerned saves what a replay needs."""
        met = self.ranks.gather((bad, seen))
        rank = next(rank for rank, (bad, _) in enumerate(met) if bad)
        hint = "the last checkpoint leads there again"
        if rank == self.ranks.rank and kept is not None:
            path = self.folder.path / REPLAY
            try:
                checkpoint.save(kept, path)
                hint = f"batch and state are kept in {path}"
            except OSError as error:
                hint = str(error)
        hint, (step, lr, samples) = self.ranks.gather(hint)[rank], met[rank][1]
        ids = ", ".join(str(int(i)) for i in samples[:8])
        ids += f" and {len(samples) - 8} more" if len(samples) > 8 else ""
        where = f" on rank {rank}" if self.ranks.world_size > 1 else ""
        return NonFinite(f"{what} is not finite at step {step}{where} (lr {lr:.4g}; samples {ids}); {hint}")
