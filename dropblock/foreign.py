"""Sites in networks that declare none: any CNN, from the outside, by the names of its modules.

Nothing is rewritten and no key of the `state_dict` changes. A `Site` becomes a child of a module that a pattern names,
and a hook calls it on the input or the output of that module; or it fills a slot where the network keeps None for "no
projection on the shortcut", which is how the identity shortcut of a torchvision or timm ResNet is reached. From then on
the network is like one that declares its sites: `install`, `site_table` and `KeepProbSchedule` work on it.

Hook the neighbours of an activation, not the activation: torchvision's bottleneck calls one ReLU three times.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from dropblock.layers import DropLayer, check_model
from dropblock.places import Place, known_places
from dropblock.sites import Site, declared_sites, install


def declare_sites(model: nn.Module, places: Sequence[Place] | None = None) -> dict[str, Site]:
    """Give a network sites; the identity until something is installed.

    Args:
        model: changed in place; keys and outputs stay the same.
        places: None takes `known_places`, or the sites that the network declares itself. If two places name the
            same side of a module the first one counts, and a site that is there already stays.

    Returns:
        the sites by module path.

    Raises:
        ValueError: for a pattern that names nothing, or None for a network that is not known and declares none.
        TypeError: if `model` is no network, or `places` no list of them.
    """
    check_model(model)
    if places is None:
        try:
            known = known_places(model)
        except ValueError:
            if own := declared_sites(model):
                return own
            raise
    elif isinstance(places, Place) or not all(isinstance(place, Place) for place in places):
        raise TypeError(f"places must be a list of Place(...), not {places!r}")

    # Every module that a place names gets a site; a pattern of the user's that names none is a mistake.
    found: set[int] = set()
    for place in known if places is None else places:
        owners = list(matching(model, place))
        if not owners and places is not None:  # the nearest patterns that name something
            paths = [path.split(".") for path, _ in model.named_modules()]
            general = {".".join("*" if part.isdigit() else part for part in path) for path in paths}
            near = difflib.get_close_matches(place.modules, sorted(general - {""}), n=3, cutoff=0.4)
            hint = f"; near it: {', '.join(near)}" if near else ""
            kind = "slot that holds None" if place.where == "in" else "module"
            raise ValueError(f"no {kind} of {type(model).__name__} matches '{place.modules}'{hint}")
        found.update(id(declare(*owner)) for owner in owners)
    return {name: m for name, m in model.named_modules() if isinstance(m, Site) and id(m) in found}


def install_into(
    model: nn.Module,
    layer_factory: Callable[[Site], DropLayer],
    places: Sequence[Place] | None = None,
    sites: Callable[[Site], bool] = lambda site: True,
) -> dict[str, Site]:
    """`declare_sites`, then `install` into those that `sites` accepts; returns the filled ones by module path."""
    declare_sites(model, places)
    return install(model, layer_factory, sites)


def matching(model: nn.Module, place: Place) -> Iterator[tuple[Place, str, nn.Module, str]]:
    """(place as it is there, path, module that owns the site, name of the slot) for every match of a place."""
    for path, module in list(model.named_modules()):
        if place.where == "in":
            for slot, value in [*vars(module).items(), *module._modules.items()]:
                inner = f"{path}.{slot}".lstrip(".")
                # A slot that an earlier call filled is still that slot.
                if (value is None or isinstance(value, Site)) and place.names(inner):
                    yield place, inner, module, slot
        elif place.names(path) and not isinstance(module, Site):
            there = place
            if not has_shortcut(model, path):
                if place.where == "out of reach":
                    continue
                there = replace(place, ends_branch=False)  # dropped whole, it would take the only path there is
            yield there, path, outermost(module, place.where), f"site_{place.where.replace(' ', '_')}"


def has_shortcut(model: nn.Module, path: str) -> bool:
    """False in a unit that does not add its input; inverted residual units of torchvision and timm say so."""
    while True:
        unit = model.get_submodule(path)
        for name in ("use_res_connect", "has_skip"):
            if hasattr(unit, name):
                return bool(getattr(unit, name))
        if not path:
            return True
        path = path.rpartition(".")[0]


def outermost(module: nn.Module, where: str) -> nn.Module:
    """The module to hook for the input or output of `module`: the first or last step of nested Sequentials.

    A child of an nn.Sequential would become one more step of it, so there it is the first or last step that counts.
    """
    while isinstance(module, nn.Sequential) and len(module) > 0 and where in ("before", "after"):
        module = module[0 if where == "before" else -1]
    return module


def declare(place: Place, path: str, owner: nn.Module, slot: str) -> Site:
    """Add one site to its owner, with the hook that calls it."""
    there: Any = getattr(owner, slot, None)
    if isinstance(there, Site):
        return there
    # The end of the path, from its last part that is not a number: `layer3.0.bn3` is bn3.
    parts = path.split(".")
    label = ".".join(parts[max((i for i, part in enumerate(parts) if not part.isdigit()), default=0) :])
    after = {"before": f"before {label}", "after": label, "in": "identity"}.get(place.where, "identity")
    reachable = place.where != "out of reach"
    # A child of the owner, so that copies, devices and modes follow; without parameters, so that no key is added.
    site = Site(place.group, place.branch, after, place.ends_branch, reachable=reachable, note=place.note)
    site.train(owner.training)
    setattr(owner, slot, site)
    if isinstance(owner, nn.Sequential):  # one without steps, as a shortcut that is the identity: now it has this one
        return site
    if place.where == "before":
        owner.register_forward_pre_hook(call_before)
    elif place.where == "after":
        owner.register_forward_hook(call_after)
    return site


# Functions of this module, not closures: a deep copy of the network then calls the copied sites.
def call_before(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    site: Any = module.site_before
    return site(args[0]), *args[1:]


def call_after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    site: Any = module.site_after
    return site(output)
