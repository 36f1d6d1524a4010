"""Places for sites in networks that declare none: patterns of module names, and the families that are known.

Groups follow the size of the feature maps, as in a ResNet: group 1 up to a quarter of the side of the image, group 2 an
eighth, group 3 a sixteenth, group 4 a thirty-second.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from dropblock.sites import BASIC_BLOCK_NOTE

SIDES = ("before", "after", "in", "out of reach")
# torchvision's wrapper around the backbones of its detectors and segmentation networks; keeps the children's names.
GETTER = ("torchvision.models._utils", "IntermediateLayerGetter")


@dataclass(frozen=True)
class Place:
    """A place for sites in a network: `Place("layer[34].*.conv3", "before", group=4)`.

    A place that names several modules puts a site at each of them. A module that is called several times in a forward
    pass (one ReLU for a whole unit) is no place for a group with a number; choose its neighbour.

    Args:
        modules: pattern of module paths, matched part by part between the dots: `layer4.*.conv3`, `layer[34].*.bn3`.
            `*` stands for any name between two dots: `up.*` is every child of `up`, not `up` and no grandchild.
        where: `before` the module (its first input), `after` it (its output), `in` a slot that holds None, or `out of
            reach`: the place exists inside the module, but nothing from outside gets there; the sites table says so.
        group: 1 ... 4, or "head"; decides which sites a layer takes and its share of the drop rate.
        branch: `conv`, or `skip` for a shortcut.
        ends_branch: the site sees the output of its branch: where drop path and stochastic depth sit. No site does in
            a unit that says that it has no shortcut (`use_res_connect` or `has_skip` is False).
        note: how the place departs from the paper's; shown with the sites table.
    """

    modules: str
    where: str = "after"
    group: int | str = 4
    branch: str = "conv"
    ends_branch: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.modules, str):
            raise TypeError(f"modules must be a pattern of module paths such as 'layer4.*.bn3', not {self.modules!r}")
        if not isinstance(self.group, int) and self.group != "head":
            raise TypeError(f"group must be 1 ... 4 or 'head', not {self.group!r}")
        if self.where not in SIDES:
            raise ValueError(f"where must be one of {', '.join(SIDES)}, not '{self.where}'")
        if self.branch not in ("conv", "skip"):
            raise ValueError(f"branch must be 'conv' or 'skip', not {self.branch!r}")
        if isinstance(self.group, int) and self.group < 1:
            raise ValueError(f"groups are counted from 1, so there is no group {self.group}")

    def names(self, path: str) -> bool:
        """True if the pattern matches this module path."""
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
BOTTLENECK = in_groups(
    STAGES,
    Place("layer{}.*.conv2", "before"),
    Place("layer{}.*.conv3", "before"),
    Place("layer{}.*.bn3", ends_branch=True),
    Place("layer{}.*.downsample", "after", branch="skip", ends_branch=True),
    Place("layer{}.*.downsample", "in", branch="skip", ends_branch=True),
)
BASIC_BLOCK = in_groups(
    STAGES,
    Place("layer{}.*.conv2", "before", note=BASIC_BLOCK_NOTE),
    Place("layer{}.*.bn2", ends_branch=True, note=BASIC_BLOCK_NOTE),
    Place("layer{}.*.downsample", "after", branch="skip", ends_branch=True, note=BASIC_BLOCK_NOTE),
    Place("layer{}.*.downsample", "in", branch="skip", ends_branch=True, note=BASIC_BLOCK_NOTE),
)
REGNET = in_groups(
    STAGES,
    Place("trunk_output.block{}.*.f.a"),
    Place("trunk_output.block{}.*.f.b"),
    Place("trunk_output.block{}.*.f.c", ends_branch=True),
    Place("trunk_output.block{}.*.proj", "after", branch="skip", ends_branch=True),
    Place("trunk_output.block{}.*.proj", "in", branch="skip", ends_branch=True),
)
TIMM_REGNET = in_groups(
    STAGES,
    Place("s{}.*.conv1"),
    Place("s{}.*.conv2"),
    Place("s{}.*.conv3", ends_branch=True),
    Place("s{}.*.downsample", branch="skip", ends_branch=True),
)
DENSENET = in_groups(
    STAGES,
    Place("features.denseblock{}.*.conv2", "before"),
    Place("features.denseblock{}.*.conv2", "after", ends_branch=True),
    Place("features.denseblock{}.*", "out of reach", branch="skip"),
)
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
# By the body of an inverted residual unit, `conv` in MobileNetV2 and `block` in V3: after the activations of its
# expansion and of its depthwise convolution, and at its end.
MOBILENET = (
    Place("features.{}.%", ends_branch=True),
    Place("features.{}.%.*.2"),
    Place("features.{}", "out of reach", branch="skip"),
)


def mobilenet(body: str) -> Callable[[nn.Module], tuple[Place, ...]]:
    """Units lie in one list: a group is what has the same stride, so it differs from size to size."""

    def places(model: nn.Module) -> tuple[Place, ...]:
        found: list[Place] = []
        stride = 1
        units = {name: unit for name, unit in features_of(model).named_children() if name.isdigit()}
        for name, unit in units.items():
            convolutions = [module for module in unit.modules() if isinstance(module, nn.Conv2d)]
            stride *= math.prod(conv.stride[0] for conv in convolutions)
            if hasattr(unit, body):
                # Dilated instead of strided, as in segmentation, it is still the group that it would be: 1 for maps of
                # a quarter of the image and larger, up to 4 for a thirty-second and smaller.
                undilated = stride * max(conv.dilation[0] for conv in convolutions)
                group = min(4, max(1, undilated.bit_length() - 2))
                named = [replace(place, modules=place.modules.replace("%", body)) for place in MOBILENET]
                found += in_groups({group: name}, *named)
        return tuple(found)

    return places


def timm_efficientnet(model: nn.Module) -> tuple[Place, ...]:
    """After each BatchNorm, which has its activation in it; the last one of a unit ends its branch.

    timm has three kinds of unit in them, of one, two and three convolutions.
    """
    found: list[Place] = []
    stages: Any = model.blocks
    for (stage, units), group in zip(stages.named_children(), (1, 1, 2, 3, 3, 4, 4), strict=False):
        for unit, module in units.named_children():
            path = f"blocks.{stage}.{unit}"
            norms = [name for name, _ in module.named_children() if fnmatchcase(name, "bn[123]")]
            found += [Place(f"{path}.{name}", group=group, ends_branch=name == norms[-1]) for name in norms]
            found.append(Place(path, "out of reach", group=group, branch="skip"))
    return tuple(found)


def vgg(model: nn.Module) -> tuple[Place, ...]:
    """After every activation. Its five stages end at a sixteenth of the image: 1 and 2 are group 1, the fifth is 4."""
    found, stage = [], 1
    for name, module in features_of(model).named_children():
        stage += isinstance(module, nn.MaxPool2d)
        if isinstance(module, nn.ReLU):
            found.append(Place(f"features.{name}", group=max(1, stage - 1)))
    return tuple(found)


def features_of(model: nn.Module) -> nn.Module:
    """The module that holds a family's stages: `features`, or a wrapper around a backbone itself."""
    return model.features if hasattr(model, "features") else model  # type: ignore[return-value]


