"""DropBlock in plain tensor operations, for devices without a kernel of their own.

As the reference, but the draws are counted: a hash of (seed, index) instead of a generator. So neither the seed nor
keep_prob ever leaves the device, and nothing waits for the host.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dropblock.rates import effective_block, seed_rate, valid_seeds
from dropblock.reference import keep_mask, select_scaled

# splitmix64 (Steele, Lea, Flood 2014): its step and its two multipliers, as signed 64-bit numbers.
STEP, FIRST, SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def mixed(z: Tensor) -> Tensor:
    """The finaliser of splitmix64: a bijection of int64 whose outputs look random on consecutive inputs."""
    for shift, factor in ((30, FIRST), (27, SECOND)):
        z = (z ^ shifted(z, shift)) * factor
    return z ^ shifted(z, 31)


def shifted(z: Tensor, by: int) -> Tensor:
    """Logical shift to the right: torch's own copies the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)


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
    index = torch.arange(math.prod(shape), device=x.device).view(shape)
    bits = shifted(mixed(index * STEP + mixed(seed)), 2)  # uniform on 0 ... 2^62 - 1
    gamma = (1.0 - keep_prob.float()).clamp(0.0, 1.0) * seed_rate(0.0, block_size, *size)
    mask = keep_mask(bits < (gamma * 2.0**62).long(), block)
    return mask.sum(), mask


def apply(x: Tensor, kept: Tensor, mask: Tensor, block_size: int) -> Tensor:
    """The output of the reference for this mask."""
    return select_scaled(x, mask, kept)
