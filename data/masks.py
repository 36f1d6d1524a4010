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
from data.decode import FORMATS, Content, Decode, check_size, hint_on_turn, orientation_in, pick_decoder, whole
from data.folders import hint_on_name, size_on_disk
from data.interface import Data, Loading, SegmentationBatch, assemble
from data.loader import IMAGENET_STATISTICS, FileLoader, Statistics, channel_statistics
from data.pipelines import placed
from data.placement import Mask
from data.samples import IGNORE, Counts, Row, Sample, Samples, cut, cut_notes, decoded, fingerprint, only_ends
from data.splits import Batches

SOME_MASKS = 200  # that are looked at for their classes, where they are too many to be kept in memory
MAX_IN_MEMORY = 2**27  # pixels of all splits together, 4 bytes each: full-size CamVid just fits
ENLARGED = 0.8  # of the size in training: test images below are another problem than the one trained on


@dataclass(frozen=True)
class Labels:
    """The reading of a mask's pixels.

    Args:
        classes: their names; a pixel is the index of one of them or 255, which is ignored.
        void: a further index that is ignored, such as CamVid's 11.
        values: the gray level of each class, where these are not the indices; others are refused, but for a 255 that
            is none of them.
        hint: ends the message about an index that is no class.
    """

    classes: tuple[str, ...]
    void: int | None = None
    values: tuple[int, ...] | None = None
    hint: str = ""

    def checked(self, mask: Mask) -> Mask:
        """The mask as indices, with what is ignored as 255.

        Raises:
            ValueError: for a level that is no class.
        """
        found = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
        if self.values is not None:
            wrong = np.setdiff1d(found, [*self.values, IGNORE])
            if len(wrong):
                raise ValueError(f"gray level {wrong[0]}, which data.mask_values={[*self.values]} does not name")
            index = np.full(256, IGNORE, np.uint8)
            index[list(self.values)] = np.arange(len(self.values))
            return index[mask]
        if self.void is not None:
            mask = np.where(mask == self.void, np.uint8(IGNORE), mask)
        wrong = found[(found >= len(self.classes)) & (found != IGNORE) & (found != self.void)]
        if len(wrong):
            raise ValueError(
                f"label {wrong[0]}, and the classes are 0 ... {len(self.classes) - 1} ({IGNORE} is ignored){self.hint}"
            )
        return mask

    def read(self, path: str) -> Mask:
        """(H, W) indices of a mask file, with what is ignored as 255; ValueError for one that does not fit."""
        white = 1 if self.values is None or IGNORE not in self.values else IGNORE
        with open(path, "rb") as file:
            return self.checked(read_mask(file.read(), white))


@dataclass(frozen=True)
class Pairs(Samples):
    """The files of a split. The columns are `name` and `mask`, the paths of an image and of its mask."""

    labels: Labels = Labels(())

    def class_counts(self, num_classes: int, most: int) -> Counts:
        """Pixels of each class in a fixed choice of the masks: in more of them, up to `most`, where it lacks one."""
        if self.in_memory:
            return super().class_counts(num_classes, most)
        counts, read, black_and_white = np.zeros(256, np.int64), 0, 0
        for index in np.random.default_rng(0).permutation(len(self)).tolist():
            if read >= most or (read >= SOME_MASKS and counts[:num_classes].all()):
                break
            read += 1
            try:
                mask = self.labels.read(os.fsdecode(self["mask"][index]))
            except Exception:  # decoders raise nearly anything on damaged files; training reports them
                continue
            of_mask = np.bincount(mask.ravel(), minlength=256)
            counts, black_and_white = counts + of_mask, black_and_white + only_ends(of_mask)
        return Counts("pixels", counts[:num_classes].tolist(), read, int(counts[IGNORE]), black_and_white)


def pair_up(
    data: DataConfig,
    images: dict[str, Path],
    masks: dict[str, Path],
    wanted: list[str],
    labels: Labels,
    unused: Sequence[str] = (),
) -> Pairs:
    """The pairs of these names, as files.

    Args:
        data: its name, for messages; how images are read.
        images, masks: the files that are there, by name.
        wanted: the names of the split.
        unused: files beside them, of formats that are not read.

    Raises:
        FileNotFoundError: for a name without an image or without a mask; names it.
    """
    for kind, there in (("image", images), ("mask", masks)):
        missing = [known for known in wanted if known not in there]
        if missing:
            more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
            hint = hint_on_name(missing[0], (str(path) for known, path in there.items() if known not in wanted))
            raise FileNotFoundError(f"{data.name}: '{missing[0]}' has no {kind}{more}{hint}")
    columns = {
        "name": np.array([os.fsencode(images[known]) for known in wanted], np.bytes_),
        "mask": np.array([os.fsencode(masks[known]) for known in wanted], np.bytes_),
    }
    read = partial(read_pair, labels, pick_decoder(data.decoder, data.exif))
    return Pairs(columns, read, from_files=True, unused=unused, labels=labels)


def read_pair(labels: Labels, decode: Decode, row: Row) -> Sample:
    """(H, W, 3) pixels and (H, W) classes; ValueError with the path of the mask for one that does not fit."""
    with open(os.fsdecode(row["name"]), "rb") as file:
        content = file.read()
    pixels = decode(content, whole)
    path = os.fsdecode(row["mask"])
    try:
        mask = labels.read(path)
        if mask.shape != pixels.shape[:2]:
            (height, width), (rows, columns) = mask.shape, pixels.shape[:2]
            turned = hint_on_turn(orientation_in(content), mask.shape == (columns, rows))
            raise ValueError(f"{width}x{height} pixels, its image has {columns}x{rows}{turned}")
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise ValueError(f"its mask {path}: {' '.join(str(error).split())}") from error
    return {"images": pixels, "masks": mask}


def read_mask(content: Content, white: int = 1) -> Mask:
    """(H, W) indices of a mask file: of a palette image its indices, of a gray one its levels.

    white: the level of white in an image of one bit; black is 0.

    Raises:
        ValueError: for any other image, such as one of colours.
    """
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=("PNG", "BMP", "TIFF")) as image:
        check_size(image.height, image.width)
        if image.mode == "1":
            return np.array(image).astype(np.uint8) * np.uint8(white)
        if image.mode not in ("P", "L"):
            kind = f"an image of mode {image.mode}, not of class indices (palette or 8-bit gray)"
            if image.mode in ("LA", "RGB", "RGBA"):
                first, second, third = np.array(image.convert("RGB")).transpose(2, 0, 1)
                gray = np.array_equal(first, second) and np.array_equal(first, third)
                kind += (
                    ": its colours are all gray, so Pillow's image.convert('L') makes a gray one of it"
                    if gray
                    else ": give each of its colours the index of a class first"
                )
            raise ValueError(kind)
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
            hint = "; data.mask_values=[0,255] reads masks of black and white" if name == "segmentation_folder" else ""
            raise ValueError(f"{name}: no mask of {split} has a labelled pixel (a class; {IGNORE} is ignored{hint})")

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
