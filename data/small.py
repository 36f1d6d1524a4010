"""The small data sets, read into memory as uint8: digits, Fashion-MNIST, CIFAR-10, CIFAR-100, and a made-up one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data.splits import TEST, stratified


@dataclass(frozen=True)
class Request:
    """What a reader of a data set is told: where to look, how large the images shall be (None: as they come)."""

    root: Path | None = None
    image_size: int | None = None
    num_classes: int | None = None
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


SMALL: dict[str, Callable[[Request], Small]] = {"digits": digits}
