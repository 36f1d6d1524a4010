"""Images with a mask: how a pair of files is read, and the data set made of such pairs."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.schema import AugmentConfig, DataConfig
from data.decode import FORMATS, Content, Decode, check_size, pick_decoder, whole
from data.folders import hint_on_name, size_on_disk
from data.interface import IGNORE, Data, Loading, SegmentationBatch, assemble
from data.loader import IMAGENET_STATISTICS, FileLoader, Statistics, channel_statistics
from data.pipelines import placed
from data.placement import Mask
from data.samples import Row, Sample, Samples, cut, cut_notes, decoded, fingerprint
from data.splits import Batches

MAX_IN_MEMORY = 2**27  # pixels of all splits together, 4 bytes each: full-size CamVid just fits
ENLARGED = 0.8  # of the size in training: test images below are another problem than the one trained on


@dataclass(frozen=True)
class Labels:
    """The reading of a mask's pixels.

    Args:
        classes: their names; a pixel is the index of one of them or 255, which is ignored.
        void: a further index that is ignored, such as CamVid's 11.
    """

    classes: tuple[str, ...]
    void: int | None = None

    def checked(self, mask: Mask) -> Mask:
        """The mask with `void` as 255.

        Raises:
            ValueError: for an index that is no class.
        """
        if self.void is not None:
            mask = np.where(mask == self.void, np.uint8(IGNORE), mask)
        found = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
        wrong = found[(found >= len(self.classes)) & (found != IGNORE)]
        if len(wrong):
            raise ValueError(
                f"label {wrong[0]}, and the classes are 0 ... {len(self.classes) - 1} ({IGNORE} is ignored)"
            )
        return mask


def pair_up(
    name: str, images: dict[str, Path], masks: dict[str, Path], wanted: list[str], labels: Labels, decoder: str
) -> Samples:
    """The pairs of these names, as files.

    Args:
        name: data set, for messages.
        images, masks: the files that are there, by name.
        wanted: the names of the split.

    Raises:
        FileNotFoundError: for a name without an image or without a mask; names it.
    """
    for kind, there in (("image", images), ("mask", masks)):
        missing = [known for known in wanted if known not in there]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            raise FileNotFoundError(f"{name}: '{missing[0]}' has no {kind}{more}{hint_on_name(missing[0])}")
    columns = {
        "name": np.array([os.fsencode(images[known]) for known in wanted], np.bytes_),
        "mask": np.array([os.fsencode(masks[known]) for known in wanted], np.bytes_),
    }
    return Samples(columns, partial(read_pair, labels, pick_decoder(decoder)))


def read_pair(labels: Labels, decode: Decode, row: Row) -> Sample:
    """(H, W, 3) pixels and (H, W) classes; ValueError with the path of the mask for one that does not fit."""
    with open(os.fsdecode(row["name"]), "rb") as file:
        pixels = decode(file.read(), whole)
    path = os.fsdecode(row["mask"])
    try:
        with open(path, "rb") as file:
            mask = labels.checked(read_mask(file.read()))
        if mask.shape != pixels.shape[:2]:
            (height, width), (rows, columns) = mask.shape, pixels.shape[:2]
            raise ValueError(f"{width}x{height} pixels, its image has {columns}x{rows}")
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise ValueError(f"its mask {path}: {' '.join(str(error).split())}") from error
    return {"images": pixels, "masks": mask}


def read_mask(content: Content) -> Mask:
    """(H, W) indices of a PNG: of a palette image its indices, of a gray one its levels.

    Raises:
        ValueError: for any other image, such as one of colours.
    """
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=("PNG", "BMP")) as image:
        check_size(image.height, image.width)
        if image.mode not in ("P", "L"):
            raise ValueError(f"an image of mode {image.mode}, not of class indices (palette or 8-bit gray)")
        return np.array(image)


def pixels_of(files: Samples) -> int:
    """Number of pixels of all images, from their headers; a damaged one counts nothing here."""
    from PIL import Image

    total = 0
    for index in range(len(files)):
        try:
            with Image.open(files.name(index), formats=FORMATS) as image:
                total += image.width * image.height
        except (OSError, Image.DecompressionBombError):
            continue
    return total


def open_segmentation(
    data: DataConfig,
    augment: AugmentConfig,
    loading: Loading,
    splits: Mapping[str, Samples],
    classes: tuple[str, ...],
    statistics: Statistics | None,
    notes: Sequence[str],
) -> Data:
    """The data set of these splits.

    Args:
        splits: `train`, `test`, and `val` where the data set has one; else it is cut from `train`.
        classes: their names, in the order of the labels.
        statistics: mean and standard deviation of each channel, of values in [0, 1]; None = of the images trained on
            where they are in memory, else of ImageNet.
        notes: those of the opener; notes on the cut and on what was found are added.

    Raises:
        ValueError: for a pair in memory that cannot be used; names the file.
    """
    name, size, skip = data.name, data.image_size, data.on_bad_image == "skip"
    parts = cut(splits, data)
    # A small data set is decoded once.
    if not parts["train"].in_memory and sum(map(pixels_of, parts.values())) <= MAX_IN_MEMORY:
        for split, files in parts.items():
            if len(files):
                parts[split] = decoded(files, files.read, loading.workers, skip, "usable pair")
    for split, pairs in parts.items():
        if pairs.in_memory and len(pairs) and all((mask == IGNORE).all() for mask in pairs["masks"]):
            raise ValueError(f"{name}: no mask of {split} has a labelled pixel (a class; {IGNORE} is ignored)")

    # Normalized by the images trained on where they are at hand.
    train = parts["train"]
    if statistics is None and train.in_memory:
        statistics = channel_statistics(np.concatenate([image.reshape(-1, 3) for image in train["images"]]))
    found = statistics or IMAGENET_STATISTICS
    left_out = sum(len(pairs.left_out) for pairs in parts.values())
    skipped = [f"{name}: {left_out:,} images that cannot be used are left out"] if left_out else []
    # Images of several sizes are hashed one after the other, so that the digest alone does not say where a split ends.
    digest = fingerprint([name, classes, *(array for pairs in parts.values() for array in _identity(pairs))])

    def loader(samples: Samples, batches: Batches) -> FileLoader:
        steps = placed(size, augment, loading.regularizers, batches.shuffled, enlarge=False)
        return FileLoader(samples, batches, steps, segmentation_batch, found, data, loading)

    return assemble(
        data,
        parts,
        loader,
        loading,
        classes=classes,
        image_shape=(3, size, size),
        fingerprint="-".join([digest, *(str(len(pairs)) for pairs in parts.values())]),
        notes=[
            *notes,
            *cut_notes(data, splits, parts),
            *skipped,
            *_size_notes(name, parts["test"], size, augment),
        ],
    )


def segmentation_batch(**fields: Any) -> SegmentationBatch:
    """Masks travel to the device as bytes and become labels there."""
    return SegmentationBatch(**{**fields, "masks": fields["masks"].long()})


def _identity(pairs: Samples) -> list[NDArray[Any]]:
    """The arrays that tell these pairs from others: their content, or their names and sizes on disk."""
    if pairs.in_memory:
        return [pairs[column][i] for i in range(len(pairs)) for column in ("images", "masks")]
    paths = [[os.fsdecode(path) for path in pairs[column]] for column in ("name", "mask")]
    names = [np.array([os.fsencode(os.path.basename(path)) for path in column], np.bytes_) for column in paths]
    sizes = [[size_on_disk(path) for path in pair] for pair in zip(*paths, strict=True)]
    return [*names, np.array(sizes, np.int64)]


def _size_notes(name: str, test: Samples, size: int, augment: AugmentConfig) -> list[str]:
    """Notes on test images whose size the evaluation changes, or that training shows at other sizes.

    Evaluating below the native size inflates mIoU, since small mistakes disappear; evaluating far below the sizes of
    training deflates it: training enlarges images, evaluation does not.
    """
    if not test.in_memory or not len(test):
        return []
    sides = [max(image.shape[:2]) for image in test["images"]]
    low, high = int(augment.scale_min * size), int(augment.scale_max * size)
    if max(sides) < ENLARGED * min(size, (low + high) / 2):
        drawn = f"{low}" if low == high else f"{low}-{high}"
        return [
            f"{name}: test images are at most {max(sides)} pixels, training draws them at {drawn}: "
            f"set data.image_size={max(sides)}"
        ]
    reduced = sum(side > size for side in sides)
    if not reduced:
        return []
    return [f"{name}: {reduced:,} test images are evaluated at {size} pixels, below their own size, labels by nearest"]
