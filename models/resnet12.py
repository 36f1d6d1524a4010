"""ResNet-12 of few-shot learning, as MetaOptNet trains it (Lee et al. 2019, arXiv 1904.03758; from TADAM's): 12.4 M.

Four blocks of three 3x3 convolutions, then the addition, LeakyReLU(0.1) and a 2x2 max-pool; channels 64, 160, 320, 640.
There is no stem: the first block sees the image, and block g is group g.

Where DropBlock sits is a choice. Few-shot code has one layer a block, after the pool, on the sum of both branches; the
DropBlock paper has layers inside the branches. `places` says which of the two the sites are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dropblock.sites import Site
from models.resnet import conv

OUTPUT_NOTE = "ResNet-12: one site a block, after its pool, as in few-shot code (places=output)"
BRANCHES_NOTE = "ResNet-12: sites on the branches are this project's choice; few-shot code has one after the pool"
PLACES = ("output", "branches")


class Block(nn.Module):
    """Three 3x3 convolutions beside a projection, LeakyReLU and max-pool."""

    def __init__(self, in_channels: int, channels: int, group: int, places: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(in_channels, channels, 3), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv(channels, channels, 3), nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = conv(channels, channels, 3), nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential(conv(in_channels, channels, 1), nn.BatchNorm2d(channels))
        self.relu = nn.LeakyReLU(0.1, inplace=True)
        self.pool = nn.MaxPool2d(2)
        # Drop path sits at the end of the branch either way; what drops parts of maps, in the branches or after them.
        self.site1: nn.Module = nn.Identity()
        self.site2: nn.Module = nn.Identity()
        self.site_skip: nn.Module = nn.Identity()
        self.site_out: nn.Module = nn.Identity()
        if places == "output":
            self.site3 = Site(group, "conv", "bn3", ends_branch=True, path_only=True)
            self.site_out = Site(group, "conv", "pool", note=OUTPUT_NOTE)
        else:
            self.site1 = Site(group, "conv", "relu(bn1)", note=BRANCHES_NOTE)
            self.site2 = Site(group, "conv", "relu(bn2)", note=BRANCHES_NOTE)
            self.site3 = Site(group, "conv", "bn3", ends_branch=True, note=BRANCHES_NOTE)
            self.site_skip = Site(group, "skip", "shortcut", ends_branch=True, note=BRANCHES_NOTE)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.site_skip(self.shortcut(x))
        x = self.site1(self.relu(self.bn1(self.conv1(x))))
        x = self.site2(self.relu(self.bn2(self.conv2(x))))
        x = self.site3(self.bn3(self.conv3(x)))
        return self.site_out(self.pool(self.relu(x + shortcut)))


class ResNet12(nn.Module):
    """ResNet-12 with a linear classifier on the mean of the last maps.

    Args:
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        width: channels of the first block (64 in few-shot code); the others have 2.5, 5 and 10 times as many.
        zero_gamma: start the last BN of every block at weight 0; few-shot code does not.
        places: `output` (after the pool of every block, as few-shot code has it) or `branches` (the DropBlock paper's:
            after each of the three BNs and on the shortcut).

    Input (N, in_channels, H, W) of 16 pixels a side or more (84 in few-shot code), output logits (N, num_classes).
    `stages` gives the maps of groups 1 ... 4, `features` those of the last.

    Raises:
        ValueError: for unknown places.
    """

    last_group = 4

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        width: int = 64,
        zero_gamma: bool = False,
        places: str = "output",
    ) -> None:
        super().__init__()
        if places not in PLACES:
            raise ValueError(f"unknown places '{places}', choose one of {', '.join(PLACES)}")
        self.num_classes = num_classes
        self.channels = (width, width * 5 // 2, width * 5, width * 10)
        self.strides = (2, 4, 8, 16)
        before = (in_channels, *self.channels)
        blocks = [Block(before[g], before[g + 1], g + 1, places) for g in range(4)]
        self.layer1, self.layer2, self.layer3, self.layer4 = blocks
        self.fc = nn.Linear(self.channels[-1], num_classes)

        # MetaOptNet's code: normal of variance 2 / fan-out, as for a ReLU of slope 0.01.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="leaky_relu", a=0.01)
            elif zero_gamma and isinstance(module, Block):
                nn.init.zeros_(module.bn3.weight)

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, in_channels, H, W) images -> the maps of groups 1 ... 4, (N, channels[g], h, w) each."""
        first = self.layer1(x)
        second = self.layer2(first)
        third = self.layer3(second)
        return first, second, third, self.layer4(third)

    def features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) images -> (N, C, h, w) maps of group 4, before pooling."""
        return self.stages(x)[-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.features(x), 1), 1))
