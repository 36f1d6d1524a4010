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
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from dropblock.layers import DropLayer
from dropblock.sites import Site, install

SIDES = ("before", "after", "in", "out of reach")


@dataclass(frozen=True)
class Place:
    """Where sites go in a network.

    Args:
        modules: pattern of module paths, matched part by part between the dots: `layer4.*.conv3`, `layer[34].*.bn3`.
        where: `before` the module (its first input), `after` it (its output), `in` a slot that holds None, or `out of
            reach`: the place exists inside the module, but nothing from outside gets there; the sites table says so.
        group, branch, ends_branch: as for `Site`.
    """

    modules: str
    where: str = "after"
    group: int | str = 4
    branch: str = "conv"
    ends_branch: bool = False

    def __post_init__(self) -> None:
        if self.where not in SIDES:
            raise ValueError(f"where must be one of {', '.join(SIDES)}, not '{self.where}'")

    def names(self, path: str) -> bool:
        parts, patterns = path.split("."), self.modules.split(".")
        return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def in_groups(groups: dict[int, str], *places: Place) -> tuple[Place, ...]:
    """The places once for every group; `{}` in a pattern is what the family calls that group."""
    return tuple(
        replace(place, modules=place.modules.format(name), group=group)
        for group, name in groups.items()
        for place in places
    )


STAGES = {g: str(g) for g in (1, 2, 3, 4)}
SHORTCUT = (
    Place("layer{}.*.downsample", "after", branch="skip", ends_branch=True),
    Place("layer{}.*.downsample", "in", branch="skip", ends_branch=True),
)
BOTTLENECK = in_groups(
    STAGES,
    Place("layer{}.*.conv2", "before"),
    Place("layer{}.*.conv3", "before"),
    Place("layer{}.*.bn3", ends_branch=True),
    *SHORTCUT,
)
BASIC_BLOCK = in_groups(STAGES, Place("layer{}.*.conv2", "before"), Place("layer{}.*.bn2", ends_branch=True), *SHORTCUT)
REGNET = in_groups(
    STAGES,
    *(Place("trunk_output.block{}.*.f.a"), Place("trunk_output.block{}.*.f.b")),
    Place("trunk_output.block{}.*.f.c", ends_branch=True),
    Place("trunk_output.block{}.*.proj", "after", branch="skip", ends_branch=True),
    Place("trunk_output.block{}.*.proj", "in", branch="skip", ends_branch=True),
)
TIMM_REGNET = in_groups(
    STAGES,
    *(Place("s{}.*.conv1"), Place("s{}.*.conv2"), Place("s{}.*.conv3", ends_branch=True)),
    Place("s{}.*.downsample", branch="skip", ends_branch=True),
)
DENSENET = in_groups(
    STAGES,
    Place("features.denseblock{}.*.conv2", "before"),
    Place("features.denseblock{}.*.conv2", "after", ends_branch=True),
    Place("features.denseblock{}.*", "out of reach", branch="skip"),
)
# Stages by the size of their maps: a half and a quarter of the image, an eighth, a sixteenth, a thirty-second.
EFFICIENTNET = in_groups(
    {1: "[12]", 2: "3", 3: "[45]", 4: "[67]"},
    Place("features.{}.*.block", ends_branch=True),
    Place("features.{}.*.block.*.2"),  # activations of the expansion and of the depthwise convolution
    Place("features.{}.*", "out of reach", branch="skip"),
)
CONVNEXT = in_groups(
    {1: "1", 2: "3", 3: "5", 4: "7"},
    Place("features.{}.*.block.0"),  # between the others the maps are (N, H, W, C)
    Place("features.{}.*.block", ends_branch=True),
    Place("features.{}.*", "out of reach", branch="skip"),
)

# (library and file, class, a module that it must have, its places)
KNOWN: tuple[tuple[str, str, str, tuple[Place, ...]], ...] = (
    ("torchvision.models.resnet", "ResNet", "layer1.0.conv3", BOTTLENECK),
    ("torchvision.models.resnet", "ResNet", "layer1.0.conv2", BASIC_BLOCK),
    ("torchvision.models.regnet", "RegNet", "trunk_output", REGNET),
    ("torchvision.models.densenet", "DenseNet", "features", DENSENET),
    ("torchvision.models.efficientnet", "EfficientNet", "features", EFFICIENTNET),
    ("torchvision.models.convnext", "ConvNeXt", "features", CONVNEXT),
    ("timm.models.resnet", "ResNet", "layer1.0.conv3", BOTTLENECK),
    ("timm.models.resnet", "ResNet", "layer1.0.conv2", BASIC_BLOCK),
    ("timm.models.regnet", "RegNet", "s1", TIMM_REGNET),
)


