"""Dense prediction on a ResNet: a feature pyramid, and heads whose convolutions all levels share.

Follows the released code of the DropBlock paper (tensorflow/tpu@d2694ea, models/official/retinanet,
retinanet_architecture.py). One rule runs through it: a convolution may be shared by several levels, a batch
normalization never is, because the levels have different statistics.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from dropblock.sites import Site
from models.resnet import UNITS, ResNet

BN_EPS, BN_MOMENTUM = 1e-4, 0.003  # released code: epsilon 1e-4, decay 0.997


class PyramidNetwork(nn.Module):
    """A ResNet body without its classifier, a feature pyramid on C3-C5, and the heads that a subclass adds.

    Args:
        num_classes: classes; with the background where the task has one.
        in_channels: channels of the images.
        width: channels of the body's first group (64 in the paper).
        stem: the body's, see `models.resnet.ResNet`. `stride2` halves every stride of the network, `small` quarters it.
        zero_gamma: the last BN of every residual unit starts at weight 0.
        body: a ResNet by name; None takes the paper's for this network.
        fpn_width, head_width: channels of pyramid and heads.
        head_depth: convolutions with BN in each head; None takes the released code's for this network.
        bn_momentum: for every running statistic, body included. The released 0.003 needs thousands of steps; take 0.1
            for runs of a few hundred.
        freeze_stem: leave the kernel of the first convolution (and nothing else, its BN trains) as it starts, as the
            released fine-tuning does.

    Raises:
        ValueError: for an unknown body or stem, or a number out of range.
    """

    last_group = 4
    default_body: ClassVar[str]
    default_depth: ClassVar[int]
    coarse: ClassVar[bool]  # two further levels, P6 and P7; then the pyramid is resized by nearest neighbours

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        width: int = 64,
        stem: str = "imagenet",
        zero_gamma: bool = False,
        body: str | None = None,
        fpn_width: int = 256,
        head_width: int = 256,
        head_depth: int | None = None,
        bn_momentum: float = BN_MOMENTUM,
        freeze_stem: bool = False,
    ) -> None:
        super().__init__()
        body = self.default_body if body is None else body
        if body not in UNITS:
            raise ValueError(f"unknown body '{body}', choose one of {', '.join(UNITS)}")
        if not 0.0 < bn_momentum <= 1.0:
            raise ValueError(f"bn_momentum must lie in (0, 1], not {bn_momentum}")

        # The classifier's body; its last layer is taken out, so that its weights can come from a classifier's file.
        self.num_classes = num_classes
        self.body = ResNet(*UNITS[body], 1, in_channels, width, stem, zero_gamma)
        self.body.add_module("fc", nn.Identity())
        self.body.conv1.weight.requires_grad_(not freeze_stem)

        # Pyramid and heads, and the BN of the released code in all three parts.
        self.fpn = FeaturePyramid(self.body.channels[1:], fpn_width, coarse=self.coarse, bilinear=not self.coarse)
        self.add_heads(fpn_width, head_width, self.default_depth if head_depth is None else head_depth)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = BN_EPS, bn_momentum

    def add_heads(self, in_channels: int, width: int, depth: int) -> None:
        """Create the heads on the pyramid's maps of `in_channels` channels; in the order in which they are drawn."""
        raise NotImplementedError  # pragma: no cover

    def levels(self, x: Tensor) -> list[Tensor]:
        """(N, in_channels, H, W) images -> the maps of the pyramid, finest first."""
        return self.fpn(self.body.stages(x)[1:])


