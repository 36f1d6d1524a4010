"""What the other signatures need besides the operator: a mask for all channels, a rate to drop, in-place results."""

from __future__ import annotations

import torch
from torch import Tensor

from dropblock.arguments import share_to_keep
from dropblock.functional import drop_block_counted
from dropblock.layers import DropLayer


def drawn_mask(x: Tensor, keep_prob: Tensor, block_size: int, seed: Tensor, shared: bool) -> tuple[Tensor, Tensor]:
    """The operator on ones.

    Returns:
        0 where a unit is dropped, else the normaliser: float32, (N, 1, *size) if all channels share it, else the shape
        of `x`; and the number of units of `x` that are kept.
    """
    ones = torch.ones_like(x[:, :1] if shared else x, dtype=torch.float32)
    mask, kept = drop_block_counted(ones, keep_prob=keep_prob, block_size=block_size, seed=seed)
    return mask, kept * x.shape[1] if shared else kept


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """x * mask, formed in float32 at least and rounded once; 0 where the mask is 0, whatever `x` is there."""
    exact = torch.promote_types(x.dtype, torch.float32)
    return (x.to(exact) * mask).to(x.dtype).masked_fill(mask == 0, 0)


def in_place(x: Tensor, y: Tensor, wanted: bool) -> Tensor:
    """`y`, or `x` with its values."""
    return x.copy_(y) if wanted and y is not x else y


def _rate(layer: DropLayer) -> float:
    return round(1.0 - float(layer.keep_prob), 6)  # 1 - float32 has six digits


def _set_rate(layer: DropLayer, rate: float) -> None:
    layer.keep_prob.fill_(float(share_to_keep(type(layer).__name__, None, None, rate)))


# 1 - keep_prob as an attribute that may be set between steps: `p` and `drop_prob` of the other libraries.
drop_rate = property(_rate, _set_rate)
