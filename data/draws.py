"""Counted randomness: a draw is a hash of what it is for, so there is no generator state to carry or to save.

The hash is the finalizer of SplitMix64 (Steele, Lea, Flood 2014) applied once per part of the key. Plain integer
arithmetic: the same numbers on every platform, in every worker process, in any order, for one sample or a million.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# The purpose of a draw: the first part of its key, so that no two uses share their numbers.
ORDER, AUGMENT, POLICY, SPLIT, FAKE, SCENE, TRIVIAL, RANDOM, AUGMIX, ERASED, NOISE = range(11)
# The draws of a training image, each always in its place, so that no augmentation moves the draws of another. From BOX
# on: the ten trials of a random box of a photograph, four draws each.
TOP, LEFT, FLIP, CUTOUT_ROW, CUTOUT_COLUMN, BOX = range(6)
# Of an image with a mask or boxes, which has no random box.
SCALE, BRIGHTNESS, CONTRAST, SATURATION = range(BOX, BOX + 4)
BOX_DRAWS = 40
MOST = BOX + BOX_DRAWS  # draws of an image
# Behind them, of random erasing, which draws for itself: whether, then four draws for each trial of a rectangle.
ERASE = MOST


@dataclass(frozen=True)
class Draws:
    """Everything random about one training image: its uniforms, at the places above, and the key of further draws."""

    uniforms: NDArray[np.float64]
    seed: int
    epoch: int
    index: int


Words = NDArray[np.uint64]
_WORD = 2**64 - 1


def hashed(*key: int | NDArray[np.integer]) -> Words:
    """64 hashed bits for each entry of the broadcast key parts (at least one-dimensional)."""
    state = np.zeros(1, np.uint64)
    for part in key:
        word = np.atleast_1d(np.asarray(part & _WORD if isinstance(part, int) else part).astype(np.uint64))
        state = (state ^ word) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def uniforms(seed: int, epoch: int, indices: NDArray[np.int64], first: int, count: int) -> NDArray[np.float64]:
    """Draws number `first` ... `first + count - 1` of each sample of an epoch: (len(indices), count) in [0, 1)."""
    words = hashed(AUGMENT, seed, epoch, np.asarray(indices)[:, None], np.arange(first, first + count)[None, :])
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def pick(draws: NDArray[np.float64], choices: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Uniforms in [0, 1) to integers 0 ... choices - 1, of one number of choices or of one for each draw."""
    return (draws * choices).astype(np.int64)


def fixed_uniforms(*key: int | NDArray[np.integer]) -> NDArray[np.float64]:
    """Draws in [0, 1) that belong to a data set, not to a run: one for each entry of the broadcast key parts."""
    return (hashed(*key) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def on_device(values: NDArray[Any], device: torch.device) -> Tensor:
    """Numbers drawn here, on the device; a copy to a GPU is from pinned memory, and nothing waits for it."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def permutation(seed: int, epoch: int, size: int) -> NDArray[np.int64]:
    """The order of an epoch: 0 ... size - 1 sorted by their hashes."""
    return np.argsort(hashed(ORDER, seed, epoch, np.arange(size)), kind="stable")
