"""The layers by name, and which sites each belongs at: how a configuration asks for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from dropblock.baselines import (
    DropConnect,
    Dropout,
    DropPath,
    SpatialDropout,
    StochasticDepth,
    WeightSite,
    declare_weight_sites,
    set_depths,
)
from dropblock.fractal import FractalDropPath, JoinSite
from dropblock.layers import DropBlock2d, DropLayer
from dropblock.sites import Site, declared_sites, install


@dataclass(frozen=True)
class Kind:
    """A layer that a configuration can name.

    Args:
        make: (site, keep_prob, block_size) -> layer; block_size is None for a layer without blocks.
        sits_at: whether the layer belongs at a site, whatever groups and branches were chosen.
        before: called with the model before installation, for a layer that needs sites of its own.
        after: called with the model after installation, for layers that depend on one another's place.
    """

    make: Callable[[Site, float, int | None], DropLayer]
    sits_at: Callable[[Site], bool]
    before: Callable[[nn.Module], None] = lambda model: None
    after: Callable[[nn.Module], None] = lambda model: None


def _dropblock(site: Site, keep_prob: float, block_size: int | None) -> DropLayer:
    if block_size is None:
        raise ValueError("dropblock needs a block_size")
    return DropBlock2d(block_size=block_size, keep_prob=keep_prob)


def _fractal_drop_path(site: Site, keep_prob: float, block_size: int | None) -> DropLayer:
    assert isinstance(site, JoinSite)
    return FractalDropPath(site.joins, keep_prob)


def on_maps(site: Site) -> bool:
    """A place for layers that drop parts of feature maps."""
    return not site.path_only and not isinstance(site, WeightSite)


def on_branches(site: Site) -> bool:
    """A place for layers that drop a whole residual branch: its end, never the shortcut."""
    return site.ends_branch and site.branch == "conv"


LAYERS: dict[str, Kind] = {
    "dropblock": Kind(_dropblock, on_maps),
    "dropout": Kind(lambda _, keep_prob, __: Dropout(keep_prob), on_maps),
    "spatial_dropout": Kind(lambda _, keep_prob, __: SpatialDropout(keep_prob), on_maps),
    "drop_path": Kind(lambda _, keep_prob, __: DropPath(keep_prob), on_branches),
    "stochastic_depth": Kind(lambda _, keep_prob, __: StochasticDepth(keep_prob), on_branches, after=set_depths),
    "drop_connect": Kind(
        lambda _, keep_prob, __: DropConnect(keep_prob),
        lambda site: isinstance(site, WeightSite),
        before=declare_weight_sites,
    ),
    "fractal_drop_path": Kind(_fractal_drop_path, lambda site: isinstance(site, JoinSite)),
}


def install_layers(
    model: nn.Module,
    name: str,
    *,
    keep_prob: float,
    block_size: int | None = None,
    groups: Sequence[int] = (3, 4),
    skip: bool = False,
) -> dict[str, Site]:
    """Install a layer by name into the declared sites of some groups.

    Args:
        model: a network that declares sites.
        name: a key of LAYERS.
        keep_prob, block_size: of the layer.
        groups: which groups of the network; the paper's best are 3 and 4.
        skip: on the shortcut as well as on the conv branch.

    Returns:
        the filled sites by module path.

    Raises:
        ValueError: for an unknown name, a group that the network does not have, or no site to install into.
    """
    if name not in LAYERS:
        raise ValueError(f"unknown layer '{name}', choose one of {', '.join(LAYERS)}")
    kind = LAYERS[name]
    kind.before(model)
    existing = {site.group for site in declared_sites(model).values()}
    for group in groups:
        if group not in existing:
            raise ValueError(f"groups={list(groups)}: this network has the groups {sorted(existing)}")

    def chosen(site: Site) -> bool:
        return site.group in groups and (skip or site.branch == "conv") and kind.sits_at(site)

    filled = install(model, lambda site: kind.make(site, keep_prob, block_size), chosen)
    kind.after(model)
    return filled
