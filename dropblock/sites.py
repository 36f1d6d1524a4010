"""Sites: the named places in a network where a layer may sit, and putting layers there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dropblock.layers import DropLayer
from dropblock.schedule import KeepProbSchedule

OUT_OF_REACH = "out of reach"  # stands for the layer in the row of a place that no layer can get at


class Site(nn.Module):
    """A place that a network declares; the identity until a layer is installed.

    Args:
        group: the stage of the network, 1 ... 4 in a ResNet (the paper's word).
        branch: `conv` (the residual branch) or `skip` (the shortcut).
        after: what comes before the site, for the reader of the sites table.
        ends_branch: the site sees the output of its branch, just before the branches are joined.
        path_only: a place where whole branches may be dropped, and nothing smaller (the operations of AmoebaNet).
        reachable: False for a place of a foreign network that no layer can get at; it is only listed.
    """

    def __init__(
        self,
        group: int,
        branch: str,
        after: str,
        ends_branch: bool = False,
        path_only: bool = False,
        reachable: bool = True,
    ) -> None:
        super().__init__()
        if branch not in ("conv", "skip"):
            raise ValueError(f"branch must be 'conv' or 'skip', not '{branch}'")
        self.group, self.branch, self.after = group, branch, after
        self.ends_branch, self.path_only, self.reachable = ends_branch, path_only, reachable
        self.missed = False  # a layer was wanted here, and the place is out of reach
        self.layer: DropLayer | None = None

    def forward(self, x: Tensor) -> Tensor:
        return x if self.layer is None else self.layer(x)

    def extra_repr(self) -> str:
        return f"group={self.group}, branch={self.branch}, after={self.after}"


@dataclass(frozen=True)
class SiteRow:
    """One line of the sites table: what sits where, and what it is expected to do at the target keep_prob."""

    site: str
    group: int
    branch: str
    after: str
    layer: str
    map_size: tuple[int, int, int]  # channels, height, width
    block: tuple[int, ...]
    keep_prob: float
    seed_rate: float
    expected_drop: float


def declared_sites(model: nn.Module) -> dict[str, Site]:
    """Every site of the network by its module path, in the order of the network."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Site)}


def install(
    model: nn.Module, layer_factory: Callable[[Site], DropLayer], sites: Callable[[Site], bool]
) -> dict[str, Site]:
    """Put a new layer into every declared site that `sites` accepts.

    Args:
        model: a network that declares sites.
        layer_factory: makes the layer of a site.
        sites: says which sites get one.

    Returns:
        the filled sites by module path.

    Raises:
        ValueError: if no site is accepted: a regularizer that sits nowhere would train the baseline under its name.
    """
    declared = declared_sites(model)
    wanted = {name: site for name, site in declared.items() if sites(site)}
    for site in wanted.values():
        site.missed = not site.reachable
    chosen = {name: site for name, site in wanted.items() if site.reachable}
    if not chosen:
        groups = sorted({site.group for site in declared.values()})
        raise ValueError(
            f"no site to install into: {type(model).__name__} declares {len(declared)} sites in groups {groups}"
            + (f", and the {len(wanted)} asked for are out of reach" if wanted else "")
        )
    for site in chosen.values():
        site.layer = layer_factory(site).train(site.training)
        site.layer.group = site.group
    return chosen


def site_table(model: nn.Module, example: Tensor, *schedules: KeepProbSchedule) -> list[SiteRow]:
    """What is installed where, with map sizes found by one forward pass in evaluation mode.

    A place of a foreign network where a layer was wanted but cannot be has a row too, with sizes of 0 and the layer
    "out of reach".

    Args:
        model: a network with installed layers; left as it was.
        example: (1, channels, height, width), the input the network will see.
        schedules: say what each group keeps at the end of training, each for its own layers.

    Raises:
        ValueError: if a layer has no schedule.
    """
    scheduled = {layer: schedule for schedule in schedules for layer in schedule.layers}
    rows, declared = [], declared_sites(model)
    sizes = map_sizes(model, example, {name: site for name, site in declared.items() if site.layer is not None})
    for name, site in declared.items():
        if site.layer is not None:
            if site.layer not in scheduled:
                raise ValueError(f"the layer at {name} has no keep_prob schedule")
            schedule = scheduled[site.layer]
            kept = schedule.in_group(schedule.keep_prob, site.group)
            channels, height, width = sizes[name]
            row = SiteRow(
                site=name,
                group=site.group,
                branch=site.branch,
                after=site.after,
                layer=type(site.layer).__name__,
                map_size=(channels, height, width),
                block=site.layer.block(height, width),
                keep_prob=kept,
                seed_rate=site.layer.seed_rate(kept, height, width),
                expected_drop=site.layer.expected_drop(kept, height, width),
            )
            rows.append(row)
        elif site.missed:
            nothing = {"map_size": (0, 0, 0), "block": (0, 0), "keep_prob": 1.0, "seed_rate": 0.0, "expected_drop": 0.0}
            rows.append(SiteRow(name, site.group, site.branch, site.after, OUT_OF_REACH, **nothing))  # type: ignore[arg-type]
    return rows


def map_sizes(model: nn.Module, example: Tensor, sites: dict[str, Site]) -> dict[str, tuple[int, int, int]]:
    """(channels, height, width) at each site, from one forward pass in evaluation mode.

    Raises:
        ValueError: if a site is not reached exactly once, or sees something else than (N, C, H, W) maps.
    """
    shapes: dict[str, list[tuple[int, ...]]] = {name: [] for name in sites}

    def remember(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: shapes[name].append(tuple(inputs[0].shape))

    handles = [site.register_forward_pre_hook(remember(name)) for name, site in sites.items()]
    was_training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
        for part, training in was_training.items():
            part.training = training
    for name, seen in shapes.items():
        if len(seen) != 1:
            raise ValueError(f"the site {name} is called {len(seen)} times in one pass: choose a neighbour instead")
        if len(seen[0]) != 4:
            raise ValueError(f"the site {name} sees a tensor of shape {seen[0]}, not (N, C, H, W) maps")
    return {name: (seen[0][1], seen[0][2], seen[0][3]) for name, seen in shapes.items()}


def table_text(rows: list[SiteRow]) -> str:
    """The sites table for people: sites that are alike share a line, with their number."""
    alike: dict[tuple[object, ...], list[SiteRow]] = {}
    for row in rows:
        key = (row.group, row.branch, row.after, row.layer, row.map_size, row.block, row.expected_drop)
        alike.setdefault(key, []).append(row)
    lines = [("group", "branch", "after", "sites", "layer", "map", "block", "keep_prob", "gamma", "expected drop")]
    for same in alike.values():
        row = same[0]
        (channels, height, width), (b_h, b_w) = row.map_size, row.block
        whole = " = whole map" if (b_h, b_w) == (height, width) else ""
        place = (str(row.group), row.branch, row.after, str(len(same)), row.layer)
        if row.layer == OUT_OF_REACH:
            lines.append((*place, "-", "-", "-", "-", "0.00%"))
            continue
        lines.append(
            (
                *place,
                *(f"{channels}x{height}x{width}", f"{b_h}x{b_w}{whole}", f"{row.keep_prob:g}"),
                *(f"{row.seed_rate:.3g}", f"{100 * row.expected_drop:.2f}%"),
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([padded[0], "  ".join("-" * w for w in widths), *padded[1:]])