@dataclass(frozen=True)
class Family:
    """Networks whose places are known.

    Args:
        library: module that defines the class.
        name: name of the class.
        has: a module that it must have.
        places: the places, or a function that finds them in a model.
    """

    library: str
    name: str
    has: str
    places: tuple[Place, ...] | Callable[[nn.Module], tuple[Place, ...]]

    def holds(self, model: nn.Module) -> bool:
        """True if the model is one of the family, or torchvision's wrapper around the body of one."""
        paths = {path for path, _ in model.named_modules()}
        bases = {(base.__module__, base.__name__) for base in type(model).__mro__}
        if GETTER in bases:
            inside = self.has.removeprefix("features.")
            units = (inside, inside.rpartition(".")[0])  # the unit itself, or the one that it is in
            return inside in paths and any(type(model.get_submodule(p)).__module__ == self.library for p in units)
        return (self.library, self.name) in bases and self.has in paths

    def places_in(self, model: nn.Module) -> tuple[Place, ...]:
        """The places, by the names that they have in this model."""
        found = self.places(model) if callable(self.places) else self.places
        if hasattr(model, "features"):
            return found
        return tuple(replace(place, modules=place.modules.removeprefix("features.")) for place in found)


KNOWN = (
    Family("torchvision.models.resnet", "ResNet", "layer1.0.conv3", BOTTLENECK),
    Family("torchvision.models.resnet", "ResNet", "layer1.0.conv2", BASIC_BLOCK),
    Family("torchvision.models.regnet", "RegNet", "trunk_output", REGNET),
    Family("torchvision.models.densenet", "DenseNet", "features", DENSENET),
    Family("torchvision.models.efficientnet", "EfficientNet", "features", EFFICIENTNET),
    Family("torchvision.models.convnext", "ConvNeXt", "features", CONVNEXT),
    Family("torchvision.models.vgg", "VGG", "features", vgg),
    Family("torchvision.models.mobilenetv2", "MobileNetV2", "features.1", mobilenet("conv")),
    Family("torchvision.models.mobilenetv3", "MobileNetV3", "features.1", mobilenet("block")),
    Family("timm.models.resnet", "ResNet", "layer1.0.conv3", BOTTLENECK),
    Family("timm.models.resnet", "ResNet", "layer1.0.conv2", BASIC_BLOCK),
    Family("timm.models.regnet", "RegNet", "s1", TIMM_REGNET),
    Family("timm.models.efficientnet", "EfficientNet", "blocks", timm_efficientnet),
)


def known_places(model: nn.Module) -> tuple[Place, ...]:
    """The places of a family that this file knows, groups 1 ... 4 each.

    A backbone inside a larger network counts, torchvision's detectors and segmentation networks for instance: the
    first part that is of a known family is taken, and the rest of the network gets no sites.

    Raises:
        ValueError: for any other network.
    """
    for path, part in model.named_modules():
        for family in KNOWN:
            if family.holds(part):
                inside = family.places_in(part)  # by the names in the part; here by those in the whole
                return tuple(replace(place, modules=f"{path}.{place.modules}".lstrip(".")) for place in inside)
    families = ", ".join(sorted({f"{family.library.split('.')[0]} {family.name}" for family in KNOWN}))
    raise ValueError(
        f"no places known for {type(model).__name__}: give patterns; dropblock.suggest(model, images) proposes some; "
        f"known without patterns: {families}"
    )
