"""Which part of a photograph the network sees: the random box of training, the centre of evaluation (paper, 4.1)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

AREA, ASPECT, TRIALS = (0.08, 1.0), (3 / 4, 4 / 3), 10  # as in the authors' released code
BOX_DRAWS = 4 * TRIALS
EVAL_FRACTION = 224 / 256  # of the short side that the centre crop keeps, released code

Box = tuple[int, int, int, int]  # top, left, height, width


def random_box(height: int, width: int, draws: NDArray[np.float64]) -> Box:
    """A box of random area and aspect that fits into the image; after ten misfits the largest central one that may be.

    The distribution of torchvision's RandomResizedCrop, from draws that are handed in.

    Args:
        height, width: of the image.
        draws: (40,) uniforms in [0, 1): area, aspect, top and left of each trial.
    """
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    for area_draw, aspect_draw, top_draw, left_draw in draws.reshape(TRIALS, 4).tolist():
        area = height * width * (AREA[0] + area_draw * (AREA[1] - AREA[0]))
        aspect = math.exp(low + aspect_draw * (high - low))
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = int(top_draw * (height - box_height + 1)), int(left_draw * (width - box_width + 1))
            return top, left, box_height, box_width
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
