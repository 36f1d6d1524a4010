"""A name and plain values to a data set with its loaders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.augment import Normalize
from data.cifar import cifar10, cifar100
from data.decode import pick_decoder
from data.fashion import fashion_mnist
from data.fingerprint import fingerprint
from data.folders import Files, Folders, open_folders
from data.images import ON_BAD_IMAGE, ImageLoader
from data.interface import Augment, Data
from data.pictures import Picture
from data.shards import is_prepared, open_prepared
from data.small import Request, Small, digits, fake
from data.splits import Batches, Indices, subset, train_val
from data.tensors import TensorLoader

SMALL: dict[str, Callable[[Request], Small]] = {
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fake": fake,
}
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DATASETS = (*SMALL, "imagenette", "imagenet")


def build_data(
    name: str,
    *,
    root: str | Path | None = None,
    image_size: int | None = None,
    batch_size: int,
    eval_batch_size: int | None = None,
    val_fraction: float = 0.1,
    train_subset: int | None = None,
    augment: Augment = Augment(),  # noqa: B008 - frozen
    seed: int = 0,
    device: str | torch.device = "cpu",
    channels_last: bool = False,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    download: bool = True,
    on_bad_image: str = "error",
    decoder: str = "auto",
    prepared: bool = False,
    num_classes: int | None = None,
) -> Data:
    """Open a data set.

    Every draw is a function of (seed, epoch, sample index): neither the number of workers, nor the number of ranks,
    nor a resume changes a picture. The splits are functions of the data set alone.

    Args:
        name: one of `DATASETS`.
        root: folder of the data; None = the place that the data set's reader names.
        image_size: side of the images; None = the data set's own.
        batch_size, eval_batch_size: over all ranks; None = as in training.
        val_fraction: share of the training set that is cut off as `val`, stratified; 0 = none.
        train_subset: train on this many samples of the training part only, stratified.
        augment: what happens to a training image.
        seed: of the permutations and the augmentation.
        device: where the batches shall be.
        channels_last: memory format of the batches.
        workers: processes that decode images (class folders only).
        rank, world_size: this process's share of every batch.
        download: fetch missing data where that is possible.
        on_bad_image: `error` or `skip` (class folders only).
        decoder: `auto`, `simplejpeg`, `pillow` or `pil` (class folders only).
        prepared: `root` is a folder that `scripts/prepare_shards.py` wrote (class folders only).
        num_classes: of `fake`.

    Raises:
        FileNotFoundError: if the data are not there; says what to do.
        ValueError: for a wrong value or damaged data; names it.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data '{name}', choose one of {', '.join(DATASETS)}")
    if num_classes is not None and name != "fake":
        raise ValueError(f"num_classes can be chosen for data 'fake' only, not for '{name}'")
    if prepared and name in SMALL:
        raise ValueError(f"prepared=true is for photographs, {name} is small as it comes")
    if on_bad_image not in ON_BAD_IMAGE:
        raise ValueError(f"unknown on_bad_image '{on_bad_image}', choose one of {', '.join(ON_BAD_IMAGE)}")
    pick_decoder(decoder)
    folder = Path(root).expanduser() if root is not None else None
    how = Loading(
        batch_size,
        batch_size if eval_batch_size is None else eval_batch_size,
        seed,
        rank,
        world_size,
        torch.device(device),
        channels_last,
    )
    cut = Cut(val_fraction, train_subset)
    reading = Reading(224 if image_size is None else image_size, decoder, workers, on_bad_image, prepared)
    try:
        if name in SMALL:
            source = SMALL[name](Request(folder, image_size, num_classes, download))
            return _small(name, source, cut, augment, how)
        return _folders(name, folder, download, cut, augment, reading, how)
    except PermissionError as error:
        raise ValueError(f"{name}: no permission to read {error.filename}") from error


@dataclass(frozen=True)
class Loading:
    """How the batches of a data set are made: sizes over all ranks, this process's share, where they go."""

    batch_size: int
    eval_batch_size: int
    seed: int
    rank: int
    world_size: int
    device: torch.device
    channels_last: bool

    def training(self, num_samples: int) -> Batches:
        return Batches(num_samples, self.batch_size, True, self.seed, self.rank, self.world_size)

    def evaluation(self, num_samples: int) -> Batches:
        return Batches(num_samples, self.eval_batch_size, False, self.seed, self.rank, self.world_size)