class FeaturePyramid(nn.Module):
    """C3, C4, C5 -> one map a level with `width` channels, each through the BN of its level (no ReLU).

    Args:
        channels: channels of C3, C4, C5.
        width: channels of every output.
        coarse: two further levels, each a 3x3 convolution of stride 2: P6 on P5, P7 on ReLU(P6), both taken before
            the BN of the level they read.
        bilinear: from the top down by bilinear resizing; otherwise by nearest neighbours.
    """

    def __init__(self, channels: Sequence[int], width: int, coarse: bool, bilinear: bool) -> None:
        super().__init__()
        _require_channels("fpn_width", width)
        from torchvision.ops import FeaturePyramidNetwork
        from torchvision.ops.feature_pyramid_network import LastLevelP6P7

        if coarse and bilinear:
            raise ValueError("a bilinear pyramid has no coarse levels")
        self.bilinear = bilinear
        # Equal widths in and out tell LastLevelP6P7 to read P5, not C5.
        self.fpn = FeaturePyramidNetwork(list(channels), width, LastLevelP6P7(width, width) if coarse else None)
        # torchvision starts all of them Kaiming-uniform with a = 1; that is Glorot only where in and out are equal.
        for lateral in self.fpn.inner_blocks:
            nn.init.xavier_uniform_(lateral[0].weight)
        self.levels = len(channels) + 2 * coarse
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(self.levels))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        if self.bilinear:
            outputs = bilinear_pyramid(self.fpn, maps)
        else:
            outputs = [*self.fpn(OrderedDict((str(level), x) for level, x in enumerate(maps))).values()]
        return [norm(x) for norm, x in zip(self.norms, outputs, strict=True)]


def bilinear_pyramid(fpn: Any, maps: Sequence[Tensor]) -> list[Tensor]:
    """torchvision's pyramid with bilinear resizing by position from the top down, for maps that do not halve.

    At 513 pixels the maps have 65, 33 and 17 pixels a side.
    """
    laterals = [lateral(x) for lateral, x in zip(fpn.inner_blocks, maps, strict=True)]
    for i in range(len(laterals) - 1, 0, -1):
        laterals[i - 1] = laterals[i - 1] + resize(laterals[i], laterals[i - 1], 2)
    return [conv(lateral) for conv, lateral in zip(fpn.layer_blocks, laterals, strict=True)]


def resize(x: Tensor, like: Tensor, factor: int) -> Tensor:
    """Bilinear resizing to the height and width of `like`, whose position `factor` j is position j of `x`.

    A convolution of stride 2 leaves the positions 0, 2, 4, ..., whatever the size. The released code aligns the corners
    instead; the two are the same where the last position is one of these, as at its 513 pixels. Beyond the last
    position of `x` its value stands.
    """
    height, width = (factor * (side - 1) + 1 for side in x.shape[-2:])
    between = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)
    if between.shape[-2:] == like.shape[-2:]:  # the released code's network, to the last bit
        return between
    return F.pad(between, (0, like.shape[-1] - width, 0, like.shape[-2] - height), mode="replicate")


class SharedTower(nn.Module):
    """`depth` times: 3x3 convolution with bias that all levels share, BN of the level, ReLU, site.

    A site is met once a level in each pass; it belongs to the group "head".

    Args:
        in_channels, width: channels of its input, and of everything behind the first convolution.
        depth: convolutions, >= 1.
        levels: maps that it is given.
        name: stands in the table of sites.
    """

    def __init__(self, in_channels: int, width: int, depth: int, levels: int, name: str) -> None:
        super().__init__()
        _require_channels("head_width", width)
        if depth < 1:
            raise ValueError(f"head_depth must be at least 1, not {depth}")
        self.convs = nn.ModuleList(head_conv(in_channels if i == 0 else width, width) for i in range(depth))
        self.norms = nn.ModuleList(nn.ModuleList(nn.BatchNorm2d(width) for _ in range(levels)) for _ in range(depth))
        self.sites = nn.ModuleList(Site("head", "conv", f"relu({name} bn{i + 1})") for i in range(depth))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """One (N, in_channels, h, w) map a level -> one (N, width, h, w) map a level."""
        outputs = list(maps)
        norms: Sequence[Callable[[Tensor], Tensor]]
        for conv, norms, site in zip(self.convs, self.norms, self.sites, strict=True):  # type: ignore[assignment]
            outputs = [
                site(F.relu(norm(conv(x)), inplace=True), level)
                for level, (norm, x) in enumerate(zip(norms, outputs, strict=True))
            ]
        return outputs


def _require_channels(option: str, width: int) -> None:
    if width < 1:
        raise ValueError(f"{option} must be at least 1, not {width}")


def head_conv(in_channels: int, out_channels: int, bias: float = 0.0) -> nn.Conv2d:
    """A 3x3 convolution as every head has it: weights N(0, 0.01), a constant bias."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.constant_(conv.bias, bias)  # type: ignore[arg-type]
    return conv
