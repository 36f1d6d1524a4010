"""ResNet-18/34/50/101/152 (He et al. 2016, arXiv 1512.03385) with the places where the DropBlock paper puts its layer.

Parameter names, and so the keys of a `state_dict`, are torchvision's. As in the authors' released code the stride of a
bottleneck sits in its 3x3 convolution ("v1.5"); unlike there, and as in torchvision, the max pool pads all four
sides, not the right and the lower one alone. Every residual unit declares its sites:

    shortcut:  x -> [1x1 conv, BN where the shape changes] -> site_skip ----------------------------+
    residual:  x -> conv1, bn1, relu -> site1 -> conv2, bn2, relu -> site2 -> conv3, bn3 -> site3 --+-> add, relu

A site is the identity until something is installed in it. The identity shortcut has one as well. A basic block has the
matching three: site_skip, site1 after bn1-relu, site2 after bn2 before the addition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dropblock.sites import BASIC_BLOCK_NOTE, Site


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


# Kernel and stride of the first convolution, and whether a 3x3 max-pool of stride 2 follows it.
STEMS: dict[str, tuple[int, int, bool]] = {"imagenet": (7, 2, True), "stride2": (3, 2, False), "small": (3, 1, False)}


def stem_of(name: str) -> tuple[int, int, bool]:
    """The entry of STEMS of this name.

    Raises:
        ValueError: if there is none.
    """
    if name not in STEMS:
        raise ValueError(f"unknown stem '{name}', choose one of {', '.join(STEMS)}")
    return STEMS[name]


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The shortcut of a unit that changes the shape of its input; None where the input itself is the shortcut."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, group: int) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.site1 = Site(group, "conv", "relu(bn1)", note=BASIC_BLOCK_NOTE)
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.site2 = Site(group, "conv", "bn2", ends_branch=True, note=BASIC_BLOCK_NOTE)
        self.downsample = projection(in_channels, width, stride)
        place = "identity" if self.downsample is None else "downsample"
        self.site_skip = Site(group, "skip", place, ends_branch=True, note=BASIC_BLOCK_NOTE)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.site_skip(x if self.downsample is None else self.downsample(x))
        x = self.site1(self.relu(self.bn1(self.conv1(x))))
        x = self.site2(self.bn2(self.conv2(x)))
        return self.relu(x + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions (ResNet-50, -101 and -152): the unit of the paper, with its four sites."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, group: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = conv(in_channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.site1 = Site(group, "conv", "relu(bn1)")
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.site2 = Site(group, "conv", "relu(bn2)")
        self.conv3 = conv(width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.site3 = Site(group, "conv", "bn3", ends_branch=True)
        self.downsample = projection(in_channels, out_channels, stride)
        self.site_skip = Site(group, "skip", "identity" if self.downsample is None else "downsample", ends_branch=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.site_skip(x if self.downsample is None else self.downsample(x))
        x = self.site1(self.relu(self.bn1(self.conv1(x))))
        x = self.site2(self.relu(self.bn2(self.conv2(x))))
        x = self.site3(self.bn3(self.conv3(x)))
        return self.relu(x + shortcut)


UNITS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """A residual network of four groups; group g is `layer{g}`, conv{g+1}_x in the papers.

    Args:
        block: the residual unit.
        units: how many of them each group has.
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        width: channels of group 1's 3x3 convolutions (64 in the paper); doubles with every group.
        stem: `imagenet` (7x7 stride 2, then 3x3 max-pool stride 2), `stride2` (3x3 stride 2 and no pool, for dense
            prediction on images of 128 pixels or so) or `small` (3x3 stride 1 and no pool, for images of 32 pixels or
            so). Group 1 then has maps at a stride of 4, 2 or 1 pixels, and every later group twice the stride.
        zero_gamma: start the last BN of every unit at weight 0, so that every unit starts as its shortcut.

    Input (N, in_channels, H, W), output logits (N, num_classes). `stages` gives the maps of all groups, `features`
    those of the last, which `fc` weighs in a class-activation map. `channels` are those of the four groups, `strides`
    the pixels of the image between two neighbours on their maps.
    """

    last_group = 4

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        units: Sequence[int],
        num_classes: int,
        in_channels: int = 3,
        width: int = 64,
        stem: str = "imagenet",
        zero_gamma: bool = False,
    ) -> None:
        super().__init__()
        # The stem decides the stride of every group.
        kernel, stem_stride, pool = stem_of(stem)
        self.num_classes = num_classes
        self.conv1 = conv(in_channels, width, kernel, stem_stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if pool else nn.Identity()
        self.strides = tuple(stem_stride * (1 + pool) * 2**g for g in range(4))

        # Four groups, conv2_x ... conv5_x of the paper: all but the first begin with a unit of stride 2.
        channels = [width] + [width * 2**g * block.expansion for g in range(4)]
        groups = []
        for g in range(4):
            stride = 1 if g == 0 else 2
            first = block(channels[g], width * 2**g, stride, group=g + 1)
            rest = [block(channels[g + 1], width * 2**g, 1, group=g + 1) for _ in range(units[g] - 1)]
            groups.append(nn.Sequential(first, *rest))
        self.layer1, self.layer2, self.layer3, self.layer4 = groups
        self.channels = tuple(channels[1:])

        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels[4], num_classes)
        initialise(self, zero_gamma)

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, in_channels, H, W) images -> the maps of groups 1 ... 4, (N, channels[g], h, w) each: C2 ... C5."""
        c2 = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c2, c3, c4, self.layer4(c4)

    def features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) images -> (N, C, h, w) maps of group 4, before pooling."""
        return self.stages(x)[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(self.features(x)), 1))


def initialise(model: nn.Module, zero_gamma: bool) -> None:
    """The released code's start: convolutions truncated normal of variance 1 / fan-in, classifier N(0, 0.01), bias 0.

    A normal cut at two standard deviations has 0.8796 of its deviation left, hence the divisor.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_in = module.in_channels // module.groups * math.prod(module.kernel_size)
            std = math.sqrt(1.0 / fan_in) / 0.87962566103423978
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
        elif zero_gamma and isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)
        elif zero_gamma and isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)
