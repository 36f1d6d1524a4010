"""Sites: the named places in a network where a layer may sit, and putting layers there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dropblock.layers import DropLayer
from dropblock.schedule import keep_prob_in_group


class Site(nn.Module):
    """A place that a network declares; the identity until a layer is installed.

    Args:
        group: the stage of the network, 1 ... 4 in a ResNet (the paper's word).
        branch: `conv` (the residual branch) or `skip` (the shortcut).
        after: what comes before the site, for the reader of the sites table.
        ends_branch: the site sees the output of its branch, just before the branches are joined.
    """

    def __init__(self, group: int, branch: str, after: str, ends_branch: bool = False) -> None:
        super().__init__()
        if branch not in ("conv", "skip"):
            raise ValueError(f"branch must be 'conv' or 'skip', not '{branch}'")
        self.group, self.branch, self.after, self.ends_branch = group, branch, after, ends_branch
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


def site_table(
    model: nn.Module, example: Tensor, keep_prob: float, group_divisor: float = 1.0, last_group: int = 4
) -> list[SiteRow]:
    """What is installed where, with map sizes found by one forward pass in evaluation mode.

    Args:
        model: a network with installed layers; left as it was.
        example: (1, channels, height, width), the input the network will see.
        keep_prob, group_divisor, last_group: as for `KeepProbSchedule`.
    """
    filled = {name: site for name, site in declared_sites(model).items() if site.layer is not None}
    shapes: dict[str, tuple[int, int, int]] = {}

    def remember(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            shapes[name] = tuple(inputs[0].shape[1:])

        return hook

    handles = [site.register_forward_pre_hook(remember(name)) for name, site in filled.items()]
    was_training = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(example)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in was_training.items():
            module.training = training
    rows = []
    for name, site in filled.items():
        assert site.layer is not None
        _, height, width = shapes[name]
        kept = keep_prob_in_group(keep_prob, site.group, last_group, group_divisor)
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
