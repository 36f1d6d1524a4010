"""The layers by name, and the sites that each belongs at: how a configuration asks for one.

A new layer is a class and an entry in LAYERS. What its `make` takes beside the site and keep_prob are its options, by
keyword; nothing else has to know their names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

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
from dropblock.shakedrop import ShakeDrop, check_ends
from dropblock.sites import Site, declared_sites, groups_text, install


@dataclass(frozen=True)
class Kind:
    """A layer that a configuration can name.

    Args:
        make: (site, keep_prob, **options) -> layer.
        sits_at: site -> True if the layer belongs there, whatever groups and branches were chosen.
        before: called with the model before installation, for a layer that needs sites of its own.
        after: called with the model after installation, for layers that depend on one another's place.
        own_depth: the layer divides its rate by depth itself, so depth_rule=linear would do it twice.
        in_evaluation: the layer acts in evaluation as well, by its keep_prob, which therefore is constant over a run.
    """

    make: Callable[..., DropLayer]
    sits_at: Callable[[Site], bool]
    before: Callable[[nn.Module], None] = lambda model: None
    after: Callable[[nn.Module], None] = lambda model: None
    own_depth: bool = False
    in_evaluation: bool = False

    def options(self) -> dict[str, bool]:
        """The options of this layer: name -> True if it has to be given."""
        taken = list(inspect.signature(self.make).parameters.values())[2:]
        return {parameter.name: parameter.default is parameter.empty for parameter in taken}


def _dropblock(site: Site, keep_prob: float, *, block_size: int) -> DropLayer:
    return DropBlock2d(block_size=block_size, keep_prob=keep_prob)


def _fractal_drop_path(site: Site, keep_prob: float, *, global_share: float = 0.5) -> DropLayer:
    assert isinstance(site, JoinSite)
    return FractalDropPath(site.joins, keep_prob=keep_prob, global_share=global_share)


def _shakedrop(
    site: Site,
    keep_prob: float,
    *,
    alpha: Sequence[float] = (-1.0, 1.0),
    beta: Sequence[float] = (0.0, 1.0),
    together: str = "image",
) -> DropLayer:
    return ShakeDrop(alpha=alpha, beta=beta, together=together, keep_prob=keep_prob)


def on_maps(site: Site) -> bool:
    """A place for layers that drop parts of feature maps."""
    return not site.path_only and not isinstance(site, WeightSite)


def on_branches(site: Site) -> bool:
    """A place for layers that drop a whole residual branch: its end, never the shortcut."""
    return site.ends_branch and site.branch == "conv"


LAYERS: dict[str, Kind] = {
    "dropblock": Kind(_dropblock, on_maps),
    "dropout": Kind(lambda _, keep_prob: Dropout(keep_prob=keep_prob), on_maps),
    "spatial_dropout": Kind(lambda _, keep_prob: SpatialDropout(keep_prob=keep_prob), on_maps),
    "drop_path": Kind(lambda _, keep_prob: DropPath(keep_prob=keep_prob), on_branches),
    "stochastic_depth": Kind(
        lambda _, keep_prob: StochasticDepth(keep_prob=keep_prob), on_branches, after=set_depths, own_depth=True
    ),
    "drop_connect": Kind(
        lambda _, keep_prob: DropConnect(keep_prob=keep_prob),
        lambda site: isinstance(site, WeightSite),
        before=declare_weight_sites,
    ),
    "shakedrop": Kind(_shakedrop, on_branches, after=check_ends, in_evaluation=True),
    "fractal_drop_path": Kind(_fractal_drop_path, lambda site: isinstance(site, JoinSite)),
}


@dataclass(frozen=True)
class LayerSpec:
    """One layer at the sites of a network, as a configuration asks for it (`LayerControl.install`).

    Args:
        name: a key of LAYERS.
        keep_prob: target of the last group, in [0, 1].
        groups: which groups of the network: numbers, and "head" where it has one.
        skip: on the shortcut as well as on the conv branch.
        schedule, schedule_start, schedule_end: see `dropblock.schedule`; shares of the run.
        group_divisor, group_shares, head_share, depth_rule: see `KeepProbSchedule`. The share of a head is its own: it
            does not move the division of the groups.
        options: the layer's own options, `block_size` for instance.
    """

    name: str
    keep_prob: float
    groups: Sequence[int | str] = (3, 4)
    skip: bool = False
    schedule: str | Callable[[float], float] = "linear"
    schedule_start: float | None = None
    schedule_end: float | None = None
    group_divisor: float = 1.0
    group_shares: Sequence[float] | None = None
    head_share: float = 1.0
    depth_rule: str = "group"
    options: dict[str, Any] = field(default_factory=dict)


def kind_of(name: str) -> Kind:
    """The kind of layer of this name.

    Raises:
        ValueError: for a name that is none.
    """
    if name not in LAYERS:
        raise ValueError(f"unknown layer '{name}', choose one of {', '.join(LAYERS)}")
    return LAYERS[name]


def install_layers(
    model: nn.Module,
    name: str,
    *,
    keep_prob: float,
    groups: Sequence[int | str] = (3, 4),
    skip: bool = False,
    **options: Any,
) -> dict[str, Site]:
    """Install a layer by name into the declared sites of some groups.

    Args:
        model: a network that declares sites.
        name: a key of LAYERS.
        keep_prob: share of units that the layer keeps.
        groups: which groups of the network; the paper's best are 3 and 4. Those before its first one (group 1 of a
            network of three stages, whose `first_group` is 2) have no layers.
        skip: on the shortcut as well as on the conv branch.
        options: the layer's own options, `block_size=7` for DropBlock.

    Returns:
        the filled sites by module path.

    Raises:
        ValueError: for an unknown name, an option that the layer does not have or misses, a group that the network
            does not have, or no site to install into.
    """
    # The options of a layer are the keywords of its `make`: a new one is declared nowhere else.
    kind = kind_of(name)
    known = kind.options()
    for option in options.keys() - known.keys():
        raise ValueError(f"{name} has no option '{option}'" + (f", only {', '.join(known)}" if known else ""))
    for option, needed in known.items():
        if needed and option not in options:
            raise ValueError(f"{name} needs a {option}")

    # Groups that the network has. Those before its first one are no mistake where later ones are chosen as well: rows
    # of one table are trained on networks of four stages and of three.
    kind.before(model)
    if isinstance(groups, str) or not isinstance(groups, Iterable):
        raise TypeError(f"groups must be a list such as [3, 4], not {groups!r}")
    existing = {site.group for site in declared_sites(model).values()}
    if not existing:
        raise ValueError(f"{type(model).__name__} declares no sites: call declare_sites(model) first")
    first = getattr(model, "first_group", 0)
    before = {group for group in groups if isinstance(group, int) and 0 < group < first}
    for group in groups:
        if group not in existing and (group not in before or before == {*groups}):
            asked = list(groups) if str(group).isdigit() and isinstance(group, str) else groups_text(groups)
            raise ValueError(f"groups={asked}: this network has the groups {groups_text(existing)}")

    def chosen(site: Site) -> bool:
        return site.group in groups and (skip or site.branch == "conv") and kind.sits_at(site)

    filled = install(model, lambda site: kind.make(site, keep_prob, **options), chosen)
    kind.after(model)
    return filled
