"""The sites table: the layers of a network, their places, and the share that each drops."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from dropblock.layers import DropLayer
from dropblock.schedule import KeepProbSchedule
from dropblock.sites import Group, Site, declared_sites, map_sizes

OUT_OF_REACH = "out of reach"  # stands for the layer in the row of a place that no layer can get at


@dataclass(frozen=True)
class SiteRow:
    """One line of the sites table: a place, its layer, and the drop expected at the target keep_prob.

    Args:
        site: module path.
        group, branch, after, note: see `Site`; branch is "-" for a layer at none.
        layer: class of the layer.
        map_sizes: (channels, height, width) of every feature map that the site sees in one pass; other numbers of axes
            for 1-D and 3-D layers.
        block: (height, width) of what is dropped together on the largest of them, clamped to it; () for no box. Two
            layers of one kind compute the same if this is equal: a block clamped here is clamped on every smaller map
            as well.
        clamped: the block that was asked for does not fit even the largest map.
        keep_prob: when the whole drop rate is in force.
        seed_rate: the probability of one draw, on the largest map.
        expected_drop: the closed form, over all its units.
    """

    site: str
    group: Group
    branch: str
    after: str
    layer: str
    map_sizes: list[tuple[int, ...]] = field(default_factory=list)
    block: tuple[int, ...] = (0, 0)
    clamped: bool = False
    keep_prob: float = 1.0
    seed_rate: float = 0.0
    expected_drop: float = 0.0
    note: str = ""


def places_of(model: nn.Module) -> dict[str, Site | DropLayer]:
    """Every site of a network, and every layer that stands at none, by module path and in the order of the network."""
    at_sites = {site.layer for site in declared_sites(model).values()}
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, Site) or (isinstance(module, DropLayer) and module not in at_sites)
    }


def layer_at(place: Site | DropLayer) -> DropLayer | None:
    """The layer of a place; None for an empty site."""
    return place if isinstance(place, DropLayer) else place.layer


def site_table(model: nn.Module, example: Tensor | tuple[Tensor, ...], *schedules: KeepProbSchedule) -> list[SiteRow]:
    """List the installed layers and their places, with map sizes found by one forward pass in evaluation mode.

    A layer that a network has as a child of its own has a row of the group "own". A place of a foreign network where a
    layer was wanted but cannot be has a row too, without map sizes and with the layer "out of reach".

    Args:
        model: a network with installed layers; left as it was.
        example: (1, channels, height, width), the input the network will see; a tuple for several inputs.
        schedules: say what each group keeps at the target, each for its own layers.

    Raises:
        ValueError: if a layer has no schedule.
    """
    # One forward pass finds the maps of every place that holds a layer.
    scheduled = {layer: schedule for schedule in schedules for layer in schedule.layers}
    rows, places = [], places_of(model)
    calls = map_sizes(model, example, {path: place for path, place in places.items() if layer_at(place) is not None})
    for path, place in places.items():
        if (layer := layer_at(place)) is not None:
            if layer not in scheduled:
                raise ValueError(
                    f"the layer at {path} has no keep_prob schedule: make the schedule after the last installation"
                )
            schedule = scheduled[layer]
            rows.append(row_of(path, place, layer, schedule.kept_by(layer, schedule.keep_prob), calls[path]))
        elif isinstance(place, Site) and place.missed:
            rows.append(SiteRow(path, place.group, place.branch, place.after, OUT_OF_REACH, note=place.note))
    return rows


def row_of(
    path: str, place: Site | DropLayer, layer: DropLayer, kept: float, calls: list[tuple[tuple[int, ...], int]]
) -> SiteRow:
    """The row of one place whose layer keeps `kept` of its units, from its calls (size of the map, level)."""
    sizes = [size for size, _ in calls]
    _, *sides = largest(sizes)
    if isinstance(place, Site):
        branch, after, note = place.branch, place.after, place.note
    else:  # a layer that the network has as a child of its own
        branch, after, note = "-", path, ""
    if len({*calls}) < len(calls):
        note = (
            f"{path} is called more than once on maps of one size, with one mask: number the calls, "
            f"{path.rpartition('.')[2]}(x, level), or use a layer for each place"
        )
    return SiteRow(
        site=path,
        group=place.group,
        branch=branch,
        after=after,
        layer=type(layer).__name__,
        map_sizes=sizes,
        block=layer.block(*sides),
        clamped=getattr(layer, "block_size", 1) > min(sides),
        keep_prob=kept,
        seed_rate=layer.seed_rate(kept, *sides),
        expected_drop=mean_drop(layer, kept, sizes),
        note=note,
    )


def largest(sizes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The size with most positions."""
    return max(sizes, key=lambda size: math.prod(size[1:]))


