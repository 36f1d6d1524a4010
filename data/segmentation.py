"""Splits of images with masks to a data set with its loaders."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from data.augment import Normalize
from data.class_folders import IMAGENET_STATISTICS
from data.fingerprint import fingerprint
from data.in_memory import Statistics, channel_statistics
from data.interface import IGNORE, Data
from data.mask_loader import MaskLoader
from data.masks import MAX_IN_MEMORY, MaskArrays, MaskFiles, Pairs, in_memory, pixels_of
from data.options import Augment, Cut, Loading, Reading
from data.splits import Batches

NOT_HERE = ("crop_padding", "cutout", "autoaugment")
ENLARGED = 0.8  # of the size in training: test images below are another problem than the one trained on


def open_segmentation(
    name: str,
    splits: Mapping[str, Pairs],
    classes: tuple[str, ...],
    size: int,
    statistics: Statistics | None,
    notes: tuple[str, ...],
    cut: Cut,
    augment: Augment,
    reading: Reading,
    loading: Loading,
) -> Data:
    """The data set of these splits.

    Args:
        splits: `train`, `test`, and `val` where the data set has one; else it is cut from `train`.
        classes: in the order of the labels.
        size: side of the square batches.
        statistics: mean and standard deviation of each channel, of values in [0, 1]; None = of the images trained on
            where they are in memory, else of ImageNet.
        notes: what the opener has to say; those of the cut are added.

    Raises:
        ValueError: for an augmentation that does not apply, or a pair in memory that cannot be used; names the file.
    """
    augment.refuse(f"is for classification, not for {name}", *NOT_HERE)
    parts, bad = _kept_in_memory(cut.parts(splits), reading)
    for split, pairs in parts.items():
        if isinstance(pairs, MaskArrays) and len(pairs) and all((mask == IGNORE).all() for mask in pairs.masks):
            raise ValueError(f"{name}: no mask of {split} has a labelled pixel (a class; {IGNORE} is ignored)")
    normalize = Normalize(*(statistics or _statistics(parts["train"])), size, loading.device)

    def loader(split: str, batches: Batches) -> MaskLoader:
        loader = MaskLoader(parts[split], size, batches, normalize, augment, reading, loading)
        loader.bad_images.update(bad.get(split, {}))
        return loader

    # Images of several sizes are hashed one after the other, so that the digest alone does not say where a split ends.
    digest = fingerprint(name, classes, *(part for pairs in parts.values() for part in _identity(pairs)))
    return Data(
        name=name,
        task="segmentation",
        train=loader("train", loading.training(len(parts["train"]))),
        val=loader("val", loading.evaluation(len(parts["val"]))) if len(parts["val"]) else None,
        test=loader("test", loading.evaluation(len(parts["test"]))),
        classes=classes,
        image_shape=(3, size, size),
        fingerprint="-".join([digest, *(str(len(pairs)) for pairs in parts.values())]),
        notes=(
            *notes,
            *cut.notes,
            *cut.val_notes(name, splits, parts),
            *_skip_notes(name, bad),
            *_size_notes(name, parts["test"], size, augment),
        ),
    )


def _kept_in_memory(parts: dict[str, Pairs], reading: Reading) -> tuple[dict[str, Pairs], dict[str, dict[str, str]]]:
    """Small data sets decoded, and what was left out in each split."""
    files = {split: pairs for split, pairs in parts.items() if isinstance(pairs, MaskFiles)}
    if not files or sum(map(pixels_of, files.values())) > MAX_IN_MEMORY:
        return parts, {}
    decoded = {
        split: in_memory(pairs, reading.workers, reading.on_bad_image == "skip")
        for split, pairs in files.items()
        if len(pairs)
    }
    return parts | {split: arrays for split, (arrays, _) in decoded.items()}, {
        split: bad for split, (_, bad) in decoded.items()
    }


def _statistics(train: Pairs) -> Statistics:
    if not isinstance(train, MaskArrays):
        return IMAGENET_STATISTICS
    return channel_statistics(torch.from_numpy(np.concatenate([image.reshape(-1, 3) for image in train.images])))


def _identity(pairs: Pairs) -> list[np.ndarray]:
    """What says whether two runs saw the same pairs: their content, or their names and sizes on disk."""
    if isinstance(pairs, MaskArrays):
        return [array for i in range(len(pairs)) for array in pairs[i]]
    assert isinstance(pairs, MaskFiles)
    names = [
        np.array([path.split(b"/")[-1] for path in paths.tolist()], np.bytes_) for paths in (pairs.images, pairs.masks)
    ]
    return [*names, pairs.sizes()]


def _skip_notes(name: str, bad: dict[str, dict[str, str]]) -> tuple[str, ...]:
    """How many images were left out, where any were."""
    left_out = sum(len(found) for found in bad.values())
    return (f"{name}: {left_out:,} images that cannot be used are left out",) if left_out else ()


def _size_notes(name: str, test: Pairs, size: int, augment: Augment) -> tuple[str, ...]:
    """Whether test images are evaluated below their own size, or far below the sizes that training shows.

    The former flatters, small mistakes disappear; the latter costs much: training enlarges images, evaluation does not.
    """
    if not isinstance(test, MaskArrays) or not len(test):
        return ()
    sides = [max(image.shape[:2]) for image in test.images]
    low, high = int(augment.scale_min * size), int(augment.scale_max * size)
    if max(sides) < ENLARGED * min(size, (low + high) / 2):
        drawn = f"{low}" if low == high else f"{low}-{high}"
        return (
            f"{name}: test images are at most {max(sides)} pixels, training draws them at {drawn}: "
            f"set data.image_size={max(sides)}",
        )
    reduced = sum(side > size for side in sides)
    if not reduced:
        return ()
    return (f"{name}: {reduced:,} test images are evaluated at {size} pixels, below their own size, labels by nearest",)
