"""DropBlock as a function. One law, computed in the way that suits the device."""

from __future__ import annotations

import torch
from torch import Tensor

from dropblock.law import effective_block, seed_rate
from dropblock.operator import drop, drop_in_graph, path_for


def fresh_seed(device: torch.device) -> Tensor:
    """A mask seed from torch's default generator of the device (so `torch.manual_seed` governs it)."""
    return torch.randint(2**62, (), device=device)


def drop_block2d(
    x: Tensor, keep_prob: float | Tensor, block_size: int, training: bool = True, seed: Tensor | None = None
) -> Tensor:
    """Drop whole blocks of feature maps (Ghiasi, Lin, Le 2018, Algorithm 1).

    Every sample and channel has a mask of its own; blocks lie inside the map; kept units are scaled by one number,
    count / count of kept, in float32; dropped units are 0 even where `x` is NaN.

    Args:
        x: (N, C, H, W) floating point.
        keep_prob: in [0, 1], a number or a 0-dimensional tensor.
        block_size: side of a block, >= 1; clamped to the map per axis first.
        training: if False, `x` is returned as it is.
        seed: 0-dimensional int64 tensor that fixes the mask; None draws one from torch's default generator.

    Returns:
        a tensor like `x`.

    Raises:
        ValueError: for another number of dimensions or an invalid keep_prob or block_size.
        TypeError: if `x` is not floating point.
    """
    if not training:
        return x
    if isinstance(keep_prob, Tensor):
        keep_prob = keep_prob.to(x.device)
    else:
        seed_rate(keep_prob, 1, 1, 1)
        keep_prob = torch.tensor(keep_prob, dtype=torch.float32, device=x.device)
    seed = fresh_seed(x.device) if seed is None else seed.to(x.device)
    return drop_block2d_counted(x, keep_prob, block_size, seed)[0]


def drop_block2d_counted(x: Tensor, keep_prob: Tensor, block_size: int, seed: Tensor) -> tuple[Tensor, Tensor]:
    """`drop_block2d` in training, together with the number of kept units (0-dimensional int64 tensor).

    On one kind of device the result is a function of the arguments alone: not of the memory layout of `x`, nor of the
    number of threads, nor of any generator's state. `keep_prob` and `seed` are 0-dimensional tensors on the device of
    `x`; on a GPU they are not read by the host, so a keep_prob outside [0, 1] is clamped there instead of refused.
    """
    if x.ndim != 4:
        raise ValueError(f"DropBlock takes (N, C, H, W) maps, not a tensor of shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"DropBlock takes floating point maps, not {x.dtype}")
    effective_block(block_size, 1, 1)
    if torch.compiler.is_compiling():
        return drop_in_graph(x, keep_prob, block_size, seed)
    return drop(path_for(x.device), x, keep_prob, block_size, seed)
