"""PyramidNet (Han, Kim, Kim 2017, arXiv 1610.02915): channels grow a little with every block, by alpha in all.

Block k of N has 16 + alpha k / N channels (the paper rounds down, the released code to the nearest: here as there).
A block has no ReLU at its first convolution, and a BN at its end:

    residual:  x -> bn1 -> conv1 -> bn2, relu -> site1 -> conv2 -> bn3 -> site2 --------------------------+
    bottleneck:                          ... conv2 -> bn3, relu -> site2 -> conv3 -> bn4 -> site3 --------+
    shortcut:  x -> 2x2 average where the map shrinks -> zeros for the new channels -> site_skip ---------+-> add

Groups. The three stages `layer1` ... `layer3` are groups 2, 3 and 4, as in models/resnet_cifar.py. Where in a block
DropBlock sat in the CutMix paper's table is not stated, and the released code has none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dropblock.sites import Site
from models.resnet import conv, stem_of
from models.resnet_cifar import with_channels

NOTE = "PyramidNet: its sites are this project's choice, after every ReLU in a block, at its end and on the shortcut"

# The options of each published form: those of the CutMix paper, and the largest basic one of PyramidNet's own.
FORMS: dict[str, dict[str, Any]] = {
    "pyramidnet110": {"depth": 110, "alpha": 270, "bottleneck": False},
    "pyramidnet110_small": {"depth": 110, "alpha": 64, "bottleneck": True},
    "pyramidnet200": {"depth": 200, "alpha": 240, "bottleneck": True},
}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, group: int) -> None:
        super().__init__()
        self.stride = stride
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.site1 = Site(group, "conv", "relu(bn2)", note=NOTE)
        self.conv2 = conv(channels, channels, 3)
        self.bn3 = nn.BatchNorm2d(channels)
        self.site2 = Site(group, "conv", "bn3", ends_branch=True, note=NOTE)
        place = "identity" if in_channels == channels else "zero-padded"
        self.site_skip = Site(group, "skip", place, ends_branch=True, note=NOTE)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.bn1(x))
        y = self.conv2(self.site1(self.relu(self.bn2(y))))
        y = self.site2(self.bn3(y))
        return y + self.site_skip(shortcut(x, self.stride, y.shape[1]))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions; the last has four times the channels."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int, group: int) -> None:
        super().__init__()
        self.stride = stride
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv(in_channels, channels, 1)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.site1 = Site(group, "conv", "relu(bn2)", note=NOTE)
        self.conv2 = conv(channels, channels, 3, stride)
        self.bn3 = nn.BatchNorm2d(channels)
        self.site2 = Site(group, "conv", "relu(bn3)", note=NOTE)
        self.conv3 = conv(channels, channels * self.expansion, 1)
        self.bn4 = nn.BatchNorm2d(channels * self.expansion)
        self.site3 = Site(group, "conv", "bn4", ends_branch=True, note=NOTE)
        place = "identity" if in_channels == channels * self.expansion else "zero-padded"
        self.site_skip = Site(group, "skip", place, ends_branch=True, note=NOTE)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.bn1(x))
        y = self.conv2(self.site1(self.relu(self.bn2(y))))
        y = self.conv3(self.site2(self.relu(self.bn3(y))))
        y = self.site3(self.bn4(y))
        return y + self.site_skip(shortcut(x, self.stride, y.shape[1]))


def shortcut(x: Tensor, stride: int, channels: int) -> Tensor:
    """The paper's shortcut: averaged over 2x2 pixels where the map shrinks, with zeros as the new channels."""
    return with_channels(F.avg_pool2d(x, 2, ceil_mode=True) if stride == 2 else x, channels)


class PyramidNet(nn.Module):
    """A pyramidal residual network of three stages.

    Args:
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        width: channels before the first block (16 in the paper); all others are in proportion, alpha's share included.
        stem: `small` (the paper's 3x3 convolution for CIFAR), or one of the other STEMS for larger images.
        zero_gamma: start the last BN of every block at weight 0; the paper does not.
        depth: 6n + 2 layers with basic blocks, 9n + 2 with bottlenecks, n blocks a stage.
        alpha: channels that all blocks add together, at width 16.
        bottleneck: the kind of block.

    Input (N, in_channels, H, W), output logits (N, num_classes). `stages` gives the maps of groups 2, 3 and 4, which
    the next BN is still to see; `features` those that `fc` weighs.

    Raises:
        ValueError: for a depth that does not fit the block, a negative alpha, or an unknown stem.
    """

    first_group, last_group = 2, 4

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        width: int = 16,
        stem: str = "small",
        zero_gamma: bool = False,
        depth: int = 200,
        alpha: float = 240,
        bottleneck: bool = True,
    ) -> None:
        super().__init__()
        layers = 9 if bottleneck else 6  # of one block in each stage
        if depth < layers + 2 or (depth - 2) % layers:
            raise ValueError(f"depth={depth}: must be {layers}n + 2 with bottleneck={str(bottleneck).lower()}")
        if alpha < 0:
            raise ValueError(f"alpha={alpha}: must not be negative")

        block = Bottleneck if bottleneck else BasicBlock
        kernel, stem_stride, pool = stem_of(stem)
        self.num_classes = num_classes
        self.conv1 = conv(in_channels, width, kernel, stem_stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        # No ReLU before the blocks on small images; before the pool there is one.
        self.maxpool = nn.Sequential(self.relu, nn.MaxPool2d(3, stride=2, padding=1)) if pool else nn.Identity()

        # Three stages of blocks, each block alpha / N channels wider than the one before, N blocks in all.
        number, channels = (depth - 2) // layers, width
        stages, ends = [], []
        for s in range(3):
            blocks = []
            for b in range(number):
                k = s * number + b + 1
                wider = round(width + alpha * width / 16 * k / (3 * number))
                blocks.append(block(channels, wider, 2 if s > 0 and b == 0 else 1, group=s + 2))
                channels = wider * block.expansion
            stages.append(nn.Sequential(*blocks))
            ends.append(channels)
        self.layer1, self.layer2, self.layer3 = stages
        self.channels = tuple(ends)
        self.strides = tuple(stem_stride * (1 + pool) * 2**s for s in range(3))
        self.bn_final = nn.BatchNorm2d(channels)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

        # The released code: normal of variance 2 / fan-out.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif zero_gamma and isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn3.weight)
            elif zero_gamma and isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn4.weight)

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, in_channels, H, W) images -> the maps of groups 2, 3 and 4, (N, channels[s], h, w) each."""
        first = self.layer1(self.maxpool(self.bn1(self.conv1(x))))
        second = self.layer2(first)
        return first, second, self.layer3(second)

    def features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) images -> (N, C, h, w) maps of group 4 after the last BN and ReLU, before pooling."""
        return self.relu(self.bn_final(self.stages(x)[-1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(self.features(x)), 1))
