"""The small data sets, read into memory as uint8: what they are, and two of them: digits and a made-up one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data.draws import FAKE, hashed
from data.splits import TEST, stratified


@dataclass(frozen=True)
class Request:
    """What a reader of a data set is given: where to look, how large the images shall be (None: as they come)."""

    root: Path | None = None
    image_size: int | None = None
    download: bool = True


@dataclass(frozen=True)
class Small:
    """A data set in memory. Images: (N, C, H, W) uint8; labels: (N,) int64; `mean` None: take the training images'."""

    train_images: Tensor
    train_labels: NDArray[np.int64]
    test_images: Tensor
    test_labels: NDArray[np.int64]
    classes: tuple[str, ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    notes: tuple[str, ...] = ()


def digits(request: Request) -> Small:
    """scikit-learn's 1,797 handwritten digits, 8x8 made larger by bilinear interpolation; 1,437 to train, 360 to test.

    The split is ours (the set has no official one): stratified, the same in every run.
    """
    from sklearn.datasets import load_digits

    size = 32 if request.image_size is None else request.image_size
    if size < 8:
        raise ValueError(f"image_size must be 8 or more for digits, not {size}")
    bunch = load_digits()
    coarse = torch.from_numpy(bunch.images)[:, None] * (255 / 16)
    images = F.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False).round().to(torch.uint8)
    labels = bunch.target.astype(np.int64)
    test = stratified(labels, 360, TEST)
    train = np.setdiff1d(np.arange(len(labels)), test)
    return Small(
        images[train],
        labels[train],
        images[test],
        labels[test],
        tuple(str(name) for name in bunch.target_names),
        notes=(f"digits: 8x8 images upsampled to {size}x{size}; split 1,437/360 of our own",),
    )


def fake(request: Request) -> Small:
    """320 + 80 made-up colour images, for trials: each class is a pattern of coarse squares under noise."""
    size, classes = request.image_size or 32, 10
    if size < 8:
        raise ValueError(f"fake needs an image_size of 8 or more, not {size}")
    patterns = torch.from_numpy((hashed(FAKE, np.arange(classes * 48)) >> np.uint64(57)).astype(np.uint8))
    squares = F.interpolate(patterns.view(classes, 3, 4, 4), size=(size, size), mode="nearest")

    def part(first: int, count: int) -> tuple[Tensor, NDArray[np.int64]]:
        labels = np.arange(count) % classes
        # One hash gives eight bytes; noise below 128 on a pattern below 128 stays a byte.
        words = hashed(FAKE, first + np.arange(count)[:, None], np.arange(-(-3 * size * size // 8))[None])
        noise = torch.from_numpy(words.view(np.uint8)[:, : 3 * size * size]).view(count, 3, size, size) // 2
        return squares[labels] + noise, labels

    images, labels = part(0, 320)
    test_images, test_labels = part(320, 80)
    names = tuple(f"class {i}" for i in range(classes))
    return Small(images, labels, test_images, test_labels, names, notes=("fake: made-up images, for trials only",))
