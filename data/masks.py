"""Images with a mask: where they come from, and how a mask file is read."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from data.decode import FORMATS, Content, Decode, Pixels, check_size, pick_decoder, unreadable, whole, why
from data.folders import size_on_disk
from data.interface import IGNORE
from data.joint import Mask
from data.name_lists import hint_on_name
from data.splits import Indices

MAX_IN_MEMORY = 2**27  # pixels of all splits together, 4 bytes each: full-size CamVid just fits


class Pairs(Protocol):
    """Images with masks of one split."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The path of an image, for messages."""
        ...

    def __getitem__(self, index: int) -> tuple[Pixels, Mask]:
        """(H, W, 3) uint8 pixels and (H, W) uint8 classes; raises whatever the decoder raises on a damaged file."""
        ...

    def part(self, indices: Indices) -> Self:
        """Some of the pairs, in the order given."""
        ...


@dataclass(frozen=True)
class Labels:
    """How the pixels of a mask are to be read.

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


@dataclass(frozen=True)
class MaskFiles:
    """Image files and mask files.

    Args:
        images, masks: (N,) their paths as bytes; arrays, since a million small objects would be copied into workers.
        labels: how the masks are read.
        decode: image file to pixels.
    """

    images: NDArray[np.bytes_]
    masks: NDArray[np.bytes_]
    labels: Labels
    decode: Decode

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """The path of an image."""
        return os.fsdecode(self.images[index])

    def __getitem__(self, index: int) -> tuple[Pixels, Mask]:
        """See `Pairs`; ValueError with the path of the mask for one that does not fit the image or the classes."""
        with open(self.name(index), "rb") as file:
            pixels = self.decode(file.read(), whole)
        path = os.fsdecode(self.masks[index])
        try:
            with open(path, "rb") as file:
                mask = self.labels.checked(read_mask(file.read()))
            if mask.shape != pixels.shape[:2]:
                (height, width), (rows, columns) = mask.shape, pixels.shape[:2]
                raise ValueError(f"{width}x{height} pixels, its image has {columns}x{rows}")
        except Exception as error:  # decoders raise nearly anything on damaged files
            raise ValueError(f"its mask {path}: {' '.join(str(error).split())}") from error
        return pixels, mask

    def part(self, indices: Indices) -> MaskFiles:
        """Some of the pairs, in the order given."""
        return MaskFiles(self.images[indices], self.masks[indices], self.labels, self.decode)

    def sizes(self) -> Indices:
        """(N, 2) sizes of image and mask files in bytes."""
        paths = ((os.fsdecode(image), os.fsdecode(mask)) for image, mask in zip(self.images, self.masks, strict=True))
        return np.array([[size_on_disk(path) for path in pair] for pair in paths], np.int64)


@dataclass(frozen=True)
class MaskArrays:
    """Images and masks in memory. images: (H, W, 3) uint8 each; masks: (H, W) uint8 each."""

    images: list[Pixels] | Pixels
    masks: list[Mask] | NDArray[np.uint8]
    names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """The path of an image, or its number."""
        return str(index) if self.names is None else self.names[index]

    def __getitem__(self, index: int) -> tuple[Pixels, Mask]:
        """See `Pairs`."""
        return self.images[index], self.masks[index]

    def part(self, indices: Indices) -> MaskArrays:
        """Some of the pairs, in the order given."""
        names = None if self.names is None else tuple(self.names[i] for i in indices)
        return MaskArrays([self.images[i] for i in indices], [self.masks[i] for i in indices], names)


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


def pixels_of(files: MaskFiles) -> int:
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


def in_memory(files: MaskFiles, workers: int, skip: bool) -> tuple[MaskArrays, dict[str, str]]:
    """Decode every pair; also the reasons of those left out, by path.

    Args:
        files: of the split.
        workers: threads.
        skip: leave out pairs that cannot be read, instead of raising.

    Raises:
        ValueError: without `skip` for pairs that cannot be read, or if there are no others; names three files.
    """

    def one(index: int) -> tuple[Pixels, Mask] | str:
        try:
            return files[index]
        except Exception as error:
            return why(error)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        found = list(pool.map(one, range(len(files))))
    bad = {files.name(i): reason for i, reason in enumerate(found) if isinstance(reason, str)}
    good = [(i, pair) for i, pair in enumerate(found) if not isinstance(pair, str)]
    if bad and (not skip or not good):
        raise ValueError(unreadable(list(bad.items()), "usable pair"))
    names = tuple(files.name(i) for i, _ in good)
    return MaskArrays([pair[0] for _, pair in good], [pair[1] for _, pair in good], names), bad


def pair_up(
    name: str, images: dict[str, Path], masks: dict[str, Path], wanted: list[str], labels: Labels, decoder: str
) -> MaskFiles:
    """The files of these names.

    Args:
        name: of the data set, for messages.
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
    return MaskFiles(
        np.array([os.fsencode(images[known]) for known in wanted], np.bytes_),
        np.array([os.fsencode(masks[known]) for known in wanted], np.bytes_),
        labels,
        pick_decoder(decoder),
    )
