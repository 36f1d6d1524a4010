"""`timm.layers.drop_block_2d` and `DropBlock2d` (signatures of timm 1.0.31).

All channels share a mask unless `couple_channels=False`, as there. The rate is the one asked for: timm takes gamma for
seeds in the valid region and draws them everywhere, which drops 21 % for 10 % on 14x14 maps and 93 % on 7x7.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from dropblock import layers
from dropblock.compat import drop_rate, in_place
from dropblock.functional import check_maps, drop_block_counted, fresh_seed, scalar, share_to_keep

REMOVED = ("batchwise", "fast")  # arguments that timm took before 1.0.23 and still swallows


def drop_block_2d(
    x: Tensor,
    drop_prob: float = 0.1,
    block_size: int = 7,
    gamma_scale: float = 1.0,
    with_noise: bool = False,
    inplace: bool = False,
    couple_channels: bool = True,
    scale_by_keep: bool = True,
) -> Tensor:
    """Drop blocks of (N, C, H, W) maps.

    Args:
        x: (N, C, H, W) floating point.
        drop_prob: share to drop, in [0, 1].
        block_size: side of a block; clamped to the map per axis.
        gamma_scale: factor on the rate of seeds.
        with_noise: put standard normal noise where units are dropped, and leave the others unscaled.
        inplace: write the result into `x`.
        couple_channels: one mask for all channels of a sample.
        scale_by_keep: scale kept units by count / kept.
    """
    check_maps("drop_block_2d", x, 2)
    keep_prob = scalar(share_to_keep("drop_block_2d", None, None, drop_prob), x.device)
    keep_prob = scaled(keep_prob, gamma_scale)
    y, _ = _dropped(x, keep_prob, block_size, fresh_seed(x.device), with_noise, couple_channels, scale_by_keep)
    return in_place(x, y, inplace)


def scaled(keep_prob: Tensor, gamma_scale: float) -> Tensor:
    """The share to keep at which gamma is `gamma_scale` times as large."""
    return keep_prob if gamma_scale == 1.0 else (1.0 - gamma_scale * (1.0 - keep_prob)).clamp(0.0, 1.0)


def _dropped(
    x: Tensor,
    keep_prob: Tensor,
    block_size: int,
    seed: Tensor,
    with_noise: bool,
    couple_channels: bool,
    scale_by_keep: bool,
) -> tuple[Tensor, Tensor]:
    if not (couple_channels or with_noise) and scale_by_keep:
        return drop_block_counted(x, keep_prob=keep_prob, block_size=block_size, seed=seed)
    # The operator on ones is the mask: 0 where a unit is dropped, else the normaliser.
    ones = torch.ones_like(x[:, :1] if couple_channels else x, dtype=torch.float32)
    mask, kept = drop_block_counted(ones, keep_prob=keep_prob, block_size=block_size, seed=seed)
    kept = kept * x.shape[1] if couple_channels else kept
    if with_noise:
        noise = torch.randn_like(mask).to(x.dtype)
        return torch.where(mask == 0, noise, x), kept
    # Formed in float32 at least and rounded once; selected, not multiplied by 0, which would leave a NaN a NaN.
    exact = torch.promote_types(x.dtype, torch.float32)
    factor = mask if scale_by_keep else (mask != 0).to(mask.dtype)
    return (x.to(exact) * factor).to(x.dtype).masked_fill(mask == 0, 0), kept


class DropBlock2d(layers.DropBlock2d):
    """See `drop_block_2d`; `drop_prob` may be set between steps."""

    drop_prob = drop_rate

    def __init__(
        self,
        drop_prob: float = 0.1,
        block_size: int = 7,
        gamma_scale: float = 1.0,
        with_noise: bool = False,
        inplace: bool = False,
        couple_channels: bool = True,
        scale_by_keep: bool = True,
        **removed: object,
    ) -> None:
        super().__init__(drop_prob=drop_prob, block_size=block_size)
        for name in removed:
            if name not in REMOVED:
                warnings.warn(f"DropBlock2d does not know the argument {name!r}", stacklevel=2)
        self.gamma_scale, self.with_noise, self.inplace = gamma_scale, with_noise, inplace
        self.couple_channels, self.scale_by_keep = couple_channels, scale_by_keep

    def drop(self, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        check_maps("DropBlock2d", x, 2)
        keep_prob = scaled(self.keep_prob, self.gamma_scale)
        how = {"couple_channels": self.couple_channels, "scale_by_keep": self.scale_by_keep}
        y, kept = _dropped(x, keep_prob, self.block_size, seed, self.with_noise, **how)
        return in_place(x, y, self.inplace), kept

    def seed_rate(self, keep_prob: float, *size: int) -> float:
        return super().seed_rate(float(scaled(torch.tensor(keep_prob), self.gamma_scale)), *size)

    def expected_drop(self, keep_prob: float, *size: int) -> float:
        return super().expected_drop(float(scaled(torch.tensor(keep_prob), self.gamma_scale)), *size)

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob}, block_size={self.block_size}, couple_channels={self.couple_channels}"
