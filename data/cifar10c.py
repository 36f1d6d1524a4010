"""CIFAR-10-C (Hendrycks and Dietterich 2019, arXiv 1903.12261), in the files that its authors publish.

One array a corruption, NAME.npy: the 10,000 test images of CIFAR-10 at severity 1, then at 2, ..., 5, as bytes of shape
(50000, 32, 32, 3); labels.npy has their classes. https://zenodo.org/records/2535967 (2.9 GB).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.tensors import TensorLoader

SEVERITIES = 5
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def corruptions_in(root: Path) -> list[str]:
    """The names of the corruptions in a directory.

    Raises:
        FileNotFoundError: if it is not CIFAR-10-C's.
    """
    names = sorted(path.stem for path in root.glob("*.npy") if path.stem != "labels")
    if not names or not (root / "labels.npy").is_file():
        raise FileNotFoundError(f"cifar10c={root}: holds no labels.npy with the NAME.npy of corruptions beside it")
    return names


def corrupted_cifar(root: Path, name: str, severity: int, like: Any) -> TensorLoader:
    """One corruption at one severity, 1 to 5, normalized and in batches as the test split of the same images is.

    Raises:
        ValueError: for a file that is damaged or of another form, or a network of other images.
    """
    images, labels = (_read(root / f"{file}.npy") for file in (name, "labels"))
    count = len(labels) // SEVERITIES
    if images.shape != (SEVERITIES * count, 32, 32, 3) or labels.ndim != 1 or not count or labels.max() > 9:
        raise ValueError(f"{root / name}.npy: {images.shape} and labels {labels.shape} are not those of CIFAR-10-C")
    if not isinstance(like, TensorLoader) or like.windows.shape[3:] != (32, 32, 3):
        raise ValueError(f"cifar10c={root}: for networks of colour images of 32x32")
    part = slice(count * (severity - 1), count * severity)
    return like.with_images(np.ascontiguousarray(images[part].transpose(0, 3, 1, 2)), labels[part].astype(np.int64))


def _read(path: Path) -> NDArray[np.uint8]:
    """An array of bytes, of which only what is asked for is read."""
    try:
        found: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if found.dtype != np.uint8:
        raise ValueError(f"{path}: {found.dtype} and not bytes")
    return found
