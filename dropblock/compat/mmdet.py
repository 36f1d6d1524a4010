"""`DropBlock`, the plugin of mmdet's ResNet (signature of mmdet/models/plugins/dropblock.py in mmdetection 2 and 3)."""

from __future__ import annotations

from torch import Tensor

from dropblock import layers
from dropblock.compat.shared_mask import drop_rate
from dropblock.layers import in_backward


class DropBlock(layers.DropBlock2d):
    """Drop blocks of (N, C, H, W) maps, at a rate that grows linearly over the first forward passes in training.

    Args:
        drop_prob: share to drop after the warm-up, in (0, 1].
        block_size: side of a block; clamped to the map per axis.
        warmup_iters: length of the warm-up in forward passes, >= 0; pass i of them drops drop_prob * i / warmup_iters.
        unused: a plugin's further arguments, such as `in_channels`.

    Raises:
        ValueError: for a value out of range.
    """

    rate_now = drop_rate

    def __init__(self, drop_prob: float, block_size: int, warmup_iters: int = 2000, **unused: object) -> None:
        if not 0.0 < drop_prob <= 1.0:
            raise ValueError(f"drop_prob must lie in (0, 1], not {drop_prob}")
        if warmup_iters < 0:
            raise ValueError(f"warmup_iters must be at least 0, not {warmup_iters}")
        super().__init__(drop_prob=drop_prob, block_size=block_size)
        self.drop_prob, self.warmup_iters, self.iter_cnt = drop_prob, warmup_iters, 0

    def drop(self, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        if not in_backward():  # a recomputed pass has the rate of its first time
            self.iter_cnt += 1
            self.rate_now = self.drop_prob * min(1.0, self.iter_cnt / max(1, self.warmup_iters))
        return super().drop(x, seed)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob}, block_size={self.block_size}, warmup_iters={self.warmup_iters}"
