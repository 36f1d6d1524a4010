"""DropBlock as a function; it computes what `drop_block_reference` in `reference.py` defines in 25 lines.

A call is checked here, then `operator.drop` has the backend of the device draw the mask and apply it; under
torch.compile and the transforms of torch.func both together are one node (`graph_node`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from numbers import Real
from types import FunctionType
from typing import Any, Concatenate, ParamSpec

import torch
from torch import Tensor

from dropblock.graph_node import drop_in_graph, wanted
from dropblock.operator import backend_for, drop
from dropblock.rates import effective_block

P = ParamSpec("P")
Rate = float | Tensor | None
MAPS = {1: "(N, C, L)", 2: "(N, C, H, W)", 3: "(N, C, D, H, W)"}
KEEP_PROB, BLOCK_SIZE = 0.9, 7  # the paper's best on ImageNet


def _drop_block(
    axes: int,
    x: Tensor,
    *positional: object,
    keep_prob: Rate = None,
    block_size: int = BLOCK_SIZE,
    training: bool = True,
    seed: Tensor | int | None = None,
    p: Rate = None,
    drop_prob: Rate = None,
) -> Tensor:
    """Drop whole blocks of feature maps (Ghiasi, Lin, Le 2018, Algorithm 1).

    Every sample and channel has a mask of its own; blocks lie inside the map; kept units are scaled by one number,
    count / count of kept, in float32; dropped units are 0 even where `x` is NaN. All arguments but `x` go by name, as
    other libraries have a drop rate where this one has keep_prob.

    Args:
        x: (N, C, H, W) floating point.
        keep_prob: share of units to keep, in [0, 1], a number or a 0-dimensional tensor; 0.9 if no rate is given.
        block_size: side of a block, >= 1; clamped to the map per axis first.
        training: if False, `x` is returned as it is.
        seed: whole number or 0-dimensional int64 tensor that fixes the mask; None: from torch's default generator.
        p, drop_prob: the same rate as a share to drop, 1 - keep_prob. One of the three may be given.

    Returns:
        a tensor like `x`.

    Raises:
        ValueError: for another number of dimensions or a keep_prob or block_size out of range. A tensor as keep_prob is
            not read on a GPU, but clamped.
        TypeError: for a rate by position, more than one rate, or a type that does not fit.
    """
    name = f"drop_block{axes}d"
    refuse_positional(name, positional)
    kept = share_to_keep(name, keep_prob, p, drop_prob)
    check_maps(name, x, axes)
    effective_block(block_size)
    if not training:
        return x
    seed = seed_on(x.device, seed)
    return checked_drop(x, scalar(kept, x.device), block_size, seed)[0]


def _for_maps_with(
    axes: int, function: Callable[Concatenate[int, P], Tensor], doc: str | None = None
) -> Callable[P, Tensor]:
    """The public function for one number of axes, with the signature of `function` but the first argument."""
    inner: Any = FunctionType(function.__code__, function.__globals__)  # under the public name, which errors then show
    inner.__kwdefaults__, inner.__qualname__ = function.__kwdefaults__, f"drop_block{axes}d"

    @functools.wraps(function)
    def drop_block(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        return inner(axes, *args, **kwargs)

    signature = inspect.signature(function)
    drop_block.__signature__ = signature.replace(parameters=[*signature.parameters.values()][1:])  # type: ignore[attr-defined]
    drop_block.__name__ = drop_block.__qualname__ = f"drop_block{axes}d"
    drop_block.__doc__ = doc or function.__doc__
    return drop_block


drop_block2d = _for_maps_with(2, _drop_block)
drop_block1d = _for_maps_with(
    1, _drop_block, "`drop_block2d` for (N, C, L) signals: runs of `block_size` neighbours are dropped."
)
drop_block3d = _for_maps_with(
    3, _drop_block, "`drop_block2d` for (N, C, D, H, W) volumes and videos: cubes of side `block_size` are dropped."
)


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


def fresh_seed(device: torch.device) -> Tensor:
    """A mask seed from torch's default generator of the device (so `torch.manual_seed` governs it)."""
    return torch.randint(2**62, (), device=device)


