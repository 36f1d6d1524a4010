"""ResNet-20/56/110 for images of 32 pixels (He et al. 2016, arXiv 1512.03385, section 4.2): depth 6n + 2, three stages.

Shortcuts are the paper's option A there, "identity shortcuts in all cases": where the shape changes, every second pixel
and zeros for the new channels. They have no parameters, which is why the paper's counts hold (0.27, 0.85, 1.7 M).

Groups. The paper numbers the stages of an ImageNet network 1 ... 4. The three stages here, `layer1` ... `layer3`, are
groups 2, 3 and 4, so that 4 is the last one and 3 the one before it in every network; there is no group 1. Sites are
those of a basic block in models/resnet.py; the DropBlock paper has neither such a block nor CIFAR.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dropblock.sites import BASIC_BLOCK_NOTE, Site
from models.resnet import conv, stem_of

DEPTHS: dict[str, int] = {"resnet20": 20, "resnet56": 56, "resnet110": 110}


def with_channels(x: Tensor, channels: int) -> Tensor:
    """Append channels of zeros to (N, C, H, W) maps until there are `channels`."""
    return F.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1])) if x.shape[1] < channels else x


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters."""

    def __init__(self, in_channels: int, channels: int, stride: int, group: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride
        self.conv1 = conv(in_channels, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.site1 = Site(group, "conv", "relu(bn1)", note=BASIC_BLOCK_NOTE)
        self.conv2 = conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.site2 = Site(group, "conv", "bn2", ends_branch=True, note=BASIC_BLOCK_NOTE)
        place = "identity" if in_channels == channels else "zero-padded"
        self.site_skip = Site(group, "skip", place, ends_branch=True, note=BASIC_BLOCK_NOTE)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.site_skip(with_channels(x[:, :, :: self.stride, :: self.stride], self.channels))
        x = self.site1(self.relu(self.bn1(self.conv1(x))))
        x = self.site2(self.bn2(self.conv2(x)))
        return self.relu(x + shortcut)


class CifarResNet(nn.Module):
    """A residual network of three stages of basic blocks.

    Args:
        depth: 6n + 2 layers, n blocks a stage.
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        width: channels of the first stage (16 in the paper); doubles with every stage.
        stem: `small` (the paper's 3x3 convolution), or one of the other STEMS for larger images.
        zero_gamma: start the last BN of every block at weight 0; the paper does not.

    Input (N, in_channels, H, W), output logits (N, num_classes). `stages` gives the maps of groups 2, 3 and 4,
    `features` those of the last; `channels` and `strides` as in `models.resnet.ResNet`.

    Raises:
        ValueError: for another depth, or an unknown stem.
    """

    first_group, last_group = 2, 4

    def __init__(
        self,
        depth: int,
        num_classes: int,
        in_channels: int = 3,
        width: int = 16,
        stem: str = "small",
        zero_gamma: bool = False,
    ) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth={depth}: must be 6n + 2, such as 20, 56 or 110")

        # The stem decides the stride of every group.
        kernel, stem_stride, pool = stem_of(stem)
        self.num_classes = num_classes
        self.conv1 = conv(in_channels, width, kernel, stem_stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1) if pool else nn.Identity()
        self.channels = (width, 2 * width, 4 * width)
        self.strides = tuple(stem_stride * (1 + pool) * 2**s for s in range(3))

        # Three stages of n blocks: all but the first begin with a block of stride 2.
        stages, channels = [], width
        for s, wider in enumerate(self.channels):
            first = BasicBlock(channels, wider, 1 if s == 0 else 2, group=s + 2)
            rest = [BasicBlock(wider, wider, 1, group=s + 2) for _ in range((depth - 2) // 6 - 1)]
            stages.append(nn.Sequential(first, *rest))
            channels = wider
        self.layer1, self.layer2, self.layer3 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

        # He et al. 2015, arXiv 1502.01852, equation 10; the classifier as torch has it, the paper says nothing of it.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif zero_gamma and isinstance(module, BasicBlock):
                nn.init.zeros_(module.bn2.weight)

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, in_channels, H, W) images -> the maps of groups 2, 3 and 4, (N, channels[s], h, w) each."""
        first = self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        second = self.layer2(first)
        return first, second, self.layer3(second)

    def features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) images -> (N, C, h, w) maps of group 4, before pooling."""
        return self.stages(x)[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.avgpool(self.features(x)), 1))
