"""The cells of AmoebaNet-B: which operations they join, and the layers, sites and padding of each operation.

A cell has seven hidden states: 0 is its input after ReLU-1x1-BN, 1 is the output of the cell before ("previous"), and
each of five pairs adds one, the sum of two operations on earlier states. Its output concatenates the states that no
pair used. Padding is TensorFlow's. Sites: see `models.amoebanet`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dropblock.sites import Site


@dataclass(frozen=True)
class CellPlan:
    """Five pairs of (operation, state it reads), and the states that make the output."""

    pairs: tuple[tuple[tuple[str, int], tuple[str, int]], ...]
    output: tuple[int, ...]


NORMAL = CellPlan(
    pairs=(
        (("1x1", 1), ("max3", 1)),
        (("none", 1), ("sep3", 0)),
        (("1x1", 1), ("sep3", 0)),
        (("1x1", 2), ("none", 2)),
        (("avg3", 1), ("1x1", 5)),
    ),
    output=(0, 3, 4, 6),
)
REDUCTION = CellPlan(
    pairs=(
        (("max2", 0), ("max3", 0)),
        (("none", 2), ("3x3", 1)),
        (("dil_2_sep5", 2), ("max3", 2)),
        (("none", 3), ("sep3", 1)),
        (("avg3", 4), ("1x1", 3)),
    ),
    output=(5, 6),
)


def pad_same(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """TensorFlow's SAME padding: the output has ceil(side / stride) pixels, an odd pixel of padding goes to the end."""
    pads: list[int] = []
    for side in (x.shape[3], x.shape[2]):
        total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


class SameConv2d(nn.Conv2d):
    """A convolution without bias and with SAME padding."""

    def __init__(
        self, channels: int, filters: int, kernel: int, stride: int = 1, dilation: int = 1, groups: int = 1
    ) -> None:
        self.extent = (kernel - 1) * dilation + 1
        padding = self.extent // 2 if stride == 1 else 0
        super().__init__(channels, filters, kernel, stride, padding, dilation, groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.stride[0] == 1 else pad_same(x, self.extent, self.stride[0]))


class ReluConvBN(nn.Module):
    """ReLU, convolution(s), BN, site."""

    def __init__(self, site: Site, *convs: nn.Conv2d) -> None:
        super().__init__()
        self.convs = nn.Sequential(*convs)
        self.bn = nn.BatchNorm2d(convs[-1].out_channels)
        self.site = site

    def forward(self, x: Tensor) -> Tensor:
        return self.site(self.bn(self.convs(F.relu(x))))


