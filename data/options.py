"""The option groups that every opener of a data set takes: source, cut, augmentation, reading, loading."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch

from data.decode import pick_decoder
from data.splits import Batches, Indices, subset, train_val

POLICIES = ("imagenet", "cifar10", "svhn")
ON_BAD_IMAGE = ("error", "skip")
FEW_VAL = 20  # images; the best epoch on fewer is often so by chance


@dataclass(frozen=True)
class Source:
    """Where a data set comes from.

    Args:
        root: its folder; None = the place that its reader names.
        download: fetch missing data where that is possible.
        options: what only this data set has, such as `mean` and `std` of `folder`.
    """

    root: str | Path | None = None
    download: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path | None:
        """The root as a path, `~` expanded."""
        return None if self.root is None else Path(os.path.expanduser(self.root))

    def require_known(self, name: str, *known: str) -> None:
        """Raise ValueError for an option that the data set `name` does not have."""
        for option in self.options:
            if option not in known:
                has = f"it has {', '.join(known)}" if known else "it has no options of its own"
                raise ValueError(f"data.{option} does not apply to data={name}; {has}")


class Divisible(Protocol):
    """The samples of a split."""

    def __len__(self) -> int: ...

    def part(self, indices: Indices) -> Self:
        """Some of them, in the order given."""
        ...


Samples = TypeVar("Samples", bound=Divisible)


@dataclass(frozen=True)
class Cut:
    """Which part of the training set is trained on, and which is held out to select on.

    Args:
        val_fraction: share of the training set that is cut off as `val`, stratified; 0 = none. Not used where the data
            have a `val` of their own.
        train_subset: train on this many samples of the rest only, stratified; None = all.

    Both are fixed functions of the labels, whatever the seed of a run.
    """

    val_fraction: float = 0.1
    train_subset: int | None = None

    def __call__(self, labels: Indices) -> tuple[Indices, Indices]:
        """Positions of the samples to train on and of those of `val`."""
        train, val = train_val(labels, self.val_fraction)
        return subset(train, labels, self.train_subset), val

    def parts(self, splits: Mapping[str, Samples]) -> dict[str, Samples]:
        """`train`, `val` and `test` of images that have many labels each, so that no cut is stratified.

        Args:
            splits: `train`, `test`, and `val` where the data set has one; else it is cut from `train`.
        """
        train, one_class = splits["train"], np.zeros(len(splits["train"]), np.int64)
        if "val" in splits:
            kept, val = subset(np.arange(len(train)), one_class, self.train_subset), splits["val"]
        else:
            kept, held_out = self(one_class)
            val = train.part(held_out)
        return {"train": train.part(kept), "val": val, "test": splits["test"]}

    def val_notes(self, name: str, splits: Mapping[str, Sized], parts: Mapping[str, Sized]) -> tuple[str, ...]:
        """Whether the `val` of `parts`, cut from the `splits`, is too small to choose an epoch by."""
        count = len(parts["val"])
        if "val" in splits or not 0 < count < FEW_VAL:
            return ()
        images = "image" if count == 1 else "images"
        return (f"{name}: val has {count} {images}, few to choose the best epoch by; data.val_fraction sets its share",)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a report must say about the cut."""
        if self.train_subset is None:
            return ()
        return (f"trained on a fixed subset of {self.train_subset:,} training images",)


@dataclass(frozen=True)
class Augment:
    """What happens to a training image.

    Args:
        crop_padding: zeros around a small image before the random crop back to its size (classification).
        flip: mirror left and right with probability 1/2.
        cutout: side of the Cutout square in pixels, 0 = off; one square, its centre anywhere in the image, so it may
            stick out (DeVries and Taylor 2017). Filled with 0 after normalization, the mean colour.
        autoaugment: torchvision's policy `imagenet`, `cifar10` or `svhn`; None = off. Applied after crop and flip and
            before Cutout, the order of the AutoAugment paper (section 4).
        scale_min, scale_max: the longer side becomes U(scale_min, scale_max) times the target size before the random
            crop (segmentation, detection); 1 and 1 = no jitter.
        photometric: brightness, contrast and saturation are multiplied by U(1 - p, 1 + p) each; 0 = off
            (segmentation, detection).

    Raises:
        ValueError: for a value out of range.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0
    autoaugment: str | None = None
    scale_min: float = 1.0
    scale_max: float = 1.0
    photometric: float = 0.0

    def __post_init__(self) -> None:
        if self.crop_padding < 0 or self.cutout < 0:
            raise ValueError(f"crop_padding and cutout must be 0 or more, not {self.crop_padding} and {self.cutout}")
        if self.autoaugment is not None and self.autoaugment not in POLICIES:
            raise ValueError(f"unknown autoaugment policy '{self.autoaugment}', choose one of {', '.join(POLICIES)}")
        if not 0.1 <= self.scale_min <= self.scale_max <= 10:
            raise ValueError(f"0.1 <= scale_min <= scale_max <= 10, not {self.scale_min} and {self.scale_max}")
        if not 0 <= self.photometric < 1:
            raise ValueError(f"photometric must lie in [0, 1), not {self.photometric}")

    def refuse(self, why: str, *fields: str) -> None:
        """Raise ValueError if one of these fields differs from its default."""
        default = Augment()
        for name in fields:
            if getattr(self, name) != getattr(default, name):
                raise ValueError(f"{name}={getattr(self, name)} {why}: set it to {getattr(default, name)}")


@dataclass(frozen=True)
class Reading:
    """How image files become pixels.

    Args:
        image_size: side of the images in pixels; None = the data set's own.
        decoder: `auto`, `simplejpeg`, `pillow` or `pil` (the reference recipe).
        workers: processes that read image files per batch; threads that decode a small set into memory.
        on_bad_image: `error`, or `skip` to leave out files that cannot be read.
        prepared: the root is a folder that `scripts/prepare_shards.py` wrote.

    Raises:
        ValueError: for a value out of range.
    """

    image_size: int | None = None
    decoder: str = "auto"
    workers: int = 0
    on_bad_image: str = "error"
    prepared: bool = False

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 8:
            raise ValueError(f"image_size must be 8 or more, not {self.image_size}")
        if self.workers < 0:
            raise ValueError(f"workers must be 0 or more, not {self.workers}")
        if self.on_bad_image not in ON_BAD_IMAGE:
            raise ValueError(f"unknown on_bad_image '{self.on_bad_image}', choose one of {', '.join(ON_BAD_IMAGE)}")
        pick_decoder(self.decoder)

    def size(self, default: int) -> int:
        """The side of the images, or the data set's own."""
        return default if self.image_size is None else self.image_size


@dataclass(frozen=True)
class Loading:
    """How batches are made.

    Args:
        batch_size, eval_batch_size: over all ranks; None = as in training.
        seed: of the permutations and the augmentation.
        rank, world_size: this process's share of every batch.
        device, channels_last: where the batches shall be, and their memory format.
    """

    batch_size: int
    eval_batch_size: int | None = None
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    channels_last: bool = False

    def training(self, num_samples: int) -> Batches:
        """The shuffled batches of a training split."""
        return Batches(num_samples, self.batch_size, True, self.seed, self.rank, self.world_size)

    def evaluation(self, num_samples: int) -> Batches:
        """The batches of an evaluation split, in order."""
        size = self.batch_size if self.eval_batch_size is None else self.eval_batch_size
        return Batches(num_samples, size, False, self.seed, self.rank, self.world_size)
