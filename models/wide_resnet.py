"""Wide residual networks (Zagoruyko and Komodakis 2016, arXiv 1605.07146): WRN-depth-k, WRN-28-10 above all.

The block is pre-activated, BN and ReLU before each convolution, with dropout between the two convolutions if wanted:

    residual:  x -> bn1, relu -> conv1 -> bn2, relu -> site1 -> [dropout] -> conv2 -> site2 ----+
    shortcut:  x, or where the shape changes relu(bn1(x)) -> 1x1 conv -> site_skip -------------+-> add

As in the released code, the projection reads the activated input and the identity shortcut the plain one. The branch
ends in a convolution, not in a BN: there is no last BN that could start at 0 (zero_gamma), and ShakeDrop's paper puts
one there.

Groups. The three stages `layer1` ... `layer3` are groups 2, 3 and 4, as in models/resnet_cifar.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dropblock.sites import Site
from models.resnet import conv, stem_of

NOTE = "wide ResNet: its sites are this project's choice, after the second ReLU, after conv2 and on the shortcut"


class WideBlock(nn.Module):
    """BN, ReLU, 3x3 convolution, BN, ReLU, dropout, 3x3 convolution, beside a shortcut."""

    def __init__(self, in_channels: int, channels: int, stride: int, group: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.site1 = Site(group, "conv", "relu(bn2)", note=NOTE)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = conv(channels, channels, 3)
        self.site2 = Site(group, "conv", "conv2", ends_branch=True, note=NOTE)
        self.downsample = None if in_channels == channels else conv(in_channels, channels, 1, stride)
        place = "identity" if self.downsample is None else "downsample"
        self.site_skip = Site(group, "skip", place, ends_branch=True, note=NOTE)

    def forward(self, x: Tensor) -> Tensor:
        active = self.relu(self.bn1(x))
        shortcut = self.site_skip(x if self.downsample is None else self.downsample(active))
        x = self.site1(self.relu(self.bn2(self.conv1(active))))
        return self.site2(self.conv2(self.dropout(x))) + shortcut


class WideResNet(nn.Module):
    """WRN-depth-widen_factor.

    Args:
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        width: channels of the first convolution (16 in the paper); the stages have widen_factor times 1, 2, 4 of it.
        stem: `small` (the paper's 3x3 convolution), or one of the other STEMS for larger images.
        depth: 6n + 4 layers, n blocks a stage.
        widen_factor: the paper's k, >= 1.
        dropout: share of units dropped between the convolutions of a block, in [0, 1); the paper has 0.3 on CIFAR.

    Input (N, in_channels, H, W), output logits (N, num_classes). `stages` gives the maps of groups 2, 3 and 4, which
    the next BN is still to see; `features` those that `fc` weighs.

    Raises:
        ValueError: for another depth, an option out of range, or an unknown stem.
    """

    first_group, last_group = 2, 4

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        width: int = 16,
        stem: str = "small",
        depth: int = 28,
        widen_factor: int = 10,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth={depth}: must be 6n + 4, such as 16, 28 or 40")
        if widen_factor < 1:
            raise ValueError(f"widen_factor={widen_factor}: must be at least 1")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout}: must lie in [0, 1)")

        # The stem decides the stride of every group. It ends in its convolution: a block begins with BN and ReLU.
        kernel, stem_stride, pool = stem_of(stem)
        self.num_classes = num_classes
        self.conv1 = conv(in_channels, width, kernel, stem_stride)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if pool else nn.Identity()
        self.channels = tuple(width * widen_factor * 2**s for s in range(3))
        self.strides = tuple(stem_stride * (1 + pool) * 2**s for s in range(3))

        # Three stages of n blocks, then the BN and ReLU that the last block lacks.
        stages, channels = [], width
        for s, wider in enumerate(self.channels):
            first = WideBlock(channels, wider, 1 if s == 0 else 2, s + 2, dropout)
            rest = [WideBlock(wider, wider, 1, s + 2, dropout) for _ in range((depth - 4) // 6 - 1)]
            stages.append(nn.Sequential(first, *rest))
            channels = wider
        self.layer1, self.layer2, self.layer3 = stages
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

        # The released code: normal of variance 2 / fan-out, bias of the classifier 0.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, in_channels, H, W) images -> the maps of groups 2, 3 and 4, (N, channels[s], h, w) each."""
        first = self.layer1(self.maxpool(self.conv1(x)))
        second = self.layer2(first)
        return first, second, self.layer3(second)

    def features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) images -> (N, C, h, w) maps of group 4 after the last BN and ReLU, before pooling."""
        return self.relu(self.bn(self.stages(x)[-1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(self.features(x)), 1))
