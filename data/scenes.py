"""Scenes composed of scikit-learn's handwritten digits, for segmentation and detection without a download.

A few digits of different sizes stand on a coloured, noisy background among fragments of other digits, and may partly
cover each other. The digits of train, val and test are disjoint, so test scenes show handwriting that no training scene
has shown. Every scene is a fixed function of its split and number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from data.draws import SCENE, fixed_uniforms, hashed
from data.splits import TEST, VAL, Indices, stratified

SPLITS = ("train", "val", "test")
CLASSES = tuple("0123456789")
SIZES = 5  # sides of digits, in equal ratios
TRIES = 6  # positions tried for a digit before it is left out
COVERED = 0.2  # share of an earlier digit's pixels that a later one may cover
INK = 0.5  # from which opacity on a pixel is the digit's
STROKE = 0.45  # the gray level of a coarse digit at which its strokes end
# The draws of one object: which digit, its size, three colours, the sides of a fragment; then positions.
WHICH, SIZE, COLOUR, SIDES, POSITION = 0, 1, 2, 5, 7
DRAWS = POSITION + 2 * TRIES

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Composition:
    """The ingredients of a scene.

    Args:
        fewest, most: digits of a scene; one that finds no place is left out.
        smallest, largest: sides of a digit as a share of the scene's.
        fragments: number of fragments of other digits.
    """

    fewest: int = 1
    most: int = 4
    smallest: float = 0.25
    largest: float = 0.75
    fragments: int = 4


SCATTERED = Composition()


@dataclass(frozen=True)
class Scenes:
    """Scenes of a split and the digits in them, of which each counts as far as later ones leave it visible.

    Args:
        images: (N, S, S, 3) uint8.
        masks: (N, S, S) uint8, 0 = background, 1 + digit where a digit is visible.
        starts: (N + 1,) int64: the objects of scene i are the rows `starts[i]` ... `starts[i + 1] - 1`.
        boxes: (M, 4) float64, left, top, width, height of the visible pixels, in pixels.
        labels: (M,) int64, the digit.
        areas: (M,) float64, number of visible pixels.
    """

    images: Bytes
    masks: Bytes
    starts: Indices
    boxes: NDArray[np.float64]
    labels: Indices
    areas: NDArray[np.float64]


def compose(split: str, count: int, size: int, made_of: Composition = SCATTERED) -> Scenes:
    """The first `count` scenes of a split.

    Args:
        split: `train`, `val` or `test`.
        count: number of scenes.
        size: side S of a scene in pixels, 32 or more.
        made_of: how many digits and fragments, and of which sizes.

    Raises:
        ValueError: for an unknown split or a size or count out of range.
    """
    if split not in SPLITS or count < 1 or size < 32:
        raise ValueError(
            f"scenes: a split of {SPLITS}, 1 or more scenes of 32 pixels or more, not {split, count, size}"
        )
    number = SPLITS.index(split)
    glyphs = Glyphs.of(split, size, made_of.smallest, made_of.largest)
    objects = 1 + made_of.most + made_of.fragments  # the first row of draws is the scene's own
    draws = fixed_uniforms(
        SCENE, number, np.arange(count)[:, None, None], np.arange(objects)[:, None], np.arange(DRAWS)
    )
    # Fragments lie behind digits, which cover each other in their order.
    images, masks = _backgrounds(number, count, size), np.zeros((count, size, size), np.uint8)
    boxes, labels, starts = [], [], [0]
    for image, mask, draw in zip(images, masks, draws, strict=True):
        for fragment in draw[1 + made_of.most :]:
            _add_fragment(image, glyphs, fragment)
        digits = made_of.fewest + int(draw[0, 0] * (made_of.most - made_of.fewest + 1))
        owners, found = _add_digits(image, glyphs, draw[1 : 1 + digits])
        for owner, label in enumerate(found, start=1):
            rows, columns = np.nonzero(owners == owner)
            mask[rows, columns] = 1 + label
            left, top = columns.min(), rows.min()
            boxes.append((left, top, columns.max() + 1 - left, rows.max() + 1 - top, len(rows)))
        labels += found
        starts.append(len(labels))
    table = np.array(boxes, np.float64)
    return Scenes(images, masks, np.array(starts), table[:, :4], np.array(labels, np.int64), table[:, 4])


@dataclass(frozen=True)
class Glyphs:
    """The digits of a split as opacities at every size.

    Args:
        opacities: a (D, side, side) float32 array in [0, 1] for each size.
        labels: (D,) int64.
    """

    opacities: tuple[NDArray[np.float32], ...]
    labels: Indices

    @staticmethod
    @cache
    def of(split: str, size: int, smallest: float, largest: float) -> Glyphs:
        """The glyphs of a split for scenes of this size, at sides from one share of it to another."""
        from sklearn.datasets import load_digits

        bunch = load_digits()
        labels = bunch.target.astype(np.int64)
        chosen = digits_of(labels)[split]
        coarse = torch.from_numpy(bunch.images[chosen]).float()[:, None] / 16
        ratio = (largest / smallest) ** (1 / (SIZES - 1))
        sides = [round(size * smallest * ratio**step) for step in range(SIZES)]
        scaled = [F.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=False) for side in sides]
        # Interpolated strokes fade over a quarter of the digit; with steep edges the mask is what one sees.
        sharp = [((glyph - STROKE) * (glyph.shape[-1] / 8) + INK).clamp(0, 1) for glyph in scaled]
        return Glyphs(tuple(glyph[:, 0].numpy() for glyph in sharp), labels[chosen])

    def pick(self, draw: NDArray[np.float64]) -> tuple[NDArray[np.float32], int]:
        """Opacities (side, side) and label of the digit that an object's draws name."""
        index = int(draw[WHICH] * len(self.labels))
        return self.opacities[int(draw[SIZE] * SIZES)][index], int(self.labels[index])


