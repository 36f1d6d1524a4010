"""keep_prob as a function of training progress, and of the group a layer sits in (paper, sections 3 and 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from dropblock.layers import DropLayer, installed_layers

SCHEDULES: dict[str, Callable[[float, float], float]] = {
    # The paper's: from 1 at the first step down to the target at the end of training.
    "linear": lambda target, progress: 1.0 - progress * (1.0 - target),
    "constant": lambda target, progress: target,
}


def keep_prob_at(target: float, progress: float, schedule: str = "linear") -> float:
    """keep_prob at a moment of training.

    Args:
        target: the value at the end of training, in [0, 1].
        progress: share of training done, in [0, 1]: step t of T uses t / T, so the first step of the linear
            schedule drops nothing.
        schedule: `linear` or `constant`.

    Raises:
        ValueError: for a value out of range or an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule '{schedule}', choose one of {', '.join(SCHEDULES)}")
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress must lie in [0, 1], not {progress}")
    if not 0.0 <= target <= 1.0:
        raise ValueError(f"keep_prob must lie in [0, 1], not {target}")
    return SCHEDULES[schedule](target, progress)


def keep_prob_in_group(keep_prob: float, group: int, last_group: int = 4, divisor: float = 4.0) -> float:
    """The drop rate is divided by `divisor` once for every group before the last: at 0.9, group 3 keeps 0.975.

    Source: the authors' released code, 1 - (1 - keep_prob) / 4^(4 - group). `divisor=1` gives every group the same.
    """
    return 1.0 - (1.0 - keep_prob) / divisor ** (last_group - group)


class KeepProbSchedule:
    """Sets the keep_prob of every installed layer: call `set(t / T)` before optimizer step t = 0 ... T - 1.

    Args:
        model: a network that layers were installed into.
        keep_prob: target of the last group, in [0, 1].
        schedule: `linear` or `constant`.
        group_divisor: see `keep_prob_in_group`.
        last_group: the group that gets `keep_prob` itself.
        group_shares: instead of a divisor, the share of the drop rate that groups 1, 2, ... get, each in [0, 1].
        layers: the layers to schedule, where a model holds several kinds; None means all.

    Raises:
        ValueError: if there is no layer, or a value is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        keep_prob: float,
        schedule: str = "linear",
        group_divisor: float = 1.0,
        last_group: int = 4,
        group_shares: Sequence[float] | None = None,
        layers: Sequence[DropLayer] | None = None,
    ) -> None:
        keep_prob_at(keep_prob, 0.0, schedule)
        self.layers: list[DropLayer] = installed_layers(model) if layers is None else list(layers)
        if not self.layers:
            raise ValueError("no layer to schedule: install one first")
        self.keep_prob, self.schedule = keep_prob, schedule
        self.group_divisor, self.last_group, self.group_shares = group_divisor, last_group, group_shares
        for share in group_shares or ():
            if not 0.0 <= share <= 1.0:
                raise ValueError(f"group_shares must lie in [0, 1], not {share}")
        if group_shares is not None and max(layer.group for layer in self.layers) > len(group_shares):
            raise ValueError(f"group_shares={list(group_shares)}: there are layers in more groups than that")

    def set(self, progress: float) -> float:
        """Fill the keep_prob buffer of every layer; returns the value of the last group."""
        now = self.at(progress)
        for layer in self.layers:
            layer.keep_prob.fill_(self.in_group(now, layer.group))
        return now

    def at(self, progress: float) -> float:
        """keep_prob of the last group at this share of training."""
        return keep_prob_at(self.keep_prob, progress, self.schedule)

    def in_group(self, keep_prob: float, group: int) -> float:
        """What a group keeps when the last group keeps `keep_prob`."""
        if self.group_shares is not None:
            return 1.0 - (1.0 - keep_prob) * self.group_shares[group - 1]
        return keep_prob_in_group(keep_prob, group, self.last_group, self.group_divisor)