def mean_drop(layer: DropLayer, kept: float, sizes: list[tuple[int, ...]]) -> float:
    """The expected share of dropped units over all feature maps of a site."""
    if len(sizes) == 1:  # to the last bit what the layer says
        return layer.expected_drop(kept, *sizes[0][1:])
    dropped = sum(layer.expected_drop(kept, *size[1:]) * math.prod(size) for size in sizes)
    return dropped / sum(map(math.prod, sizes))


def table_text(rows: list[SiteRow], width: int | None = None) -> str:
    """The sites table for people: sites that are alike share a line, with their number; notes stand below it.

    Args:
        rows: what `site_table` gave.
        width: columns of the terminal: a table that is wider leaves out the layer's name, then gamma. None: any width.
    """

    def times(sides: tuple[int, ...]) -> str:
        return "x".join(map(str, sides))

    # The 36 sites of a ResNet-50 are a handful of kinds.
    alike: dict[tuple[object, ...], list[SiteRow]] = {}
    for row in rows:
        key = (row.group, row.branch, row.after, row.layer, *row.map_sizes, row.block, row.expected_drop)
        alike.setdefault(key, []).append(row)
    lines = [["group", "branch", "after", "sites", "layer", "map", "block", "keep_prob", "gamma", "expected drop"]]
    for same in alike.values():
        row = same[0]
        line = [str(row.group), row.branch, row.after, str(len(same)), row.layer]
        if row.layer == OUT_OF_REACH:
            line += ["-", "-", "-", "-", "0.00%"]
        else:
            size = largest(row.map_sizes)
            # A site of a head sees a map for each level: the largest first.
            others = [times(other[1:]) for other in row.map_sizes if other[1:] != size[1:]]
            line += [
                " ".join([times(size), *others]),
                (times(row.block) or "-") + (" = whole map" if row.block == size[1:] else ""),
                f"{row.keep_prob:g}",
                f"{row.seed_rate:.3g}",
                f"{100 * row.expected_drop:.2f}%",
            ]
        lines.append(line)

    # What else a table that is too wide can do without.
    def too_wide() -> bool:
        return width is not None and max(map(len, aligned(lines, str.ljust))) > width

    if too_wide():
        lines[0][-1] = "drop"
    for name in ("layer", "gamma"):
        if too_wide():
            place = lines[0].index(name)
            lines = [line[:place] + line[place + 1 :] for line in lines]

    head, *body = aligned(lines, str.ljust)
    rule = "  ".join("-" * max(len(line[i]) for line in lines) for i in range(len(lines[0])))
    notes = dict.fromkeys(f"note: {row.note}" for row in rows if row.note)
    return "\n".join([head, rule, *body, *notes])


def aligned(lines: list[list[str]], justify: Callable[[str, int], str]) -> list[str]:
    """Cells in columns of one width."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(map(justify, line, widths)).rstrip() for line in lines]


@dataclass(frozen=True)
class DropRow:
    """Asked, expected and measured drop of a group over some steps; shares of its units.

    Args:
        group: "group3" or "head", after the kind of layer where there are several.
        asked: 1 - keep_prob, the mean over the steps.
        expected: the closed form, which knows that blocks overlap.
        measured: what the layers counted; None if none of them saw a feature map.
        units: how many they saw.
    """

    group: str
    asked: float
    expected: float
    measured: float | None
    units: int


def drops_text(rows: list[DropRow]) -> str:
    """Asked, expected and measured drop for people."""
    lines = [["group", "asked", "expected", "measured", "units"]]
    for row in rows:
        measured = "never ran" if row.measured is None else f"{100 * row.measured:.2f}%"
        lines.append([row.group, f"{100 * row.asked:.2f}%", f"{100 * row.expected:.2f}%", measured, f"{row.units:,}"])
    return "\n".join(aligned(lines, str.rjust))
