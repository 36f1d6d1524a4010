"""The layers by name, and which sites each belongs at: how a configuration asks for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from dropblock.layers import DropBlock2d, DropLayer
from dropblock.sites import Site, declared_sites, install


@dataclass(frozen=True)
class Kind:
    """A layer that a configuration can name.

    Args:
        make: (keep_prob, block_size) -> layer; block_size is None for a layer without blocks.
        sits_at: whether the layer belongs at a site, whatever groups and branches were chosen.
    """

    make: Callable[[float, int | None], DropLayer]
    sits_at: Callable[[Site], bool]


def _dropblock(keep_prob: float, block_size: int | None) -> DropLayer:
    if block_size is None:
        raise ValueError("dropblock needs a block_size")
    return DropBlock2d(block_size, keep_prob)


LAYERS: dict[str, Kind] = {
    "dropblock": Kind(_dropblock, lambda site: not site.path_only),
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
    existing = {site.group for site in declared_sites(model).values()}
    for group in groups:
        if group not in existing:
            raise ValueError(f"groups={list(groups)}: this network has the groups {sorted(existing)}")

    def chosen(site: Site) -> bool:
        return site.group in groups and (skip or site.branch == "conv") and kind.sits_at(site)

    return install(model, lambda site: kind.make(keep_prob, block_size), chosen)
