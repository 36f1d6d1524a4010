"""DropBlock in plain tensor operations, for devices without a kernel of their own.

As the reference, but drawn by a hash of (seed, index) instead of a generator (`draws`). So neither the seed nor
keep_prob ever leaves the device, and nothing waits for the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dropblock.draws import random_bits
from dropblock.rates import effective_block, seed_rate, valid_seeds
from dropblock.reference import keep_mask, select_scaled


def draw(x: Tensor, keep_prob: Tensor, block_size: int, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Draw the mask of a batch without leaving the device.

    Returns:
        number of kept units, 0-dimensional int64; and the mask, bool, shape of `x`, True where a unit is kept.
    """
    n, c, *size = x.shape
    if x.numel() == 0:
        return torch.zeros((), dtype=torch.int64, device=x.device), torch.ones_like(x, dtype=torch.bool)
    block = effective_block(block_size, *size)
    shape = (n, c, *valid_seeds(tuple(size), block))
    gamma = (1.0 - keep_prob.float()).clamp(0.0, 1.0) * seed_rate(0.0, block_size, *size)
    mask = keep_mask(random_bits(shape, seed) < (gamma * 2.0**62).long(), block)
    return mask.sum(), mask


def apply(x: Tensor, kept: Tensor, mask: Tensor, block_size: int) -> Tensor:
    """The output of the reference for this mask."""
    return select_scaled(x, mask, kept)
