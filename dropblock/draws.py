"""Random numbers as a function of a seed and a position: the same on every device, with no generator's state to keep.

A run that was stopped and goes on sets the same seeds and so draws the same masks. The seed is a tensor that the host
never reads, so a layer that draws here runs under `torch.compile(fullgraph=True)` and in CUDA graphs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

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


def random_bits(shape: tuple[int, ...], seed: Tensor) -> Tensor:
    """int64 of this shape, uniform on 0 ... 2^62 - 1, on the device of the seed (a 0-dimensional int64 tensor)."""
    index = torch.arange(math.prod(shape), device=seed.device).view(shape)
    return shifted(mixed(index * STEP + mixed(seed)), 2)


def random_mask(shape: tuple[int, ...], keep_prob: Tensor, seed: Tensor) -> Tensor:
    """Independent draws that are True with probability keep_prob.

    Args:
        shape: shape of the mask.
        keep_prob: share of True, in [0, 1]; a 0-dimensional tensor on the device of the seed, or one that broadcasts to
            the shape.
        seed: 0-dimensional int64 tensor. `seed + 1` gives draws that are independent of these.

    Returns:
        bool tensor of this shape.
    """
    return random_bits(shape, seed) < (keep_prob.float().clamp(0.0, 1.0) * 2.0**62).long()


def random_uniform(shape: tuple[int, ...], seed: Tensor) -> Tensor:
    """Independent float32 draws, uniform on [0, 1) in steps of 2^-24.

    Args:
        shape: shape of the result.
        seed: 0-dimensional int64 tensor. `seed + 1` gives draws that are independent of these.
    """
    return (random_bits(shape, seed) >> 38).float() * 2.0**-24
