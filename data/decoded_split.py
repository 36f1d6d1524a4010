"""A split of small images, decoded once and kept in memory as uint8."""

from __future__ import annotations

import io
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.crops import center
from data.decode import FORMATS, GRAY, Content, Decode, Pixels, pick_decoder, unreadable, whole, why
from data.folders import Files
from data.pictures import resized

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Decoded:
    """A split in memory.

    Args:
        images: (N, 3, S, S) uint8; gray is repeated.
        files: the N files that could be read.
        gray: no image has a colour.
        resized: how many images came in another size.
        bad: path -> reason, of the files left out.
    """

    images: Tensor
    files: Files
    gray: bool
    resized: int
    bad: dict[str, str]


def decode_all(files: Files, size: int, decoder: str, workers: int, skip: bool) -> Decoded:
    """Decode every file to (size, size): another size has its short side resized and its centre cropped.

    Args:
        files: of the split.
        size: side of the images, in pixels.
        decoder: see `data.decode.pick_decoder`.
        workers: threads (decoders release the interpreter's lock).
        skip: leave out files that cannot be read, with a warning, instead of raising.

    Raises:
        ValueError: for a file that is no image, or without `skip` any that cannot be decoded; names three.
    """
    decode = pick_decoder(decoder)

    def one(index: int) -> tuple[Pixels | None, bool, bool, str]:
        try:
            return *_square(files.read(index), size, decode), ""
        except Exception as error:  # decoders raise nearly anything on damaged files
            return None, True, False, why(error)

    images = np.empty((len(files), size, size, 3), np.uint8)
    good: list[int] = []
    bad: dict[str, str] = {}
    gray, other_size = True, 0
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for index, (pixels, is_gray, changed, reason) in enumerate(pool.map(one, range(len(files)))):
            if pixels is None:
                bad[files.name(index)] = reason
                if skip:
                    log.warning("%s: left out, not a usable image (%s)", files.name(index), reason)
                continue
            images[len(good)] = pixels
            good.append(index)
            gray, other_size = gray and is_gray, other_size + changed
    if (bad and not skip) or not good:
        raise ValueError(unreadable(list(bad.items())))
    kept = torch.from_numpy(images[: len(good)]).permute(0, 3, 1, 2).contiguous()
    return Decoded(kept, files.part(np.array(good, np.int64)), gray, other_size, bad)


def _square(content: Content, size: int, decode: Decode) -> tuple[Pixels, bool, bool]:
    """Pixels (size, size, 3), whether the file is gray, and whether it came in another size."""
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        mode = image.mode
    pixels = decode(content, whole)
    height, width = pixels.shape[:2]
    if (height, width) == (size, size):
        return pixels, mode in GRAY, False
    scale = size / min(height, width)
    height, width = max(size, round(height * scale)), max(size, round(width * scale))
    top, left = center(height, width, size)
    return resized(pixels, height, width)[top : top + size, left : left + size], mode in GRAY, True