def seed_on(device: torch.device, seed: Tensor | int | None) -> Tensor:
    """A given mask seed as a tensor on the device, a fresh one for None.

    Raises:
        TypeError: for a seed that is no whole number.
    """
    if seed is None:
        return fresh_seed(device)
    if isinstance(seed, int):
        return torch.tensor(seed, dtype=torch.int64, device=device)
    if not isinstance(seed, Tensor):
        raise TypeError(f"seed must be a whole number or an int64 tensor, not {seed!r}")
    return seed.to(device)


# The checks below are shared by functions and layers; errors name what was given and what is expected.


def refuse_positional(name: str, given: tuple[object, ...]) -> None:
    """Refuse a rate by position: other libraries have a drop rate where this one has keep_prob.

    Raises:
        TypeError: if anything was given by position.
    """
    if given:
        raise TypeError(
            f"{name} takes its rate and its options by name, not {', '.join(map(repr, given))} by position: "
            "keep_prob=0.9 is the share to keep, p=0.1 the same as a drop rate"
        )


def refuse_unknown(name: str, rate: dict[str, Rate]) -> None:
    """Refuse other keywords than those of the rate, under the name of the public class.

    Raises:
        TypeError: for any.
    """
    for key in rate.keys() - {"keep_prob", "p", "drop_prob"}:
        raise TypeError(f"{name}.__init__() got an unexpected keyword argument '{key}'")


def share_to_keep(name: str, keep_prob: Rate, p: Rate, drop_prob: Rate) -> float | Tensor:
    """keep_prob, or 1 - the drop rate; 0.9 if nothing was given.

    Raises:
        ValueError: outside [0, 1] (a tensor is not looked at), or a tensor with axes.
        TypeError: for something that is no number, or more than one of the three.
    """
    rates = (("keep_prob", keep_prob), ("p", p), ("drop_prob", drop_prob))
    given = {key: rate for key, rate in rates if rate is not None}
    if not given:
        return KEEP_PROB
    if len(given) > 1:
        raise TypeError(f"{name} takes one of keep_prob=, p= and drop_prob=, not {' and '.join(given)}")
    [(key, rate)] = given.items()
    if isinstance(rate, Tensor):
        if rate.ndim:
            raise ValueError(f"{key} must be a number or a 0-dimensional tensor, not of shape {tuple(rate.shape)}")
    elif not is_number(rate):
        raise TypeError(f"{key} must be a number in [0, 1], not {rate!r}")
    elif not 0.0 <= rate <= 1.0:
        raise ValueError(f"{key} must lie in [0, 1], not {rate}")
    return rate if key == "keep_prob" else 1.0 - rate


def is_number(value: object) -> bool:
    """True for real numbers, False and True excluded."""
    return isinstance(value, Real) and not isinstance(value, bool)


def as_number(rate: Rate) -> Rate:
    """A rate that the host may read, so that it can be checked."""
    return float(rate) if isinstance(rate, Tensor) and rate.ndim == 0 else rate


def scalar(keep_prob: float | Tensor, device: torch.device) -> Tensor:
    """A share as the operators take it: 0-dimensional, float32 where it was a number, on the device."""
    if isinstance(keep_prob, Tensor):
        return keep_prob.to(device)
    return torch.tensor(keep_prob, dtype=torch.float32, device=device)


def check_maps(name: str, x: Any, *axes: int) -> None:
    """Check that `x` is a floating point tensor (N, C, *size) with one of these numbers of axes in size.

    Raises:
        ValueError: for another number of dimensions.
        TypeError: if `x` is no floating point tensor of 16 bits and more, or one that is distributed or nested.
    """
    distributed = type(x).__name__ == "DTensor"  # by its name: the module that defines it takes a while to import
    usual = not distributed and isinstance(x, Tensor) and not x.is_nested
    if usual and x.ndim - 2 in axes and x.is_floating_point() and x.itemsize > 1:
        return
    maps = " or ".join(MAPS[number] for number in axes)
    if distributed:
        raise TypeError(f"{name} takes no DTensor: give each rank its part, x.to_local()")
    if not isinstance(x, Tensor) or x.is_nested:
        raise TypeError(f"{name} takes a tensor of {maps} maps, not {type(x).__name__}")
    if x.ndim - 2 not in axes:
        raise ValueError(f"{name} takes {maps} maps, not a tensor of shape {tuple(x.shape)}")
    if x.is_floating_point():
        raise TypeError(f"{name} takes no {x.dtype}, in which nothing can be scaled: give it bfloat16")
    raise TypeError(f"{name} takes floating point maps, not {x.dtype}")
