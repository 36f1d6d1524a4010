"""DropBlock written to be read: the definition that every faster backend is tested against.

Paper: Ghiasi, Lin, Le, "DropBlock: A regularization method for convolutional networks", NeurIPS 2018,
arXiv 1810.12890, Algorithm 1. Where the paper is silent (block larger than the map, even blocks, scope of the
normaliser, arithmetic under bfloat16) this follows the authors' released TPU code. One and three axes are the same
rule with fewer or more factors.

The end of this file is the same in the form of a backend, for devices without a kernel of their own.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from dropblock.draws import random_bits
from dropblock.rates import effective_block, seed_rate, valid_seeds

MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def drop_block_reference(
    x: Tensor, *, keep_prob: float, block_size: int, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of the paper on a whole batch, one independent mask per sample and channel.

    Args:
        x: (N, C, ...) floating point, with one to three further axes.
        keep_prob: share of units to keep, in [0, 1].
        block_size: side of a block, >= 1, clamped to the map per axis before gamma is computed.
        generator: source of the draws; None means torch's default one.

    Returns:
        (output like `x`, number of kept units as a 0-dimensional int64 tensor).
    """
    n, c, *size = x.shape
    block = effective_block(block_size, *size)
    gamma = seed_rate(keep_prob, block_size, *size)
    # float32 draws whatever the type of x: in bfloat16 1 - gamma rounds to 1 and nothing would be dropped in group 3.
    noise = torch.rand(n, c, *valid_seeds(tuple(size), block), generator=generator, device=x.device)
    return apply_mask(x, keep_mask(noise < gamma, block))


def keep_mask(seeds: Tensor, block: tuple[int, ...]) -> Tensor:
    """Grow every seed to a whole block of zeros.

    Args:
        seeds: (N, C, *valid) bool with valid = side - b + 1 along each axis, True where a block starts. A seed marks
            the corner of its block nearest the origin, so at every seed of this shape a whole block fits, for odd and
            even blocks alike.
        block: b along each axis.

    Returns:
        (N, C, *size) bool, True where a unit is kept.
    """
    around = [b - 1 for b in reversed(block) for _ in range(2)]
    return MAX_POOL[len(block)](F.pad(seeds.float(), around), block, stride=1) == 0


def apply_mask(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """`select_scaled` with the number of kept units: the two results of a layer with a mask of its own.

    Args:
        x: (N, C, ...) floating point.
        mask: bool, shape of `x`, True where a unit is kept.

    Returns:
        (output like `x`, number of kept units as a 0-dimensional int64 tensor).
    """
    kept = mask.sum()
    return select_scaled(x, mask, kept), kept


def select_scaled(x: Tensor, mask: Tensor, kept: Tensor) -> Tensor:
    """Zero the dropped units and rescale the kept ones by count(M) / count_ones(M): one scalar for the whole tensor.

    The product is formed in float32 (float64 for float64 input) and rounded once to the type of `x`. Dropped units are
    selected away, not multiplied, so a NaN inside a block comes out as 0. If nothing is kept the output is zeros.

    Args:
        x: (N, C, ...) floating point.
        mask: bool, shape of `x`.
        kept: number of True in the mask, a 0-dimensional tensor.
    """
    exact = torch.promote_types(x.dtype, torch.float32)
    # A tensor divided by a tensor: number / tensor would multiply by a rounded reciprocal.
    scale = (torch.full_like(kept, mask.numel(), dtype=torch.float64) / kept.clamp(min=1)).to(exact)
    return (x.to(exact) * scale).to(x.dtype).masked_fill_(~mask, 0)


# The dense backend: drawn by a hash of (seed, index) instead of a generator, so neither the seed nor keep_prob ever
# leaves the device, and nothing waits for the host.


def dense_draw(x: Tensor, keep_prob: Tensor, block_size: int, seed: Tensor) -> tuple[Tensor, Tensor]:
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


def dense_apply(x: Tensor, kept: Tensor, mask: Tensor, block_size: int) -> Tensor:
    """The output of the reference for this mask."""
    return select_scaled(x, mask, kept)