@dataclass(frozen=True)
class Cut:
    """Which part of the training set is trained on, and which is held out to select on."""

    val_fraction: float
    train_subset: int | None

    def __call__(self, labels: Indices) -> tuple[Indices, Indices]:
        train, val = train_val(labels, self.val_fraction)
        return subset(train, labels, self.train_subset), val

    @property
    def notes(self) -> tuple[str, ...]:
        if self.train_subset is None:
            return ()
        return (f"trained on a fixed subset of {self.train_subset:,} training images",)


@dataclass(frozen=True)
class Reading:
    """How image files become pixels."""

    image_size: int
    decoder: str
    workers: int
    on_bad_image: str
    prepared: bool

    def __post_init__(self) -> None:
        if self.image_size < 8:
            raise ValueError(f"image_size must be 8 or more, not {self.image_size}")
        if self.workers < 0:
            raise ValueError(f"workers must be 0 or more, not {self.workers}")


def _small(name: str, source: Small, cut: Cut, augment: Augment, how: Loading) -> Data:
    images, labels = source.train_images, source.train_labels
    train, val = cut(labels)
    mean, std = (source.mean, source.std) if source.mean and source.std else _statistics(images, without=val)
    normalize = Normalize(mean, std, images.shape[3], how.device)

    def loader(part: Tensor, part_labels: Indices, batches: Batches) -> TensorLoader:
        return TensorLoader(
            part, torch.from_numpy(part_labels), batches, normalize, augment, how.device, how.channels_last
        )

    return Data(
        name=name,
        train=loader(images[train], labels[train], how.training(len(train))),
        val=loader(images[val], labels[val], how.evaluation(len(val))) if len(val) else None,
        test=loader(source.test_images, source.test_labels, how.evaluation(len(source.test_labels))),
        num_classes=len(source.classes),
        classes=source.classes,
        image_shape=(images.shape[1], images.shape[2], images.shape[3]),
        fingerprint=fingerprint(
            name, source.classes, train, val, labels, source.test_labels, images, source.test_images
        ),
        notes=source.notes + cut.notes,
    )


def _folders(
    name: str, root: Path | None, download: bool, cut: Cut, augment: Augment, reading: Reading, how: Loading
) -> Data:
    if augment.crop_padding:
        raise ValueError(f"crop_padding is for small images; {name} is cropped by random boxes: set it to 0")
    found = _open(name, root, download, reading)
    train, val = cut(found.train.labels)
    picture = Picture(reading.image_size, reading.decoder, augment, found.decode)
    normalize = Normalize(*IMAGENET_STATISTICS, reading.image_size, how.device)

    def loader(files: Files, batches: Batches) -> ImageLoader:
        return ImageLoader(
            files,
            picture,
            batches,
            normalize,
            augment,
            how.device,
            how.channels_last,
            reading.workers,
            reading.on_bad_image,
        )

    return Data(
        name=name,
        train=loader(found.train.part(train), how.training(len(train))),
        val=loader(found.train.part(val), how.evaluation(len(val))) if len(val) else None,
        test=loader(found.test, how.evaluation(len(found.test))),
        num_classes=len(found.classes),
        classes=found.classes,
        image_shape=(3, reading.image_size, reading.image_size),
        fingerprint=fingerprint(
            *(name, found.classes, train, val),
            *(found.train.names, found.train.labels, found.test.names, found.test.labels),
            *([found.version] if found.version else []),
        ),
        notes=found.notes + cut.notes,
    )


def _open(name: str, root: Path | None, download: bool, reading: Reading) -> Folders:
    """Class folders, or what was prepared from them; which of the two is said, since runs on them are not the same."""
    if is_prepared(root) and not reading.prepared:
        raise ValueError(
            f"{name}: {root} holds prepared photographs, which are not the original ones: data.prepared=true"
        )
    if not reading.prepared:
        return open_folders(name, root, download)
    if root is None or not is_prepared(root):
        raise FileNotFoundError(
            f"{name}: no prepared photographs in data.root={root}, or not all; scripts/prepare_shards.py writes them"
        )
    found = open_prepared(name, root)
    if found.decode is not None and reading.decoder == "pil":
        raise ValueError(f"{name}: decoder pil reads image files, and {root} holds raw pixels; use decoder=auto")
    return found


def _statistics(images: Tensor, without: Indices) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, of values in [0, 1], exactly, from counts of the 256 levels.

    Over the training images but those of `val`; also for a run on a subset, so that such runs see the same pixels.
    """
    images = images[np.setdiff1d(np.arange(len(images)), without)]
    level = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        share = torch.bincount(images[:, channel].flatten(), minlength=256).double() / images[:, channel].numel()
        mean = float((share * level).sum())
        means.append(mean)
        stds.append(float((share * (level - mean) ** 2).sum().sqrt()))
    return tuple(means), tuple(stds)