def known_places(model: nn.Module) -> tuple[Place, ...]:
    """The places of a family that this file knows, groups 1 ... 4 each.

    Raises:
        ValueError: for any other network.
    """
    paths = {path for path, _ in model.named_modules()}
    bases = {(base.__module__, base.__name__) for base in type(model).__mro__}
    for library, name, module, places in KNOWN:
        if (library, name) in bases and module in paths:
            return places
    families = ", ".join(sorted({f"{library.split('.')[0]} {name}" for library, name, _, _ in KNOWN}))
    raise ValueError(
        f"no places known for {type(model).__name__}: give patterns, such as Place('layer4.*.conv3', 'before'); "
        f"known without patterns: {families}"
    )


def declare_sites(model: nn.Module, places: Sequence[Place] | None = None) -> dict[str, Site]:
    """Give a network sites; the identity until something is installed.

    Args:
        model: changed in place; keys and outputs stay the same.
        places: where; None takes `known_places`. If two places name the same side of a module the first one counts,
            and a site that is there already stays.

    Returns:
        the sites by module path.

    Raises:
        ValueError: for a pattern that names nothing.
    """
    found: set[int] = set()
    for place in known_places(model) if places is None else places:
        owners = list(matching(model, place))
        if not owners and places is not None:
            raise ValueError(nothing_found(model, place))
        found.update(id(declare(place, *owner)) for owner in owners)
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


def matching(model: nn.Module, place: Place) -> Iterator[tuple[str, nn.Module, str]]:
    """(path, module that owns the site, name of the slot) for every match of a place."""
    for path, module in list(model.named_modules()):
        if place.where == "in":
            for slot, value in [*vars(module).items(), *module._modules.items()]:
                inner = f"{path}.{slot}".lstrip(".")
                # A slot that an earlier call filled is still that slot.
                if (value is None or isinstance(value, Site)) and place.names(inner):
                    yield inner, module, slot
        elif place.names(path) and not isinstance(module, Site):
            if place.where == "out of reach" and not getattr(module, "use_res_connect", True):
                continue  # torchvision's MBConv without a shortcut
            yield path, outermost(module, place.where), f"site_{place.where.replace(' ', '_')}"


def outermost(module: nn.Module, where: str) -> nn.Module:
    """The module whose input or output is that of `module`, and that may have children without running them.

    A child of an nn.Sequential would become one more step of it, so there it is the first or last step that counts.
    """
    while isinstance(module, nn.Sequential) and len(module) > 0 and where in ("before", "after"):
        module = module[0 if where == "before" else -1]
    return module


def declare(place: Place, path: str, owner: nn.Module, slot: str) -> Site:
    """Put one site in and have it called."""
    there: Any = getattr(owner, slot, None)
    if isinstance(there, Site):
        return there
    label = readable(path)
    after = {"before": f"before {label}", "after": label, "in": "identity"}.get(place.where, "identity")
    reachable = place.where != "out of reach"
    site = Site(place.group, place.branch, after, place.ends_branch, reachable=reachable)
    site.train(owner.training)
    setattr(owner, slot, site)
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


def readable(path: str) -> str:
    """The end of a path, from its last part that is not a number: `layer3.0.bn3` is bn3."""
    parts = path.split(".")
    start = max((i for i, part in enumerate(parts) if not part.isdigit()), default=0)
    return ".".join(parts[start:])


def nothing_found(model: nn.Module, place: Place) -> str:
    """What to tell when a pattern names nothing, with the nearest patterns that do."""
    general = {".".join("*" if p.isdigit() else p for p in path.split(".")) for path, _ in model.named_modules()}
    near = difflib.get_close_matches(place.modules, sorted(general - {""}), n=3, cutoff=0.4)
    hint = f"; near it: {', '.join(near)}" if near else ""
    kind = "slot that holds None" if place.where == "in" else "module"
    return f"no {kind} of {type(model).__name__} matches '{place.modules}'{hint}"
