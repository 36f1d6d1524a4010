"""What the dense tasks put on a ResNet: a feature pyramid, and heads whose convolutions all levels share.

Follows the released code of the DropBlock paper (tensorflow/tpu@d2694ea, models/official/retinanet,
retinanet_architecture.py). One rule runs through it: a convolution may be shared by several levels, a batch
normalization never is, because the levels have different statistics.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from dropblock.sites import Site
from models.resnet import UNITS, ResNet

BN_EPS, BN_MOMENTUM = 1e-4, 0.003  # released code: epsilon 1e-4, decay 0.997


def resnet_body(name: str, in_channels: int, width: int, stem: str, zero_gamma: bool, freeze_stem: bool) -> ResNet:
    """A ResNet without its classifier.

    With `freeze_stem` the kernel of the first convolution (and nothing else, its BN trains) keeps its first value, as
    the released code has it in fine-tuning.

    Raises:
        ValueError: for an unknown name or stem.
    """
    if name not in UNITS:
        raise ValueError(f"unknown body '{name}', choose one of {', '.join(UNITS)}")
    body = ResNet(*UNITS[name], num_classes=1, in_channels=in_channels, width=width, stem=stem, zero_gamma=zero_gamma)
    body.add_module("fc", nn.Identity())
    body.conv1.weight.requires_grad_(not freeze_stem)
    return body


class BilinearFeaturePyramid(FeaturePyramidNetwork):
    """torchvision's pyramid with bilinear resizing (corners aligned) from the top down, for maps that do not halve.

    At 513 pixels the maps have 65, 33 and 17 pixels a side.
    """

    def forward(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        laterals = [lateral(maps) for lateral, maps in zip(self.inner_blocks, x.values(), strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + resize(laterals[i], laterals[i - 1])
        outputs = [conv(lateral) for conv, lateral in zip(self.layer_blocks, laterals, strict=True)]
        return OrderedDict(zip(x, outputs, strict=True))


def resize(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear resizing to the height and width of `like`, corners aligned."""
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=True)


class FeaturePyramid(nn.Module):
    """C3, C4, C5 -> one map a level with `width` channels, each through the BN of its level (no ReLU).

    Args:
        channels: of C3, C4, C5.
        width: channels of every output.
        coarse: two further levels, each a 3x3 convolution of stride 2: P6 on P5, P7 on ReLU(P6), both taken before
            the BN of the level they read.
        bilinear: from the top down by bilinear resizing with aligned corners; otherwise by nearest neighbours.
    """

    def __init__(self, channels: Sequence[int], width: int, coarse: bool, bilinear: bool) -> None:
        super().__init__()
        _require_channels("fpn_width", width)
        if coarse and bilinear:
            raise ValueError("a bilinear pyramid has no coarse levels")
        pyramid = BilinearFeaturePyramid if bilinear else FeaturePyramidNetwork
        # Equal widths in and out tell LastLevelP6P7 to read P5, not C5.
        self.fpn = pyramid(list(channels), width, LastLevelP6P7(width, width) if coarse else None)
        # torchvision starts all of them Kaiming-uniform with a = 1; that is Glorot only where in and out are equal.
        for lateral in self.fpn.inner_blocks:
            nn.init.xavier_uniform_(lateral[0].weight)
        self.levels = len(channels) + 2 * coarse
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(self.levels))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        named = OrderedDict((str(level), x) for level, x in enumerate(maps))
        return [norm(x) for norm, x in zip(self.norms, self.fpn(named).values(), strict=True)]


class SharedTower(nn.Module):
    """`depth` times: 3x3 convolution with bias that all levels share, BN of the level, ReLU, site.

    A site is met once a level in each pass; it belongs to the group "head".

    Args:
        in_channels, width: of its input, and of everything behind the first convolution.
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
            outputs = [site(F.relu(norm(conv(x)), inplace=True)) for norm, x in zip(norms, outputs, strict=True)]
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


def set_batch_norm(model: nn.Module, momentum: float) -> None:
    """The released detection code's epsilon, and this momentum, for every BN of body, pyramid and head.

    Raises:
        ValueError: for a momentum outside (0, 1].
    """
    if not 0.0 < momentum <= 1.0:
        raise ValueError(f"bn_momentum must lie in (0, 1], not {momentum}")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = BN_EPS, momentum
