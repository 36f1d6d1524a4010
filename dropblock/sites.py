"""Sites: the named places in a network where a layer may sit, and putting layers there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dropblock.layers import DropLayer
from dropblock.schedule import KeepProbSchedule


class Site(nn.Module):
    """A place that a network declares; the identity until a layer is installed.

    Args:
        group: the stage of the network, 1 ... 4 in a ResNet (the paper's word).
        branch: `conv` (the residual branch) or `skip` (the shortcut).
        after: what comes before the site, for the reader of the sites table.
        ends_branch: the site sees the output of its branch, just before the branches are joined.
        path_only: a place where whole branches may be dropped, and nothing smaller (the operations of AmoebaNet).
    """

    def __init__(self, group: int, branch: str, after: str, ends_branch: bool = False, path_only: bool = False) -> None:
        super().__init__()
        if branch not in ("conv", "skip"):
            raise ValueError(f"branch must be 'conv' or 'skip', not '{branch}'")
        self.group, self.branch, self.after = group, branch, after
        self.ends_branch, self.path_only = ends_branch, path_only
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
    block: tuple[int, int]
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
    chosen = {name: site for name, site in declared.items() if sites(site)}
    if not chosen:
        groups = sorted({site.group for site in declared.values()})
        raise ValueError(
            f"no site to install into: {type(model).__name__} declares {len(declared)} sites in groups {groups}"
        )
    for site in chosen.values():
        site.layer = layer_factory(site)
        site.layer.group = site.group
    return chosen


def site_table(model: nn.Module, example: Tensor, schedule: KeepProbSchedule) -> list[SiteRow]:
    """What is installed where, with map sizes found by one forward pass in evaluation mode.

    Args:
        model: a network with installed layers; left as it was.
        example: (1, channels, height, width), the input the network will see.
        schedule: says what each group keeps at the end of training.
    """
    filled = {name: site for name, site in declared_sites(model).items() if site.layer is not None}
    shapes: dict[str, tuple[int, int, int]] = {}

    def remember(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            _n, channels, height, width = inputs[0].shape
            shapes[name] = (channels, height, width)

        return hook

    handles = [site.register_forward_pre_hook(remember(name)) for name, site in filled.items()]
    was_training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
        for part, training in was_training.items():
            part.training = training
    rows = []
    for name, site in filled.items():
        assert site.layer is not None
        _, height, width = shapes[name]
        kept = schedule.in_group(schedule.keep_prob, site.group)
        rows.append(
            SiteRow(
                site=name,
                group=site.group,
                branch=site.branch,
                after=site.after,
                layer=type(site.layer).__name__,
                map_size=shapes[name],
                block=site.layer.block(height, width),
                keep_prob=kept,
                seed_rate=site.layer.seed_rate(kept, height, width),
                expected_drop=site.layer.expected_drop(kept, height, width),
            )
        )
    return rows


def table_text(rows: list[SiteRow]) -> str:
    """The sites table for people: sites that are alike share a line, with their number."""
    alike: dict[tuple[object, ...], list[SiteRow]] = {}
    for row in rows:
        alike.setdefault((row.group, row.branch, row.after, row.layer, row.map_size, row.block), []).append(row)
    lines = [("group", "branch", "after", "sites", "layer", "map", "block", "keep_prob", "gamma", "expected drop")]
    for same in alike.values():
        row = same[0]
        (channels, height, width), (b_h, b_w) = row.map_size, row.block
        whole = " = whole map" if (b_h, b_w) == (height, width) else ""
        lines.append(
            (
                *(str(row.group), row.branch, row.after, str(len(same)), row.layer),
                *(f"{channels}x{height}x{width}", f"{b_h}x{b_w}{whole}", f"{row.keep_prob:g}"),
                *(f"{row.seed_rate:.3g}", f"{100 * row.expected_drop:.2f}%"),
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([padded[0], "  ".join("-" * w for w in widths), *padded[1:]])
