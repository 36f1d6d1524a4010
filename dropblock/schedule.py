"""keep_prob as a function of training progress, and of where a layer sits (DropBlock paper, sections 3 and 4.1)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from dropblock.functional import as_number, is_number
from dropblock.layers import OWN, DropLayer, installed_layers, set_buffers
from dropblock.sites import declared_sites, depths

DEPTH_RULES = ("group", "linear")


@dataclass(frozen=True)
class Schedule:
    """The share of the drop rate that is in force at a moment of training.

    Args:
        share: (progress, start, end), each a share of the run in [0, 1], -> share of the drop rate, in [0, 1].
        reads: those of `start` and `end` that it depends on; they must be given.
    """

    share: Callable[[float, float, float], float]
    reads: frozenset[str] = frozenset()


SCHEDULES: dict[str, Schedule] = {
    # The paper's: nothing at the first step, the whole drop rate at the end of training.
    "linear": Schedule(lambda progress, start, end: progress),
    "constant": Schedule(lambda progress, start, end: 1.0),
    "cosine": Schedule(lambda progress, start, end: 0.5 - 0.5 * math.cos(math.pi * progress)),
    # Liu et al., "Dropout Reduces Underfitting", ICML 2023, arXiv 2303.01500: early dropout with a linear decrease,
    # and late dropout.
    "early": Schedule(lambda progress, start, end: max(0.0, 1.0 - progress / end), frozenset({"end"})),
    "late": Schedule(lambda progress, start, end: float(progress >= start), frozenset({"start"})),
    # As darknet's DropBlock (the code of YOLOv4, src/dropout_layer_kernels.cu), there with end = 0.85.
    "ramp": Schedule(lambda progress, start, end: min(1.0, progress / end), frozenset({"end"})),
    # Morerio et al., "Curriculum Dropout", ICCV 2017, arXiv 1703.06229, equation 2 with its gamma = 10 / T.
    "curriculum": Schedule(lambda progress, start, end: 1.0 - math.exp(-10.0 * progress)),
}


def keep_prob_at(
    target: float, progress: float, schedule: str = "linear", start: float | None = None, end: float | None = None
) -> float:
    """keep_prob at a moment of training.

    Args:
        target: the value when the whole drop rate is in force, in [0, 1].
        progress: share of training done, in [0, 1]: step t of T uses t / T, so the first step of the linear schedule
            drops nothing.
        schedule: a key of SCHEDULES.
        start: where `late` begins, a share of the run in [0, 1].
        end: where `early` has faded out, or `ramp` has reached the target, a share of the run in (0, 1].

    Raises:
        ValueError: for a value out of range, an unknown schedule, or a start or end that the schedule does not have, or
            has and is not given.
        TypeError: if the target or the progress is no number.
    """
    for name, number in {"target": target, "progress": progress}.items():
        if not is_number(number):
            raise TypeError(f"{name} must be a number in [0, 1], not {number!r}")
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule '{schedule}', choose one of {', '.join(SCHEDULES)}")
    if not 0.0 <= progress <= 1.0:
        raise ValueError(f"progress must lie in [0, 1], not {progress}")
    if not 0.0 <= target <= 1.0:
        raise ValueError(f"keep_prob must lie in [0, 1], not {target}")

    # A start or end that a schedule does not read would be a knob that does nothing.
    reads = SCHEDULES[schedule].reads
    for name, value, default in (("start", start, 0.0), ("end", end, 1.0)):
        if value is None and name in reads:
            raise ValueError(f"schedule '{schedule}' needs schedule_{name}, such as 0.5 of the run")
        if value is not None and value != default and name not in reads:
            raise ValueError(f"schedule '{schedule}' has no schedule_{name}")
    start, end = 0.0 if start is None else start, 1.0 if end is None else end
    if not 0.0 <= start <= 1.0:
        raise ValueError(f"schedule_start must lie within the run, not at {start:g} of it")
    if not 0.0 < end <= 1.0:
        raise ValueError(f"schedule_end must lie within the run and after its first step, not at {end:g} of it")
    share = SCHEDULES[schedule].share(progress, start, end)
    return target if share == 1.0 else 1.0 - share * (1.0 - target)


def keep_prob_in_group(keep_prob: float, group: int, last_group: int = 4, divisor: float = 4.0) -> float:
    """The drop rate is divided by `divisor` once for every group before the last: at 0.9, group 3 keeps 0.975.

    Source: the authors' released code, 1 - (1 - keep_prob) / 4^(4 - group). `divisor=1` gives every group the same.
    """
    return 1.0 - (1.0 - keep_prob) / divisor ** (last_group - group)


class KeepProbSchedule:
    """Sets the keep_prob of every installed layer: call `set(t / T)` before optimizer step t = 0 ... T - 1.

    The state of a schedule is the progress it is given, so nothing has to be saved: after a resume, and with any
    number of processes or replicas, the same step has the same keep_prob.

    Args:
        model: a network that layers were installed into.
        keep_prob: target of the last group, in [0, 1]. With a function as schedule it is what the sites table shows.
        schedule: a key of SCHEDULES, or a function of what `set` is given that returns keep_prob of the last group,
            such as `lambda n: max(1 - 0.1 * n / 40000, 0.9)`.
        group_divisor: at least 1, see `keep_prob_in_group`; 4 in the paper's networks. With 1, the default, all groups
            have the same.
        last_group: the group that gets `keep_prob` itself; None takes the last one that has sites, 4 without sites.
        group_shares: instead of a divisor, the share of the drop rate that groups 1, 2, ... get, each in [0, 1].
        layers: the layers to schedule, where a model holds several kinds; None means all.
        schedule_start, schedule_end: see `keep_prob_at`; in steps where `total_steps` is given.
        total_steps: the length of the run, if `set` is to be given the step t instead of t / T.
        head_share: the share of the drop rate that sites of a head (a group that is no number) get, in [0, 1].
        depth_rule: `group` (divisor or shares), or `linear`: the drop rate grows with the index l of the block, the
            layers of block l of L get l / L of it (see `dropblock.sites.depths`); the groups then count for nothing.

    A new schedule has set its first value, progress 0: until `set` is called, a linear one drops nothing. A loop that
    counts no steps calls `step()` after every optimizer step instead, as it calls a scheduler of torch.

    Raises:
        ValueError: if there is no layer, a value is out of range, or a group is not among those that are divided.
        TypeError: if an argument is of another type; the message names it.
    """

    def __init__(
        self,
        model: nn.Module,
        keep_prob: float,
        schedule: str | Callable[[float], float] = "linear",
        group_divisor: float = 1.0,
        last_group: int | None = None,
        group_shares: Sequence[float] | None = None,
        layers: Sequence[DropLayer] | None = None,
        *,
        schedule_start: float | None = None,
        schedule_end: float | None = None,
        total_steps: int | None = None,
        head_share: float = 1.0,
        depth_rule: str = "group",
    ) -> None:
        # Types first: a schedule of another library may take its arguments in another order.
        if not is_number(as_number(keep_prob)):
            raise TypeError(f"keep_prob must be a number in [0, 1], not {keep_prob!r}")
        limits = {"schedule_start": schedule_start, "schedule_end": schedule_end}
        others = {"last_group": last_group, "total_steps": total_steps}
        given = {name: value for name, value in {**limits, **others}.items() if value is not None}
        for name, value in {"group_divisor": group_divisor, "head_share": head_share, **given}.items():
            if not is_number(value):
                raise TypeError(f"{name} must be a number, not {value!r}")
        if group_shares is not None and not isinstance(group_shares, Sequence):
            raise TypeError(f"group_shares must be a list, one share for each group, not {group_shares!r}")
        if layers is not None and not isinstance(layers, Sequence):
            raise TypeError(f"layers must be a list of layers, not {layers!r}")
        if not isinstance(schedule, str) and not callable(schedule):
            raise TypeError(f"schedule must be one of {', '.join(SCHEDULES)} or a function, not {schedule!r}")
        if total_steps is not None and total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, not {total_steps}")
        for name, limit in limits.items():
            if total_steps is not None and limit is not None and 0 < limit < 1:
                raise ValueError(f"{name} is a step where total_steps is given, and {limit:g} is none")

        # Steps are shares of `length`; without total_steps progress is a share already, and the length 1.
        self.keep_prob, self.schedule, self.length = keep_prob, schedule, total_steps or 1
        self.counts_steps = total_steps is not None
        self.start = None if schedule_start is None else schedule_start / self.length
        self.end = None if schedule_end is None else schedule_end / self.length
        if callable(schedule) and not (self.start is self.end is None and total_steps is None):
            raise ValueError("a function as schedule has no schedule_start, schedule_end or total_steps")
        self.layers: list[DropLayer] = installed_layers(model) if layers is None else list(layers)
        if not self.layers:
            raise ValueError("no layer to schedule: install one first")

        # The division of the rate over groups or depth.
        groups = [site.group for site in declared_sites(model).values() if isinstance(site.group, int)]
        self.last_group = max(groups, default=4) if last_group is None else last_group
        self.group_divisor, self.group_shares = group_divisor, group_shares
        self.head_share = head_share
        self._check_shares()
        self._depths = self._depths_of_layers(model, depth_rule)

        # Values in force since `LayerControl` last asked, each with its number of steps; None without a LayerControl.
        # The value that is set now may not be among them yet: `step` counts it once its step was made.
        self.in_force: Counter[float] | None = None
        self.counted = False
        self.set(0)
        self.was_set = False  # by the loop

    def set(self, progress: float) -> float:
        """Fill the keep_prob buffer of every layer; returns the value of the last group.

        Args:
            progress: t / T in [0, 1], the step t where there are total_steps, or whatever a function takes.

        Raises:
            ValueError: for progress out of range, a function's value outside [0, 1], or layers that are no longer in
                the network.
        """
        now = self._fill(progress)
        self._count(now)
        self.was_set = True
        return now

    def step(self) -> float:
        """Go on to the next step: call it after every optimizer step; after a resume call `set(steps done)` once.

        A schedule by name needs `total_steps`; a function is given the number of steps done.

        Returns:
            keep_prob of the last group in the step that comes.

        Raises:
            ValueError: without total_steps, after the last step, or as for `set`.
        """
        if isinstance(self.schedule, str) and not self.counts_steps:
            raise ValueError("step() needs the length of the run: KeepProbSchedule(..., total_steps=...)")
        if not self.counted:  # the value of the step that was just made
            self._count(self.now)
        now = self._fill(self.progress + 1)
        self.was_set, self.counted = True, False
        return now

    def _fill(self, progress: float) -> float:
        now = self.at(progress)
        self.check_in_place()
        set_buffers("keep_prob", self.layers, [self.kept_by(layer, now) for layer in self.layers])
        self.progress, self.now = progress, now
        return now

    def check_in_place(self) -> None:
        """Refuse layers that another installation has put out of the network: they take values, and nothing drops."""
        if replaced := sum(layer.replaced for layer in self.layers):
            raise ValueError(
                f"{replaced} of {len(self.layers)} layers of this schedule are no longer in the network, others were "
                "installed in their place: make a new KeepProbSchedule"
            )

    def _count(self, keep_prob: float) -> None:
        self.counted = True
        if self.in_force is not None:
            self.in_force[keep_prob] += 1

    def at(self, progress: float) -> float:
        """keep_prob of the last group at this progress: a share of training, or a step where there are total_steps."""
        if not is_number(progress := as_number(progress)):  # type: ignore[assignment]
            raise TypeError(f"progress must be a number, not {progress!r}")
        if isinstance(self.schedule, str):
            if progress > 1 and not self.counts_steps:
                raise ValueError(f"progress must lie in [0, 1], not {progress}: to set steps, give total_steps=")
            if self.length > 1 and not 0 <= progress <= self.length:
                raise ValueError(f"the step must lie in [0, {self.length}], not {progress}")
            return keep_prob_at(self.keep_prob, progress / self.length, self.schedule, self.start, self.end)
        kept = float(self.schedule(progress))
        if not 0.0 <= kept <= 1.0:
            raise ValueError(f"the schedule must return a keep_prob in [0, 1], not {kept} at {progress}")
        return kept

    def kept_by(self, layer: DropLayer, keep_prob: float) -> float:
        """keep_prob of a layer when the last group keeps `keep_prob`."""
        # Where the layer sits decides its share of the drop rate: by depth, by a list of shares, or by the divisor.
        if layer.group == OWN:
            return keep_prob
        if isinstance(layer.group, str):
            share = self.head_share
        elif self._depths is not None:
            share = self._depths[layer]
        elif self.group_shares is not None:
            share = self.group_shares[layer.group - 1]
        else:
            return keep_prob_in_group(keep_prob, layer.group, self.last_group, self.group_divisor)
        return 1.0 - (1.0 - keep_prob) * share

    def _check_shares(self) -> None:
        if not self.group_divisor >= 1.0:
            raise ValueError(f"group_divisor must be at least 1, not {self.group_divisor}")
        for name, shares in (("group_shares", self.group_shares or ()), ("head_share", [self.head_share])):
            for share in shares:
                if not 0.0 <= share <= 1.0:
                    raise ValueError(f"{name} must lie in [0, 1], not {share}")
        groups = [layer.group for layer in self.layers if isinstance(layer.group, int)]
        if self.group_shares is not None and groups and not 1 <= min(groups) <= max(groups) <= len(self.group_shares):
            raise ValueError(f"group_shares={list(self.group_shares)}: there are layers in more groups than that")
        if self.group_shares is None and self.group_divisor != 1 and groups and max(groups) > self.last_group:
            last = max(groups)
            raise ValueError(
                f"group {last} comes after last_group={self.last_group}, so group_divisor would raise its drop rate: "
                f"give last_group={last}"
            )

    def _depths_of_layers(self, model: nn.Module, depth_rule: str) -> dict[DropLayer, float] | None:
        """l / L of every layer, or None where groups decide."""
        if depth_rule not in DEPTH_RULES:
            raise ValueError(f"unknown depth_rule '{depth_rule}', choose one of {', '.join(DEPTH_RULES)}")
        if depth_rule == "group":
            return None
        sites, found = declared_sites(model), depths(model)
        of_layers = {layer: found[path] for path in found if (layer := sites[path].layer) is not None}
        for layer in self.layers:
            if isinstance(layer.group, int) and layer not in of_layers:
                raise ValueError("depth_rule=linear is for layers at the sites of a network")
        return of_layers