def digits_of(labels: Indices) -> dict[str, Indices]:
    """Division of the 1,797 digits among the splits: 1,257 to train, 180 to val, 360 to test (as `data=digits`)."""
    test = stratified(labels, 360, TEST)
    rest = np.setdiff1d(np.arange(len(labels)), test)
    val = rest[stratified(labels[rest], 180, VAL)]
    return {"train": np.setdiff1d(rest, val), "val": val, "test": test}


def _backgrounds(split: int, count: int, size: int) -> Bytes:
    """(count, size, size, 3): dark colours that change smoothly, under noise."""
    cells = fixed_uniforms(SCENE, split, np.arange(count)[:, None], 1_000 + np.arange(3 * 16)).reshape(count, 3, 4, 4)
    smooth = F.interpolate(torch.from_numpy(cells).float(), size=(size, size), mode="bilinear", align_corners=True)
    words = -(-3 * size * size // 8)
    noise = hashed(SCENE, split, np.arange(count)[:, None], 2_000 + np.arange(words)).view(np.uint8)
    noise = noise[:, : 3 * size * size].reshape(count, size, size, 3) >> np.uint8(3)  # 0 ... 31
    return (smooth.mul_(90).byte().permute(0, 2, 3, 1).numpy() + noise).astype(np.uint8)


def _add_digits(image: Bytes, glyphs: Glyphs, draws: NDArray[np.float64]) -> tuple[Bytes, list[int]]:
    """Paint digits into an image; returns which digit (1, 2, ...) each pixel shows, 0 = none, and labels."""
    size = len(image)
    owners, labels, pixels = np.zeros((size, size), np.uint8), list[int](), list[int]()
    for draw in draws:
        opacity, label = glyphs.pick(draw)
        ink = opacity > INK
        for top, left in (draw[POSITION:].reshape(TRIES, 2) * (size + 1 - len(opacity))).astype(int):
            place = np.s_[top : top + len(opacity), left : left + len(opacity)]
            # What is left of an earlier digit counts, not only what this one covers: three may meet.
            visible = np.bincount(owners.flat, minlength=len(pixels) + 1)[1:]
            lost = np.bincount(owners[place][ink], minlength=len(pixels) + 1)[1:]
            if all(v - c >= (1 - COVERED) * p for v, c, p in zip(visible, lost, pixels, strict=True)):
                labels.append(label)
                pixels.append(int(ink.sum()))
                owners[place][ink] = len(labels)
                _paint(image[place], opacity, draw)
                break
    return owners, labels


def _add_fragment(image: Bytes, glyphs: Glyphs, draw: NDArray[np.float64]) -> None:
    """Paint a corner of a digit, a quarter to a half of its side: strokes that are no digit."""
    opacity, _ = glyphs.pick(draw)
    side = len(opacity)
    height, width = (max(3, round(side * (0.25 + 0.25 * share))) for share in draw[SIDES : SIDES + 2])
    top, left = (draw[POSITION : POSITION + 2] * (len(image) + 1 - np.array([height, width]))).astype(int)
    row, column = (draw[POSITION + 2 : POSITION + 4] * (side + 1 - np.array([height, width]))).astype(int)
    _paint(image[top : top + height, left : left + width], opacity[row : row + height, column : column + width], draw)


def _paint(part: Bytes, opacity: NDArray[np.float32], draw: NDArray[np.float64]) -> None:
    """Blend the object's colour into a part of an image, in place."""
    colour = 130 + 125 * draw[COLOUR : COLOUR + 3]
    part[:] = (part + opacity[:, :, None] * (colour - part)).astype(np.uint8)
