"""The installed layers of a network as a loop sees them: keep_prob, mask seeds, and what was really dropped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import nn

from dropblock.layers import DropLayer, installed_layers
from dropblock.schedule import KeepProbSchedule
from dropblock.sites import declared_sites, site_table


class LayerControl:
    """One handle for all layers of a network; of a network without layers it does nothing.

    Args:
        model: the network, layers installed.
        example: (1, channels, height, width), an input like those of training, on the device of the model.
        schedule: sets keep_prob; None where there is nothing to schedule.
    """

    def __init__(self, model: nn.Module, example: torch.Tensor, schedule: KeepProbSchedule | None) -> None:
        self.layers: list[DropLayer] = installed_layers(model)
        self.schedule = schedule
        self.table = site_table(model, example, schedule) if schedule is not None else []
        sites = declared_sites(model)
        self._at_rows = [(row, layer) for row in self.table if (layer := sites[row.site].layer) is not None]

    def set_progress(self, progress: float) -> float:
        """Fill every layer's keep_prob for this share of training; returns the last group's (1 without layers)."""
        return 1.0 if self.schedule is None else self.schedule.set(progress)

    def set_seeds(self, seed_of: Callable[[int], int]) -> None:
        """Fix the next masks: layer i draws from `seed_of(i)`."""
        for i, layer in enumerate(self.layers):
            layer.set_mask_seed(seed_of(i))

    def take_counts(self) -> dict[str, tuple[int, int]]:
        """Units (kept, seen) per group since the last call, in one transfer from the device."""
        if not self.layers:
            return {}
        counters = [counter for layer in self.layers for counter in (layer.kept_units, layer.seen_units)]
        numbers = torch.stack(counters).tolist()
        sums: dict[str, tuple[int, int]] = {}
        for layer, kept, seen in zip(self.layers, numbers[0::2], numbers[1::2], strict=True):
            before = sums.get(f"group{layer.group}", (0, 0))
            sums[f"group{layer.group}"] = (before[0] + kept, before[1] + seen)
        torch._foreach_zero_(counters)
        return sums

    def expected_drop(self, keep_prob: float) -> dict[str, float]:
        """The closed form per group when the last group has this keep_prob: what `take_counts` should show."""
        dropped: dict[str, float] = defaultdict(float)
        units: dict[str, int] = defaultdict(int)
        for row, layer in self._at_rows:
            assert self.schedule is not None
            channels, height, width = row.map_size
            here = layer.expected_drop(self.schedule.in_group(keep_prob, row.group), height, width)
            dropped[f"group{row.group}"] += here * channels * height * width
            units[f"group{row.group}"] += channels * height * width
        return {group: dropped[group] / units[group] for group in sorted(units)}
