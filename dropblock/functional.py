"""DropBlock as a function, for maps with one, two or three axes."""

from __future__ import annotations

import torch
from torch import Tensor

from dropblock.arguments import BLOCK_SIZE, check_maps, refuse_positional, scalar, share_to_keep
from dropblock.graph_node import drop_in_graph, wanted
from dropblock.operator import backend_for, drop
from dropblock.rates import effective_block

Rate = float | Tensor | None


def fresh_seed(device: torch.device) -> Tensor:
    """A mask seed from torch's default generator of the device (so `torch.manual_seed` governs it)."""
    return torch.randint(2**62, (), device=device)


def drop_block1d(
    x: Tensor,
    *positional: object,
    keep_prob: Rate = None,
    block_size: int = BLOCK_SIZE,
    training: bool = True,
    seed: Tensor | None = None,
    p: Rate = None,
    drop_prob: Rate = None,
) -> Tensor:
    """`drop_block2d` for (N, C, L) signals: runs of `block_size` neighbours are dropped."""
    refuse_positional("drop_block1d", positional)
    kept = share_to_keep("drop_block1d", keep_prob, p, drop_prob)
    return _drop_block("drop_block1d", 1, x, kept, block_size, training, seed)


def drop_block2d(
    x: Tensor,
    *positional: object,
    keep_prob: Rate = None,
    block_size: int = BLOCK_SIZE,
    training: bool = True,
    seed: Tensor | None = None,
    p: Rate = None,
    drop_prob: Rate = None,
) -> Tensor:
    """Drop whole blocks of feature maps (Ghiasi, Lin, Le 2018, Algorithm 1).

    Every sample and channel has a mask of its own; blocks lie inside the map; kept units are scaled by one number,
    count / count of kept, in float32; dropped units are 0 even where `x` is NaN. All arguments but `x` go by name, as
    other libraries have a drop rate where this one has keep_prob.

    Args:
        x: (N, C, H, W) floating point.
        keep_prob: in [0, 1], a number or a 0-dimensional tensor; 0.9 if no rate is given.
        block_size: side of a block, >= 1; clamped to the map per axis first.
        training: if False, `x` is returned as it is.
        seed: 0-dimensional int64 tensor that fixes the mask; None draws one from torch's default generator.
        p, drop_prob: the same rate as a share to drop, 1 - keep_prob. One of the three may be given.

    Returns:
        a tensor like `x`.

    Raises:
        ValueError: for another number of dimensions or a keep_prob or block_size out of range. A tensor as keep_prob is
            not read on a GPU, but clamped.
        TypeError: for a rate by position, more than one rate, or a type that does not fit.
    """
    refuse_positional("drop_block2d", positional)
    kept = share_to_keep("drop_block2d", keep_prob, p, drop_prob)
    return _drop_block("drop_block2d", 2, x, kept, block_size, training, seed)


def drop_block3d(
    x: Tensor,
    *positional: object,
    keep_prob: Rate = None,
    block_size: int = BLOCK_SIZE,
    training: bool = True,
    seed: Tensor | None = None,
    p: Rate = None,
    drop_prob: Rate = None,
) -> Tensor:
    """`drop_block2d` for (N, C, D, H, W) volumes and videos: cubes of side `block_size` are dropped."""
    refuse_positional("drop_block3d", positional)
    kept = share_to_keep("drop_block3d", keep_prob, p, drop_prob)
    return _drop_block("drop_block3d", 3, x, kept, block_size, training, seed)


def _drop_block(
    name: str, axes: int, x: Tensor, keep_prob: float | Tensor, block_size: int, training: bool, seed: Tensor | None
) -> Tensor:
    check_maps(name, x, axes)
    effective_block(block_size)
    if not training:
        return x
    seed = fresh_seed(x.device) if seed is None else seed.to(x.device)
    return checked_drop(x, scalar(keep_prob, x.device), block_size, seed)[0]


def drop_block_counted(x: Tensor, *, keep_prob: Tensor, block_size: int, seed: Tensor) -> tuple[Tensor, Tensor]:
    """`drop_block1d`, `2d` or `3d` in training, with the number of kept units (0-dimensional int64 tensor).

    On one kind of device the result is a function of the arguments alone: not of the memory layout of `x`, nor of the
    number of threads, nor of any generator's state. `keep_prob` and `seed` are 0-dimensional tensors on the device of
    `x`; on a GPU they are not read by the host, so a keep_prob outside [0, 1] is clamped there instead of refused.
    """
    check_maps("DropBlock", x, 1, 2, 3)
    effective_block(block_size)
    return checked_drop(x, keep_prob, block_size, seed)


def checked_drop(x: Tensor, keep_prob: Tensor, block_size: int, seed: Tensor) -> tuple[Tensor, Tensor]:
    """`drop_block_counted` for callers that have checked `x` and `block_size`."""
    if wanted():
        return drop_in_graph(x, keep_prob, block_size, seed)
    return drop(backend_for(x), x, keep_prob, block_size, seed)