class FactorizedReduction(nn.Module):
    """Halve a map without losing pixels: two 1x1 convolutions of stride 2, the second shifted by one pixel."""

    def __init__(self, site: Site, channels: int, filters: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, filters // 2, 1, stride=2, bias=False)
        self.conv2 = nn.Conv2d(channels, filters - filters // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(filters)
        self.site = site

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        shifted = F.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        return self.site(self.bn(torch.cat([self.conv1(x), self.conv2(shifted)], dim=1)))


class Pool(nn.Module):
    """Max or average pooling, SAME; the average counts pixels of the map only."""

    def __init__(self, kind: str, kernel: int, stride: int) -> None:
        super().__init__()
        self.kind, self.kernel, self.stride = kind, kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "avg":  # no cell of AmoebaNet-B averages with a stride
            return F.avg_pool2d(x, self.kernel, 1, self.kernel // 2, count_include_pad=False)
        return F.max_pool2d(pad_same(x, self.kernel, self.stride, -math.inf), self.kernel, self.stride)


@dataclass(frozen=True)
class OpPlace:
    """The place of an operation in a cell: channels, stride and group for its layers and sites."""

    channels: int
    filters: int
    stride: int
    group: int
    dilation: bool

    def after_bn(self, op: str) -> Site:
        return Site(self.group, "conv", f"bn of {op}")


def separable(name: str, kernel: int, place: OpPlace, dilation: int = 1) -> list[nn.Module]:
    """Twice ReLU, depthwise and pointwise convolution, BN; the stride is on the first."""

    def layer(channels: int, stride: int) -> nn.Module:
        depthwise = SameConv2d(channels, channels, kernel, stride, dilation, groups=channels)
        return ReluConvBN(place.after_bn(name), depthwise, SameConv2d(channels, place.filters, 1))

    return [layer(place.channels, place.stride), layer(place.filters, 1)]


def bottleneck(place: OpPlace) -> list[nn.Module]:
    """1x1, 3x3, 1x1 over a quarter of the filters; the plain 3x3 where a quarter is less than one."""
    inner = place.filters // 4
    if inner == 0:
        return [ReluConvBN(place.after_bn("3x3"), SameConv2d(place.channels, place.filters, 3, place.stride))]
    return [
        ReluConvBN(place.after_bn("3x3"), SameConv2d(place.channels, inner, 1)),
        ReluConvBN(place.after_bn("3x3"), SameConv2d(inner, inner, 3, place.stride)),
        ReluConvBN(place.after_bn("3x3"), SameConv2d(inner, place.filters, 1)),
    ]


def pool(kind: str, kernel: int, place: OpPlace) -> list[nn.Module]:
    """A pooling, and where the channels differ a 1x1 convolution and BN (no ReLU)."""
    layers: list[nn.Module] = [Pool(kind, kernel, place.stride)]
    if place.channels != place.filters:
        layers += [SameConv2d(place.channels, place.filters, 1), nn.BatchNorm2d(place.filters)]
        layers += [place.after_bn(f"{kind}{kernel}")]
    return layers


def pointwise(name: str, place: OpPlace) -> list[nn.Module]:
    return [ReluConvBN(place.after_bn(name), SameConv2d(place.channels, place.filters, 1, place.stride))]


OPERATIONS: dict[str, Callable[[OpPlace], list[nn.Module]]] = {
    "1x1": lambda place: pointwise("1x1", place),
    "3x3": bottleneck,
    "sep3": lambda place: separable("sep3", 3, place),
    # The released code parses the name of this one and runs a plain separable 5x5: so does dilation=False.
    "dil_2_sep5": lambda place: separable("dil_2_sep5", 5, place, dilation=2 if place.dilation else 1),
    "max2": lambda place: pool("max", 2, place),
    "max3": lambda place: pool("max", 3, place),
    "avg3": lambda place: pool("avg", 3, place),
}


def operation(name: str, state: int, place: OpPlace) -> nn.Sequential:
    """One operation of a pair, with the site that ends it."""
    if name == "none":
        if place.stride > 1 or place.channels != place.filters:
            return nn.Sequential(*pointwise("none", place))
        # State 1 passed the site on the previous output already.
        if state == 1:
            return nn.Sequential()
        return nn.Sequential(Site(place.group, "skip", f"none({state})", ends_branch=True))
    end = Site(place.group, "conv", f"{name}({state})", ends_branch=True, path_only=True)
    return nn.Sequential(*OPERATIONS[name](place), end)


@dataclass(frozen=True)
class Maps:
    """Output of a cell: its number of channels, and how often the maps were halved."""

    channels: int
    halvings: int


class Cell(nn.Module):
    """A cell: (its input, the output of the cell before) -> its output.

    Args:
        plan: NORMAL, or REDUCTION, which halves the maps.
        filters: channels of every state.
        current, previous: what arrives; `previous` is `current` itself in the first cell.
        group: group of all its sites.
        dilation: see `AmoebaNet`.
    """

    def __init__(self, plan: CellPlan, filters: int, current: Maps, previous: Maps, group: int, dilation: bool) -> None:
        super().__init__()
        stride = 2 if plan is REDUCTION else 1
        self.plan, self.output = plan, Maps(filters * len(plan.output), current.halvings + stride - 1)
        self.current = ReluConvBN(Site(group, "conv", "bn of the input"), SameConv2d(current.channels, filters, 1))
        # The previous output joins as it is where it fits, else through a convolution; its site is the skip branch.
        skip = Site(group, "skip", "previous output")
        if previous.halvings != current.halvings:
            self.previous: nn.Module = FactorizedReduction(skip, previous.channels, filters)
        elif previous.channels != filters and previous is not current:
            self.previous = ReluConvBN(skip, SameConv2d(previous.channels, filters, 1))
        else:
            self.previous = skip
        # Channels of the seven states; in a reduction cell the operations on the two inputs have the stride.
        widths = [filters, previous.channels if self.previous is skip else filters] + 5 * [filters]

        def build(name: str, state: int) -> nn.Sequential:
            return operation(name, state, OpPlace(widths[state], filters, stride if state < 2 else 1, group, dilation))

        self.left = nn.ModuleList(build(*pair[0]) for pair in plan.pairs)
        self.right = nn.ModuleList(build(*pair[1]) for pair in plan.pairs)

    def forward(self, x: Tensor, previous: Tensor) -> Tensor:
        states = [self.current(x), self.previous(previous)]
        for ((_, i), (_, j)), left, right in zip(self.plan.pairs, self.left, self.right, strict=True):
            states.append(left(states[i]) + right(states[j]))
        return torch.cat([states[i] for i in self.plan.output], dim=1)
