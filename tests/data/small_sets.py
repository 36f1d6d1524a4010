"""Fashion-MNIST and CIFAR in files of the published formats, a few images each, for tests."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import numpy as np
import torchvision.datasets

FASHION = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CIFAR = {"cifar10": torchvision.datasets.CIFAR10, "cifar100": torchvision.datasets.CIFAR100}


def idx(values: np.ndarray) -> bytes:
    """An idx file of bytes."""
    return b"\0\0\x08" + bytes([values.ndim]) + b"".join(n.to_bytes(4, "big") for n in values.shape) + values.tobytes()


def write_fashion(folder: Path, end: str = ".gz") -> dict[str, np.ndarray]:
    """The four files of Fashion-MNIST, 40 + 20 images; returns what is in them."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(0)
    arrays = {}
    for images, labels, count in ((*FASHION[:2], 40), (*FASHION[2:], 20)):
        arrays[images] = numbers.integers(0, 256, (count, 28, 28), np.uint8)
        arrays[labels] = (np.arange(count) % 10).astype(np.uint8)
    for name, values in arrays.items():
        content = idx(values)
        (folder / (name + end)).write_bytes(gzip.compress(content) if end else content)
    return arrays


class _Python2(pickle._Pickler):  # type: ignore[name-defined]
    """Writes text and bytes alike as Python 2 wrote its `str`; the published batches were made by Python 2."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_string(self, value: str | bytes) -> None:
        raw = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + len(raw).to_bytes(4, "little") + raw)  # type: ignore[attr-defined]

    dispatch[str] = dispatch[bytes] = save_string


def python2_pickle(content: object) -> bytes:
    """The content as the published batches hold it."""
    file = io.BytesIO()
    _Python2(file, protocol=2).dump(content)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


@contextmanager
def official_cifar() -> Iterator[None]:
    """Within it `write_cifar` may put the md5 of its files in place of the official ones."""
    names = ("train_list", "test_list", "meta")
    before = {(official, name): getattr(official, name) for official in CIFAR.values() for name in names}
    try:
        yield
    finally:
        for (official, name), value in before.items():
            setattr(official, name, value)


def write_cifar(root: Path, name: str) -> Path:
    """Batches of 200 images each below `root`, which is returned; see `official_cifar`."""
    official = CIFAR[name]
    classes, key = (10, "labels") if name == "cifar10" else (100, "fine_labels")
    folder = root / official.base_folder
    folder.mkdir(parents=True)
    numbers = np.random.default_rng(0)

    def put(file: str, content: dict[str, object]) -> str:
        data = python2_pickle(content)
        (folder / file).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def batch(file: str) -> list[str]:
        images = numbers.integers(0, 256, (200, 3072), np.uint8)
        return [file, put(file, {"data": images, key: [i % classes for i in range(200)]})]

    official.train_list = [batch(file) for file, _ in official.train_list]
    official.test_list = [batch(file) for file, _ in official.test_list]
    md5 = put(official.meta["filename"], {official.meta["key"]: [f"name {i}" for i in range(classes)]})
    official.meta = {**official.meta, "md5": md5}
    return root
