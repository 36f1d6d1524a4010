"""The installed layers of a network as a loop sees them: keep_prob, mask seeds, and what was really dropped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor, nn

from dropblock.layers import DropLayer
from dropblock.schedule import KeepProbSchedule
from dropblock.sites import declared_sites, site_table


class LayerControl:
    """One handle for all layers of a network; of a network without layers it does nothing.

    Results are named after groups, "group3"; with several kinds of layers the kind comes first, "drop_path/group3".

    Args:
        model: the network, layers installed.
        example: (1, channels, height, width), an input like those of training, on the device of the model.
        schedules: by the name of a kind of layer, what sets its keep_prob. Together they hold every layer.
    """

    def __init__(self, model: nn.Module, example: Tensor, schedules: Mapping[str, KeepProbSchedule]) -> None:
        self.schedules = dict(schedules)
        self.table = site_table(model, example, *schedules.values())
        self.layers: list[DropLayer] = [layer for schedule in schedules.values() for layer in schedule.layers]
        several = len(self.schedules) > 1
        self._names = {
            layer: f"{kind}/group{layer.group}" if several else f"group{layer.group}"
            for kind, schedule in self.schedules.items()
            for layer in schedule.layers
        }
        sites = declared_sites(model)
        self._at_rows = [(row, layer) for row in self.table if (layer := sites[row.site].layer) is not None]

    def set_progress(self, progress: float) -> None:
        """Fill every layer's keep_prob for this share of training."""
        for schedule in self.schedules.values():
            schedule.set(progress)

    def set_seeds(self, seed_of: Callable[[int], int]) -> None:
        """Fix the next masks: layer i draws from `seed_of(i)`."""
        for i, layer in enumerate(self.layers):
            layer.set_mask_seed(seed_of(i))

    def keep_probs(self, progress: Sequence[float]) -> dict[str, float]:
        """keep_prob of the last group, its mean over these shares of training.

        Named "keep_prob/target", or one "keep_prob/KIND" for each of several kinds.
        """
        several = len(self.schedules) > 1
        return {
            f"keep_prob/{kind if several else 'target'}": fmean(map(schedule.at, progress))
            for kind, schedule in self.schedules.items()
        }

    def take_counts(self) -> dict[str, tuple[int, int]]:
        """Units (kept, seen) per group since the last call, in one transfer from the device."""
        if not self.layers:
            return {}
        counters = [counter for layer in self.layers for counter in (layer.kept_units, layer.seen_units)]
        numbers = torch.stack(counters).tolist()
        sums: dict[str, tuple[int, int]] = {}
        for layer, kept, seen in zip(self.layers, numbers[0::2], numbers[1::2], strict=True):
            before = sums.get(self._names[layer], (0, 0))
            sums[self._names[layer]] = (before[0] + kept, before[1] + seen)
        torch._foreach_zero_(counters)
        return sums

    def expected_drop(self, progress: Sequence[float]) -> dict[str, float]:
        """The closed form per group, its mean over these shares of training: what `take_counts` should show."""
        if not self._at_rows:
            return {}
        at_each = [self._expected_at(share) for share in progress]
        return {name: fmean(dropped[name] for dropped in at_each) for name in sorted(at_each[0])}

    def _expected_at(self, progress: float) -> dict[str, float]:
        dropped: dict[str, float] = defaultdict(float)
        units: dict[str, int] = defaultdict(int)
        schedules = {layer: schedule for schedule in self.schedules.values() for layer in schedule.layers}
        for row, layer in self._at_rows:
            channels, height, width = row.map_size
            schedule, name = schedules[layer], self._names[layer]
            kept = schedule.in_group(schedule.at(progress), row.group)
            dropped[name] += layer.expected_drop(kept, height, width) * channels * height * width
            units[name] += channels * height * width
        return {name: dropped[name] / units[name] for name in units}
