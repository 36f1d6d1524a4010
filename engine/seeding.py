"""Randomness is counted, not carried: every seed is a function of where in the run it is used.

So a resumed run, another number of loader workers and a rerun see the same draws, and no generator has to survive.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch

_MASK = (1 << 64) - 1


def mix(*numbers: int) -> int:
    """A 63-bit seed from any whole numbers; neighbouring inputs give unrelated seeds (splitmix64 finalizer)."""
    return _absorbed(0x9E3779B97F4A7C15, numbers) >> 1


def mixer(*first: int) -> Callable[..., int]:
    """`mix` as a function of the numbers after some first ones, which are mixed once."""
    state = _absorbed(0x9E3779B97F4A7C15, first)
    return lambda *others: _absorbed(state, others) >> 1


def _absorbed(state: int, numbers: Sequence[int]) -> int:
    for number in numbers:
        state = (state + (number & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def seed_everything(seed: int) -> None:
    """Seed every global generator once, before the model is built: initial weights come from here."""
    random.seed(seed)
    np.random.seed(seed % (1 << 32))
    torch.manual_seed(seed)


def seed_device(seed: int, device: torch.device) -> None:
    """Seed the generator of a network's own random layers (dropout in a network of torchvision, timm, AmoebaNet)."""
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)  # torch.manual_seed takes a hundred times as long
