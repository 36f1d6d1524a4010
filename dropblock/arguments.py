"""What a call says, checked: errors name what was given and what is expected."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

MAPS = {1: "(N, C, L)", 2: "(N, C, H, W)", 3: "(N, C, D, H, W)"}
KEEP_PROB, BLOCK_SIZE = 0.9, 7  # the paper's best on ImageNet


def refuse_positional(name: str, given: tuple[object, ...]) -> None:
    """Other libraries have a drop rate where this one has keep_prob, so neither is taken by position.

    Raises:
        TypeError: if anything was given by position.
    """
    if given:
        raise TypeError(
            f"{name} takes its rate and its options by name, not {', '.join(map(repr, given))} by position: "
            "keep_prob=0.9 is the share to keep, p=0.1 the same as a drop rate"
        )


def is_number(value: object) -> bool:
    """Whether it is a real number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def share_to_keep(
    name: str, keep_prob: float | Tensor | None, p: float | Tensor | None, drop_prob: float | Tensor | None
) -> float | Tensor:
    """keep_prob, or 1 - the drop rate; 0.9 if nothing was given.

    Raises:
        ValueError: outside [0, 1] (a tensor is not looked at), or a tensor with axes.
        TypeError: for something that is no number, or more than one of the three.
    """
    given = {
        word: rate for word, rate in (("keep_prob", keep_prob), ("p", p), ("drop_prob", drop_prob)) if rate is not None
    }
    if not given:
        return KEEP_PROB
    if len(given) > 1:
        raise TypeError(f"{name} takes one of keep_prob=, p= and drop_prob=, not {' and '.join(given)}")
    [(word, rate)] = given.items()
    if isinstance(rate, Tensor):
        if rate.ndim:
            raise ValueError(f"{word} must be a number or a 0-dimensional tensor, not of shape {tuple(rate.shape)}")
    elif not is_number(rate):
        raise TypeError(f"{word} must be a number in [0, 1], not {rate!r}")
    elif not 0.0 <= rate <= 1.0:
        raise ValueError(f"{word} must lie in [0, 1], not {rate}")
    return rate if word == "keep_prob" else 1.0 - rate


def as_number(rate: float | Tensor | None) -> float | Tensor | None:
    """A rate that the host may read, so that it can be checked."""
    return float(rate) if isinstance(rate, Tensor) and rate.ndim == 0 else rate


def check_maps(name: str, x: object, *axes: int) -> None:
    """Raises:
    ValueError: for another number of dimensions than (N, C) and the axes of a map.
    TypeError: if `x` is no floating point tensor.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} takes a tensor of {_shapes(axes)} maps, not {type(x).__name__}")
    if x.ndim - 2 not in axes:
        raise ValueError(f"{name} takes {_shapes(axes)} maps, not a tensor of shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise TypeError(f"{name} takes floating point maps, not {x.dtype}")


def _shapes(axes: tuple[int, ...]) -> str:
    return " or ".join(MAPS[number] for number in axes)


def scalar(keep_prob: float | Tensor, device: torch.device) -> Tensor:
    """A share as the operators take it: 0-dimensional, float32 where it was a number, on the device."""
    if isinstance(keep_prob, Tensor):
        return keep_prob.to(device)
    return torch.tensor(keep_prob, dtype=torch.float32, device=device)
