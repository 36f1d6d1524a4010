"""Non-finite checks: stop before a NaN or Inf reaches weights, logs or checkpoints, and save what a replay needs.

Skipping a batch whose loss is not finite is not safe: its forward pass has already changed BatchNorm's running
statistics. So the run stops. The one case that is skipped is the gradient that overflows in float16 though the loss is
finite: the scale of the loss is too large then, and halving it is the fix.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from engine import checkpoint
from engine.distributed import Ranks
from engine.run_directory import RunDirectory
from engine.state import TrainState

REPLAY = "nonfinite.pt"
# The scale of the loss starts at 2^16 and halves with each skip: after 16 in a row it is gone, and not the cause.
MAX_SKIPS_IN_A_ROW = 16


class NonFinite(RuntimeError):
    """A loss, a gradient, a weight or a metric is not finite."""

    exit_code = 1


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """True if every entry is finite; a single transfer from the device if so, two if not."""
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


class Guard:
    """Checks losses and gradients on all ranks together; every method raises NonFinite on all of them or on none.

    On a CPU a number is checked before it is used. On a GPU that would wait for the device: losses are kept until
    `look_back`, and gradients show as weights or as the next loss.

    Args:
        state: the run's; its gradients are checked.
        ranks, device: where this process stands.
        directory, identity: where `nonfinite.pt` goes, and what every file of the run says about its origin.
    """

    def __init__(
        self,
        state: TrainState,
        ranks: Ranks,
        device: torch.device,
        directory: RunDirectory,
        identity: dict[str, Any],
    ) -> None:
        self.state, self.ranks, self.directory, self.identity = state, ranks, directory, identity
        self.parameters = list(state.model.parameters())  # the walk over all modules takes half a millisecond
        self.at_once = device.type == "cpu"
        self.unchecked: list[tuple[Tensor, Any]] = []  # losses, and where in the run they were computed

    def loss(self, loss: Tensor, batch: Any, micro: int) -> None:
        """Check the loss of a micro-batch before its gradient is taken, or keep it for `look_back`."""
        seen = (self.state.step, self.state.optimizer.param_groups[0]["lr"], batch.indices)
        if self.at_once:
            self._stop_if(not all_finite([loss]), "the loss", seen, batch, micro)
        else:
            self.unchecked.append((loss.detach(), seen))

    def gradients(self, batch: Any) -> None:
        """Check the gradients before the step."""
        if self.at_once and not self.state.scaler.is_enabled():
            found = [p.grad for p in self.parameters if p.grad is not None]
            seen = (self.state.step, self.state.optimizer.param_groups[0]["lr"], batch.indices)
            self._stop_if(not all_finite(found), "a gradient", seen, batch, 0)

    def look_back(self) -> None:
        """Check the losses of all steps since the last call, in one transfer."""
        if self.at_once:
            return
        kept, self.unchecked = self.unchecked, []
        finite = torch.stack([loss for loss, _ in kept]).isfinite().tolist() if kept else []
        bad = not all(finite)
        self._stop_if(bad, "the loss", kept[finite.index(False)][1] if bad else None)

    def _stop_if(self, bad: bool, what: str, seen: Any, batch: Any = None, micro: int = 0) -> None:
        """Raise if a number is bad on any rank; the first such rank keeps batch and state for a replay."""
        if not self.ranks.any(bad):
            return
        met = self.ranks.gather((bad, seen))
        rank = next(rank for rank, (bad, _) in enumerate(met) if bad)
        step, lr, samples = met[rank][1]

        # Later than the step itself, its batch is gone.
        hint = "the last checkpoint leads there again"
        if rank == self.ranks.rank and batch is not None:
            path, origin = self.directory.path / REPLAY, {"rank": rank, "micro": micro, **self.identity}
            try:
                checkpoint.save({**self.state.state_dict(), "batch": batch.plain(), **origin}, path)
                hint = f"batch and state are kept in {path}"
            except OSError as error:
                hint = str(error)
        hint = self.ranks.gather(hint)[rank]

        # The same message on every rank: where, at which rate, for which samples.
        ids = ", ".join(str(int(i)) for i in samples[:8])
        ids += f" and {len(samples) - 8} more" if len(samples) > 8 else ""
        where = f" on rank {rank}" if self.ranks.world_size > 1 else ""
        raise NonFinite(f"{what} is not finite at step {step}{where} (lr {lr:.4g}; samples {ids}); {hint}")
