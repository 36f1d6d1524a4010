"""DropBlock as people use it, beside ours, as functions of one tensor."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor, nn

from dropblock import drop_block2d

Layer = Callable[[Tensor], Tensor]
FLOOR, DROPOUT = "x * scalar", "nn.Dropout"
OURS = "dropblock (this)"


def contestants(keep_prob: float, block_size: int, device: str) -> dict[str, Layer]:
    """By name. x * scalar is the memory-bandwidth bound: it reads x once and writes y once, as all must."""
    kept = torch.tensor(keep_prob, device=device)
    layers: dict[str, Layer] = {
        FLOOR: lambda x: x * 1.11,
        OURS: lambda x: drop_block2d(x, keep_prob=kept, block_size=block_size),
        "torchvision": torchvision_layer(keep_prob, block_size),
        DROPOUT: nn.Dropout(1.0 - keep_prob),
    }
    if importlib.util.find_spec("timm"):
        layers["timm, per channel"] = timm_layer(keep_prob, block_size)
    return layers


def torchvision_layer(keep_prob: float, block_size: int) -> Layer:
    from torchvision.ops import drop_block2d as theirs

    return lambda x: theirs(x, 1.0 - keep_prob, block_size)


def timm_layer(keep_prob: float, block_size: int) -> Layer:
    """With a mask for every channel, as in the paper; by default timm shares one."""
    from timm.layers.drop import DropBlock2d

    layer: Layer = DropBlock2d(1.0 - keep_prob, block_size, couple_channels=False)
    return layer


def forward_and_backward(layer: Layer, x: Tensor, gradient: Tensor) -> Callable[[], object]:
    """One call: forward, then the gradient of the input."""
    return lambda: torch.autograd.grad(layer(x), x, gradient)


@torch.no_grad()
def measured_drop(layer: Layer, shape: tuple[int, ...], device: str, units: float = 4e6) -> float:
    """The share of ones that a layer zeroes, over at least this many units."""
    x = torch.ones(shape, device=device)
    calls = max(1, round(units / x.numel()))
    return sum(float((layer(x) == 0).float().mean()) for _ in range(calls)) / calls
