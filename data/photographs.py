"""One photograph to the square of pixels that the network sees, by the fast way or by the reference recipe.

In training a random box of it, in evaluation its centre (paper, section 4.1). The fast way decodes to (H, W, 3) bytes,
views them as a channels-last tensor, and resizes with torch's antialiased bicubic kernel for bytes. `decoder=pil` is
torchvision's reference recipe on Pillow images, with the same boxes: the oracle of the tests. Both kernels are the same
cubic (a = -0.5). They round differently, and torch's clamps between its two passes: a few pixels in ten thousand of a
training box differ by more than two levels of 255, up to eight where edges overshoot.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data.decode import Decode, Pixels, check_size, open_rgb, whole
from data.draws import BOX, FLIP, Draws
from data.samples import Sample

AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # as in the authors' released code
EVAL_FRACTION = 224 / 256  # of the short side that the centre crop keeps, released code

Box = tuple[int, int, int, int]  # top, left, height, width


def random_box(height: int, width: int, draws: NDArray[np.float64]) -> Box:
    """A box of random area and aspect that fits into the image; after ten misfits the largest central one that may be.

    The distribution of torchvision's RandomResizedCrop, from draws that are handed in.

    Args:
        height, width: sides of the image.
        draws: (40,) uniforms in [0, 1): area, aspect, top and left of each trial.
    """
    # The first of ten trials that fits; the aspect is uniform in its logarithm.
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    for area_draw, aspect_draw, top_draw, left_draw in draws.reshape(-1, 4).tolist():
        area = height * width * (AREA[0] + area_draw * (AREA[1] - AREA[0]))
        aspect = math.exp(low + aspect_draw * (high - low))
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = int(top_draw * (height - box_height + 1)), int(left_draw * (width - box_width + 1))
            return top, left, box_height, box_width
    # None did: an image much longer than wide, or the other way round.
    box_height, box_width = height, width
    if width < ASPECT[0] * height:
        box_height = max(1, round(width / ASPECT[0]))
    elif width > ASPECT[1] * height:
        box_width = max(1, round(height * ASPECT[1]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def eval_resize(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width after the resize of evaluation: the short side becomes size / 0.875, as torchvision rounds."""
    short = round(size / EVAL_FRACTION)
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def center(height: int, width: int, size: int) -> tuple[int, int]:
    """Top and left of the central square, as torchvision rounds."""
    return round((height - size) / 2), round((width - size) / 2)


def crop_box(sample: Sample, draws: Draws | None, *, size: int, decode: Decode | None, turn: bool = False) -> Sample:
    """The content of an image file to a random box of it, (size, size, 3) bytes.

    Args:
        decode: decoder of the content; None: the reference recipe.
        turn: the reference recipe applies the EXIF orientation; a decoder has its own choice.

    Raises:
        Exception: whatever the decoder raises on a damaged file; ValueError for one that is too large.
    """
    assert draws is not None
    content, box_draws = sample["images"], draws.uniforms[BOX:]
    if decode is not None:  # the box is cut out while the file is decoded
        pixels = decode(content, lambda height, width: random_box(height, width, box_draws))
        return {**sample, "images": resized(pixels, size, size)}
    # The reference recipe.
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resized_crop

    image = open_rgb(content, turn)
    box = random_box(image.height, image.width, box_draws)
    return {**sample, "images": np.array(resized_crop(image, *box, [size, size], InterpolationMode.BICUBIC))}


def crop_centre(sample: Sample, draws: Draws | None, *, size: int, decode: Decode | None, turn: bool = False) -> Sample:
    """The content of an image file to its centre: the short side becomes size / 0.875, then (size, size, 3) bytes.

    See `crop_box`.
    """
    content = sample["images"]
    if decode is not None:
        pixels = decode(content, whole)
        height, width = eval_resize(pixels.shape[0], pixels.shape[1], size)
        check_size(height, width)
        top, left = center(height, width, size)
        return {**sample, "images": resized(pixels, height, width)[top : top + size, left : left + size]}
    # The reference recipe.
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import center_crop, resize

    image = open_rgb(content, turn)
    height, width = eval_resize(image.height, image.width, size)
    check_size(height, width)
    image = resize(image, min(height, width), InterpolationMode.BICUBIC)
    return {**sample, "images": np.array(center_crop(image, size))}


def flip(sample: Sample, draws: Draws | None) -> Sample:
    """Mirror left and right with probability 1/2."""
    if draws is None or draws.uniforms[FLIP] >= 0.5:
        return sample
    mirrored = torch.from_numpy(sample["images"]).flip(1)  # a twentieth of what numpy takes to copy [:, ::-1]
    return {**sample, "images": mirrored.numpy()}


def resized(pixels: Pixels, height: int, width: int) -> Pixels:
    """(H, W, 3) pixels to another height and width, antialiased bicubic.

    The batch dimension comes first of all: torch then sees the strides as channels-last and answers in them, in two
    thirds of the time; `permute(2, 0, 1)[None]` is the same pixels and comes back with the channels outermost.
    """
    image: Tensor = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    return F.interpolate(image, size=(height, width), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
