"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) from the python version's files, checked by md5."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.download import default_root, fetch
from data.small import Request, Small

# Channel statistics of the training images, the values in common use.
STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


def cifar10(request: Request) -> Small:
    """50,000 + 10,000 colour images of 32x32 in 10 classes."""
    return _cifar("cifar10", "labels", request)


def cifar100(request: Request) -> Small:
    """50,000 + 10,000 colour images of 32x32 in 100 classes (the fine labels)."""
    return _cifar("cifar100", "fine_labels", request)


def _cifar(name: str, key: str, request: Request) -> Small:
    from torchvision.datasets import CIFAR10, CIFAR100
    from torchvision.datasets.utils import check_integrity

    official = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    if request.image_size not in (None, 32):
        raise ValueError(f"image_size must be 32 for {name}, not {request.image_size}")
    root = request.root or default_root()
    folder = root if root.name == official.base_folder else root / official.base_folder
    if not folder.exists():
        otherwise = f"fetch {official.url} on another machine, unpack it, and give its folder's parent as data.root"
        if not request.download:
            raise FileNotFoundError(f"{name}: no folder {folder}, and download is off; {otherwise}")
        fetch(name, official.url, folder.parent, folder.name, lambda aside: official(aside, download=True), otherwise)
    meta = (official.meta["filename"], official.meta["md5"])
    for file, md5 in (*official.train_list, *official.test_list, meta):
        if not check_integrity(folder / file, md5):
            state = "damaged (wrong md5)" if (folder / file).is_file() else "missing"
            raise ValueError(f"{name}: {folder / file} is {state}; remove {folder} to have it fetched again")
    images, labels = _read([folder / file for file, _ in official.train_list], key)
    test_images, test_labels = _read([folder / file for file, _ in official.test_list], key)
    classes = tuple(str(label) for label in _unpickle(folder / meta[0])[official.meta["key"]])
    return Small(images, labels, test_images, test_labels, classes, *STATISTICS[name])


def _read(files: list[Path], key: str) -> tuple[torch.Tensor, NDArray[np.int64]]:
    parts = [_unpickle(file) for file in files]
    images = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32)
    return torch.from_numpy(images), np.concatenate([np.asarray(part[key], np.int64) for part in parts])


class _ArraysOnly(pickle.Unpickler):
    """Unpickles plain values and numpy arrays; a file that names anything else is refused, not run."""

    def find_class(self, module: str, name: str) -> Any:
        known = {"_reconstruct": np.empty(0).__reduce__()[0], "ndarray": np.ndarray, "dtype": np.dtype}
        if module.split(".")[0] == "numpy" and name in known:
            return known[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _unpickle(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return _ArraysOnly(file, encoding="latin1").load()
    except Exception as error:  # damaged pickles raise nearly anything
        raise ValueError(f"{path}: not a CIFAR batch ({error})") from error
