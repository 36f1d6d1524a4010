"""Fashion-MNIST (Xiao, Rasul, Vollgraf 2017) from its four idx files, plain or gzipped."""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from data.download import default_root, fetch
from data.small import Request, Small

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts the files
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
ELSEWHERE = (
    "install Debian's package dataset-fashion-mnist, or put the four idx files into a folder and name it by data.root "
    "or by the environment variable FASHION_MNIST"
)


def fashion_mnist(request: Request) -> Small:
    """60,000 + 10,000 images of clothes, 28x28, zeros around them up to 32x32.

    Padded so that the maps of a network are those of CIFAR: at 28 px group 3 works on 7x7, where a block of 7 is the
    whole map and DropBlock is SpatialDropout.
    """
    size = 32 if request.image_size is None else request.image_size
    if size < 28 or size % 2:
        raise ValueError(f"image_size must be even and 28 or more for fashion_mnist, not {size}")
    folder = _find(request)
    images, labels, test_images, test_labels = (_read(_file(folder, name)) for name in FILES)
    for pictures, classes in ((images, labels), (test_images, test_labels)):
        if pictures.shape != (len(classes), 28, 28) or classes.ndim != 1 or not len(classes) or classes.max() > 9:
            raise ValueError(f"the idx files in {folder} do not fit together: {pictures.shape} and {classes.shape}")

    def padded(pictures: NDArray[np.uint8]) -> torch.Tensor:
        return F.pad(torch.from_numpy(pictures)[:, None], [(size - 28) // 2] * 4)

    return Small(
        padded(images),
        labels.astype(np.int64),
        padded(test_images),
        test_labels.astype(np.int64),
        CLASSES,
        notes=() if size == 28 else (f"fashion_mnist: 28x28 images with zeros around them up to {size}x{size}",),
    )


def _find(request: Request) -> Path:
    """The folder of the four files: `root`, else FASHION_MNIST, else Debian's, else the one a download filled."""
    named = os.environ.get("FASHION_MNIST")
    if request.root is None and named:
        if not _holds(Path(named)):
            raise FileNotFoundError(f"fashion_mnist: FASHION_MNIST names {named}, which holds none of the idx files")
        return Path(named)
    root = request.root or default_root()
    places = [root, root / "FashionMNIST" / "raw"] + ([DEBIAN] if request.root is None else [])
    for place in places:
        if _holds(place):
            return place
    if not request.download:
        raise FileNotFoundError(f"fashion_mnist: no idx files in {root}, and download is off; {ELSEWHERE}")
    from torchvision.datasets import FashionMNIST

    fetch(
        "fashion_mnist",
        FashionMNIST.mirrors[0] + FashionMNIST.resources[0][0],
        root,
        "FashionMNIST",
        lambda folder: FashionMNIST(folder, download=True),
        ELSEWHERE,
    )
    return root / "FashionMNIST" / "raw"


def _holds(folder: Path) -> bool:
    """Whether any of the files is there: a folder that holds some is meant, and must hold all."""
    return any((folder / (name + end)).is_file() for name in FILES for end in ("", ".gz"))


def _file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / (name + ".gz")):
        if path.is_file():
            return path
    raise FileNotFoundError(f"fashion_mnist: {folder} holds no {name} or {name}.gz; {ELSEWHERE}")


def _read(path: Path) -> NDArray[np.uint8]:
    """An idx file of bytes: two zeros, the type 8, the number of axes, their lengths (big-endian), the values."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08":
                raise ValueError("not an idx file of bytes")
            shape = tuple(np.frombuffer(file.read(4 * head[3]), ">u4").astype(int))
            wanted = int(np.prod(shape))
            # One byte more than is due, so that a file that is too long is seen; a mad header asks for no more memory
            # than the largest file that fits.
            values = file.read(min(wanted, 2**28) + 1)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        if isinstance(error, PermissionError):
            raise ValueError(f"{path}: cannot be read ({error.strerror})") from error
        raise ValueError(f"{path}: damaged ({error}); fetch the file again") from error
    if len(values) != wanted or len(shape) != head[3]:
        raise ValueError(f"{path}: damaged (not the {wanted} values that its header says); fetch the file again")
    return np.frombuffer(values, np.uint8).reshape(shape).copy()
