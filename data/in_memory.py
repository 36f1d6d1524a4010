"""Classification data sets that are read into memory: CIFAR, Fashion-MNIST, scikit-learn's digits, a made-up one."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from configs.schema import AugmentConfig, DataConfig
from data.downloads import default_root, fetch
from data.draws import FAKE, hashed
from data.interface import Data, Loading, assemble
from data.loader import channel_statistics
from data.samples import Samples, as_it_is, cut, cut_notes, fingerprint, positions
from data.splits import TEST, Batches, stratified
from data.tensors import TensorLoader

# Channel statistics of the training images, the values in common use.
CIFAR_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package dataset-fashion-mnist puts the files
FASHION_FILES = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_ELSEWHERE = (
    "install Debian's package dataset-fashion-mnist, or put the four idx files into a folder and name it by data.root "
    "or by the environment variable FASHION_MNIST"
)


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


def in_memory(read: Callable[[DataConfig], Small]) -> Callable[[DataConfig, AugmentConfig, Loading], Data]:
    """The opener of a data set that this function reads."""

    def open_in_memory(data: DataConfig, augment: AugmentConfig, loading: Loading) -> Data:
        found = read(data)
        images, labels = found.train_images.numpy(), found.train_labels
        test_images, test_labels = found.test_images.numpy(), found.test_labels
        splits = {
            "train": Samples({"images": images, "labels": labels}, as_it_is),
            "test": Samples({"images": test_images, "labels": test_labels}, as_it_is),
        }
        train, val = positions(splits, data)
        parts = cut(splits, data)
        if found.mean and found.std:
            statistics = found.mean, found.std
        else:  # also for a run on a subset, so that such runs see the same pixels
            statistics = channel_statistics(images[np.setdiff1d(np.arange(len(images)), val)])

        def loader(samples: Samples, batches: Batches) -> TensorLoader:
            return TensorLoader(samples["images"], samples["labels"], batches, statistics, augment, loading)

        return assemble(
            data,
            parts,
            loader,
            loading,
            classes=found.classes,
            image_shape=(images.shape[1], images.shape[2], images.shape[3]),
            fingerprint=fingerprint([data.name, found.classes, train, val, labels, test_labels, images, test_images]),
            notes=[*found.notes, *cut_notes(data, splits, parts)],
        )

    return open_in_memory


def digits(data: DataConfig) -> Small:
    """scikit-learn's 1,797 handwritten digits, 8x8 made larger by bilinear interpolation; 1,437 to train, 360 to test.

    The split is ours (the set has no official one): stratified, the same in every run.
    """
    from sklearn.datasets import load_digits

    size, bunch = data.image_size, load_digits()
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


def fake(data: DataConfig) -> Small:
    """320 + 80 made-up colour images, for trials: each class is a pattern of coarse squares under noise."""
    size, classes = data.image_size, 10
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


def cifar(data: DataConfig) -> Small:
    """CIFAR-10 or CIFAR-100 (Krizhevsky 2009), the fine labels: 50,000 + 10,000 colour images of 32x32, checked by md5.

    Raises:
        FileNotFoundError: if it is not there and cannot be fetched; says what to do.
        ValueError: for another image size, or a file that is damaged or missing; names it.
    """
    from torchvision.datasets import CIFAR10, CIFAR100
    from torchvision.datasets.utils import check_integrity

    name, official = data.name, {"cifar10": CIFAR10, "cifar100": CIFAR100}[data.name]
    if data.image_size != 32:
        raise ValueError(f"image_size must be 32 for {name}, not {data.image_size}")
    # The folder itself, the one that holds it, or a new download.
    root = default_root() if data.root is None else Path(data.root)
    folder = root if root.name == official.base_folder else root / official.base_folder
    if not folder.exists():
        otherwise = f"fetch {official.url} on another machine, unpack it, and give its folder's parent as data.root"
        if not data.download:
            raise FileNotFoundError(f"{name}: no folder {folder}, and download is off; {otherwise}")
        fetch(name, official.url, folder.parent, folder.name, lambda aside: official(aside, download=True), otherwise)
    try:
        train, test = (official(folder.parent, train=part) for part in (True, False))
    except RuntimeError:  # torchvision has compared the md5 of every file, and does not say whose differs
        files = *official.train_list, *official.test_list, (official.meta["filename"], official.meta["md5"])
        bad = next(folder / file for file, md5 in files if not check_integrity(folder / file, md5))
        state = "damaged (wrong md5)" if bad.is_file() else "missing"
        raise ValueError(f"{name}: {bad} is {state}; remove {folder} to have it fetched again") from None
    images, test_images = (torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in (train, test))
    labels, test_labels = (np.array(part.targets, np.int64) for part in (train, test))
    return Small(images, labels, test_images, test_labels, tuple(train.classes), *CIFAR_STATISTICS[name])


def fashion_mnist(data: DataConfig) -> Small:
    """60,000 + 10,000 images of clothes, 28x28, zeros around them up to 32x32.

    Padded so that the maps of a network are those of CIFAR: at 28 px group 3 works on 7x7, where a block of 7 is the
    whole map and DropBlock is SpatialDropout.
    """
    size = data.image_size
    if size < 28 or size % 2:
        raise ValueError(f"image_size must be even and 28 or more for fashion_mnist, not {size}")
    # Files that do not belong together would give wrong labels.
    folder = _find_fashion(data)
    images, labels, test_images, test_labels = (_read_idx(_idx_file(folder, name)) for name in FASHION_FILES)
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
        FASHION_CLASSES,
        notes=() if size == 28 else (f"fashion_mnist: 28x28 images with zeros around them up to {size}x{size}",),
    )


def _find_fashion(data: DataConfig) -> Path:
    """The folder of the four files: `root`, else FASHION_MNIST, else Debian's, else the one a download filled."""
    named = os.environ.get("FASHION_MNIST")
    if data.root is None and named:
        if not _holds(Path(named)):
            raise FileNotFoundError(f"fashion_mnist: FASHION_MNIST names {named}, which holds none of the idx files")
        return Path(named)
    root = default_root() if data.root is None else Path(data.root)
    places = [root, root / "FashionMNIST" / "raw"] + ([DEBIAN] if data.root is None else [])
    for place in places:
        if _holds(place):
            return place
    if not data.download:
        raise FileNotFoundError(f"fashion_mnist: no idx files in {root}, and download is off; {FASHION_ELSEWHERE}")
    from torchvision.datasets import FashionMNIST

    fetch(
        "fashion_mnist",
        FashionMNIST.mirrors[0] + FashionMNIST.resources[0][0],
        root,
        "FashionMNIST",
        lambda folder: FashionMNIST(folder, download=True),
        FASHION_ELSEWHERE,
    )
    return root / "FashionMNIST" / "raw"


def _holds(folder: Path) -> bool:
    """True if any of the files is there: a folder that holds some is meant, and must hold all."""
    return any((folder / (name + end)).is_file() for name in FASHION_FILES for end in ("", ".gz"))


def _idx_file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / (name + ".gz")):
        if path.is_file():
            return path
    raise FileNotFoundError(f"fashion_mnist: {folder} holds no {name} or {name}.gz; {FASHION_ELSEWHERE}")


def _read_idx(path: Path) -> NDArray[np.uint8]:
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
