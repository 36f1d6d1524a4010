"""The installed layers of a network as a loop sees them: keep_prob, mask seeds, and what was really dropped."""

from __future__ import annotations

import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor, nn

from dropblock.kinds import LayerSpec, install_layers, kind_of
from dropblock.layers import DropLayer, set_mask_seeds
from dropblock.schedule import KeepProbSchedule
from dropblock.sites import Group
from dropblock.table import DropRow, layer_at, mean_drop, places_of, site_table


def group_name(group: Group) -> str:
    """The name of a group in records: "group3", or "head"."""
    return group if isinstance(group, str) else f"group{group}"


class LayerControl:
    """One handle for all layers of a network; of a network without layers it does nothing.

    Results are named after groups, "group3" or "head"; with several kinds of layers the kind comes first,
    "drop_path/group3".

    Args:
        model: the network, layers installed.
        example: (1, channels, height, width), an input like those of training, on the device of the model; a tuple for
            a network of several inputs.
        schedules: any name for a kind of layer -> the schedule that sets the keep_prob of its layers. Each installed
            layer belongs to one of them.

    Raises:
        ValueError: if a layer has no schedule, or one pass in evaluation mode does not call its place once.
        TypeError: if `schedules` is no mapping.
    """

    def __init__(
        self, model: nn.Module, example: Tensor | tuple[Tensor, ...], schedules: Mapping[str, KeepProbSchedule]
    ) -> None:
        if not isinstance(schedules, Mapping):
            given = type(schedules).__name__
            raise TypeError(f"schedules must be a dict such as {{'dropblock': schedule}}, not a {given}")
        for kind, schedule in schedules.items():
            if not isinstance(schedule, KeepProbSchedule):
                raise TypeError(f"schedules must be of KeepProbSchedule, not a {type(schedule).__name__} for '{kind}'")
        self.schedules = dict(schedules)
        self.table = site_table(model, example, *schedules.values())
        self.layers: list[DropLayer] = [layer for schedule in schedules.values() for layer in schedule.layers]
        several = len(self.schedules) > 1
        self._names = {
            layer: f"{kind}/{group_name(layer.group)}" if several else group_name(layer.group)
            for kind, schedule in self.schedules.items()
            for layer in schedule.layers
        }
        places = places_of(model)
        self._at_rows = [(row, layer) for row in self.table if (layer := layer_at(places[row.site])) is not None]
        self._start_counting()

    @classmethod
    def install(cls, model: nn.Module, specs: Sequence[LayerSpec], example: Tensor) -> LayerControl:
        """Put the layers of some specifications into a network, each with its schedule.

        Args:
            model: a network that declares sites and knows its `last_group`, on the device of `example`.
            specs: none for a network without layers. Two of one name are numbered: "dropblock2".
            example: see `LayerControl`.

        Raises:
            ValueError: if two layers want one site, a specification does not suit the network, or the network has
                layers of its own, which no specification decides.
        """
        for path, place in places_of(model).items():
            if isinstance(place, DropLayer):
                raise ValueError(
                    f"{type(model).__name__} has a {type(place).__name__} of its own at {path}: let it declare a site "
                    "there, so that the configuration decides what sits in it"
                )

        # Install one specification after the other; each site takes one layer.
        schedules: dict[str, KeepProbSchedule] = {}
        taken: dict[str, str] = {}
        for number, spec in enumerate(specs, start=1):
            if spec.depth_rule != "group" and kind_of(spec.name).own_depth:
                raise ValueError(f"depth_rule={spec.depth_rule}: {spec.name} has a depth rule of its own")
            if spec.schedule != "constant" and kind_of(spec.name).in_evaluation:
                raise ValueError(
                    f"schedule={spec.schedule}: {spec.name} scales by keep_prob in evaluation: constant only"
                )
            sites = install_layers(
                model, spec.name, keep_prob=spec.keep_prob, groups=spec.groups, skip=spec.skip, **spec.options
            )
            for path in sites.keys() & taken.keys():
                raise ValueError(f"{taken[path]} and {spec.name} both want the site {path}: choose one of them")

            # Each specification has a schedule of its own. Its other fields are arguments of it, under the same names.
            taken |= dict.fromkeys(sites, spec.name)
            name = spec.name if spec.name not in schedules else f"{spec.name}{number}"
            layers = [site.layer.to(example.device) for site in sites.values() if site.layer is not None]
            of_layer = ("name", "groups", "skip", "options")
            shares = {key: value for key, value in vars(spec).items() if key not in of_layer}
            last_group = int(model.last_group)  # type: ignore[arg-type]
            schedules[name] = KeepProbSchedule(model, layers=layers, last_group=last_group, **shares)
        return cls(model, example, schedules)

    def set_progress(self, progress: float) -> None:
        """Fill every layer's keep_prob for this share of training."""
        for schedule in self.schedules.values():
            schedule.set(progress)

    def set_seeds(self, seed_of: Callable[[int], int]) -> None:
        """Fix the next masks: layer i draws from `seed_of(i)`."""
        set_mask_seeds(self.layers, [seed_of(i) for i in range(len(self.layers))])

    def set_image_seeds(self, seed_of: Callable[[int], int], images: Tensor) -> None:
        """Fix the next masks image by image: layer i draws that of image k from `seed_of(i)` and k.

        So the mask of an image, and its normaliser, do not depend on the batch. DropConnect and FractalNet's drop-path,
        which see no images, draw once for all of them.

        Args:
            seed_of: number of a layer -> int64.
            images: (N,) the numbers of the images of the next batch.
        """
        for i, layer in enumerate(self.layers):
            layer.set_image_seeds(seed_of(i), images)

    def keep_probs(self, progress: Sequence[float]) -> dict[str, float]:
        """Mean keep_prob of the last group: "keep_prob/target", or one "keep_prob/KIND" for each of several kinds.

        Args:
            progress: t / T of every step to average over, at least one.
        """
        several = len(self.schedules) > 1
        return {
            f"keep_prob/{kind if several else 'target'}": fmean(schedule.at(step) for step in progress)
            for kind, schedule in self.schedules.items()
        }

    def take_counts(self) -> dict[str, tuple[int, int]]:
        """Units (kept, seen) per group since the last call, or since construction; one transfer from the device."""
        if not self.layers:
            return {}
        numbers = torch.stack(self._counters()).tolist()
        sums: dict[str, tuple[int, int]] = {}
        for layer, kept, seen in zip(self.layers, numbers[0::2], numbers[1::2], strict=True):
            before = sums.get(self._names[layer], (0, 0))
            sums[self._names[layer]] = (before[0] + kept, before[1] + seen)
        self._start_counting()
        return sums

    def _counters(self) -> list[Tensor]:
        return [counter for layer in self.layers for counter in (layer.kept_units, layer.seen_units)]

    def _start_counting(self) -> None:
        for schedule in self.schedules.values():
            schedule.in_force, schedule.counted = Counter(), False
        if self.layers:
            torch._foreach_zero_(self._counters())

    def expected_drop(self, progress: Sequence[float]) -> dict[str, float]:
        """The closed form per group, what `take_counts` should show: the mean over some steps, exact for any schedule.

        It holds for feature maps of the size that the example has.

        Args:
            progress: t / T of every step to average over, at least one.
        """
        return self._mean_over(self._at(progress), mean_drop)

    def draws_once_a_batch(self) -> bool:
        """True with a layer that drops or keeps the same of all images of a batch: its share scatters the most."""
        return any(layer.batchwise or layer.together == "batch" for layer in self.layers)

    def drops(self, progress: Sequence[float] | None = None) -> list[DropRow]:
        """Asked, expected and measured drop of every group since the last call of this or of `take_counts`.

        Args:
            progress: what the schedule was set to at every step since then, at least one; None takes what its `set`
                and `step` have counted, or if they were not called what is set now.

        Warns:
            UserWarning: if layers ran whose schedule, one that changes, was never set.

        Raises:
            ValueError: for no step, or layers that are no longer in the network.
            TypeError: if `progress` is no list.
        """
        for schedule in self.schedules.values():
            schedule.check_in_place()

        # Asked: the mean of 1 - keep_prob. Expected: of the closed form. Measured: from the counters of the layers.
        if progress is None:
            values = {s: s.in_force or Counter([s.now]) for s in self.schedules.values()}
        else:
            values = self._at(progress)
        asked = self._mean_over(values, lambda layer, keep_prob, sizes: 1.0 - keep_prob)
        expected, counts = self._mean_over(values, mean_drop), self.take_counts()
        idle = [s for s in self.schedules.values() if s.schedule != "constant" and not s.was_set]
        if idle and progress is None and any(seen for _, seen in counts.values()):
            warnings.warn(
                f"keep_prob is still {idle[0].now:g}, that of the first step: call schedule.set(t / T) before each "
                "step, or schedule.step() after it",
                stacklevel=2,
            )
        rows = []
        for name in expected:
            kept, seen = counts[name]
            rows.append(DropRow(name, asked[name], expected[name], 1.0 - kept / seen if seen else None, seen))
        return rows

    def _at(self, progress: Sequence[float]) -> dict[KeepProbSchedule, Counter[float]]:
        """The values of every schedule at these steps, each with its number of steps."""
        if not isinstance(progress, Sequence) or isinstance(progress, str):
            raise TypeError(f"progress must be a list of what the schedule was set to at each step, not {progress!r}")
        if len(progress) == 0:
            raise ValueError("progress must hold what the schedule was set to at each step; it holds none")
        return {s: Counter(s.at(step) for step in progress) for s in self.schedules.values()}

    def _mean_over(
        self,
        values: Mapping[KeepProbSchedule, Counter[float]],
        share: Callable[[DropLayer, float, list[tuple[int, ...]]], float],
    ) -> dict[str, float]:
        """The mean over the steps and units of every group of `share(layer, its keep_prob, its map sizes)`."""
        # A schedule takes few distinct values, so each is evaluated once and weighted by its number of steps.
        total: dict[str, float] = defaultdict(float)
        units: dict[str, int] = defaultdict(int)
        schedules = {layer: schedule for schedule in self.schedules.values() for layer in schedule.layers}
        for row, layer in self._at_rows:
            schedule, name = schedules[layer], self._names[layer]
            shares = (
                steps * share(layer, schedule.kept_by(layer, target), row.map_sizes)
                for target, steps in values[schedule].items()
            )
            number = sum(map(math.prod, row.map_sizes))
            total[name] += sum(shares) / values[schedule].total() * number
            units[name] += number
        return {name: total[name] / units[name] for name in sorted(units)}
