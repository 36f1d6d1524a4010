"""`torchvision.ops.drop_block2d`, `drop_block3d`, `DropBlock2d` and `DropBlock3d` (signatures of torchvision 0.29).

`eps`, which torchvision adds to the count it divides by, is taken and not used: where nothing is kept the output is 0.
A block is clamped to each axis on its own, torchvision's to the shortest side.
"""

from __future__ import annotations

from torch import Tensor

from dropblock import functional, layers
from dropblock.compat import drop_rate, in_place


def drop_block2d(
    input: Tensor, p: float, block_size: int, inplace: bool = False, eps: float = 1e-06, training: bool = True
) -> Tensor:
    """Drop blocks of (N, C, H, W) maps; `p` is the share to drop, in [0, 1]. See `dropblock.drop_block2d`."""
    y = functional.drop_block2d(input, p=p, block_size=block_size, training=training and p != 0.0)
    return in_place(input, y, inplace)


def drop_block3d(
    input: Tensor, p: float, block_size: int, inplace: bool = False, eps: float = 1e-06, training: bool = True
) -> Tensor:
    """Drop blocks of (N, C, D, H, W) volumes; `p` is the share to drop, in [0, 1]. See `dropblock.drop_block3d`."""
    y = functional.drop_block3d(input, p=p, block_size=block_size, training=training and p != 0.0)
    return in_place(input, y, inplace)


class _DropBlock(layers._DropBlock):
    p = drop_rate

    def __init__(self, p: float, block_size: int, inplace: bool = False, eps: float = 1e-06) -> None:
        super().__init__(p=p, block_size=block_size)
        self.inplace, self.eps = inplace, eps

    def drop(self, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        y, kept = super().drop(x, seed)
        return in_place(x, y, self.inplace), kept

    def extra_repr(self) -> str:
        return f"p={self.p}, block_size={self.block_size}, inplace={self.inplace}"


class DropBlock2d(_DropBlock):
    """See `drop_block2d`; `p` may be set between steps."""

    axes = 2


class DropBlock3d(_DropBlock):
    """See `drop_block3d`; `p` may be set between steps."""

    axes = 3
