"""An image with a mask or boxes, placed in the square that the network sees.

The longer side of the image is brought to a size (random in training: scale jitter), what is larger than the square
is cropped at random, and what is smaller is padded on the right and at the bottom, so that positions keep one origin
(tensorflow/tpu, retinanet/dataloader.py: longer side to int(U(low, high) * S), crop, pad).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from data.decode import Pixels, check_size
from data.draws import BRIGHTNESS, CONTRAST, FLIP, LEFT, SATURATION, SCALE, TOP, Draws
from data.interface import MAX_BOXES
from data.samples import IGNORE, Sample

Mask = NDArray[np.uint8]
MIN_SIDE = 1.0  # pixels of the square; of a box that the crop leaves less of, nothing can be learned


@dataclass(frozen=True)
class Placement:
    """Position of an image in the square that the network sees.

    Args:
        size: side of the square.
        height, width: sides of the resized image.
        scale: pixels of the square per pixel of the original, on both axes: boxes are scaled by this one number there
            and back, whatever the rounding of the shorter side.
        top, left: row and column of the resized image at the origin of the square.
        flip: the part that is seen is mirrored left and right.
    """

    size: int
    height: int
    width: int
    scale: float = 1.0
    top: int = 0
    left: int = 0
    flip: bool = False

    @property
    def seen(self) -> tuple[int, int]:
        """Rows and columns of the square that show the image; the rest is padding."""
        return min(self.height - self.top, self.size), min(self.width - self.left, self.size)

    def image(self, pixels: Pixels) -> Pixels:
        """(H, W, 3) bytes to the part that is seen, antialiased bilinear."""
        if pixels.shape[:2] != (self.height, self.width):
            check_size(self.height, self.width)
            # The batch dimension first: torch then answers in channels-last strides, in two thirds of the time.
            image = torch.from_numpy(np.ascontiguousarray(pixels))[None].permute(0, 3, 1, 2)
            shape = (self.height, self.width)
            resized = F.interpolate(image, size=shape, mode="bilinear", antialias=True)
            pixels = resized[0].permute(1, 2, 0).numpy()
        return self._cut(pixels)

    def mask(self, mask: Mask) -> Mask:
        """(H, W) class indices to the part that is seen, each pixel that of the nearest original one."""
        if mask.shape != (self.height, self.width):
            rows, columns = (
                ((np.arange(new) + 0.5) * (old / new)).astype(np.int64)
                for new, old in zip((self.height, self.width), mask.shape, strict=True)
            )
            mask = mask[rows[:, None], columns[None, :]]
        return self._cut(mask)

    def _cut(self, array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        rows, columns = self.seen
        part = array[self.top : self.top + rows, self.left : self.left + columns]
        return part[:, ::-1] if self.flip else part

    def boxes(
        self, boxes: NDArray[np.float64], smallest: float = MIN_SIDE
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Boxes of the original image in the square.

        Args:
            boxes: (M, 4) left, top, width, height in pixels of the original image.
            smallest: sides below this many pixels of the square are too small, as are those of 0.

        Returns:
            (M', 4) left, top, right, bottom in pixels of the square, clipped to what is seen; and the rows (M',) of
            those that are left.
        """
        # Scaled, moved, clipped and mirrored, in the order in which the pixels are.
        rows, columns = self.seen
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1) * self.scale
        corners -= (self.left, self.top) * 2
        corners[:, 0::2] = corners[:, 0::2].clip(0, columns)
        corners[:, 1::2] = corners[:, 1::2].clip(0, rows)
        if self.flip:
            corners[:, 0::2] = columns - corners[:, 2::-2]
        sides = corners[:, 2:] - corners[:, :2]
        kept = np.flatnonzero(((sides >= smallest) & (sides > 0)).all(1))
        return corners[kept], kept


def fitted(height: int, width: int, size: int, longer: int | None = None) -> Placement:
    """The placement of evaluation: the longer side becomes `longer` (None: the side of the square), nothing is cut."""
    target, side = size if longer is None else longer, max(height, width)
    new_height, new_width = (max(1, round(old * target / side)) for old in (height, width))
    return Placement(size, new_height, new_width, target / side)


def drawn(
    height: int, width: int, size: int, scale: tuple[float, float], flip: bool, draws: NDArray[np.float64]
) -> Placement:
    """The placement of training.

    Args:
        height, width: sides of the original image.
        size: side of the square.
        scale: the longer side becomes int(U(low, high) * size).
        flip: mirror with probability 1/2.
        draws: uniforms in [0, 1) of this image, at the places of `data.draws`.
    """
    low, high = scale
    whole = fitted(height, width, size, max(1, int((low + draws[SCALE] * (high - low)) * size)))
    return Placement(
        size,
        whole.height,
        whole.width,
        whole.scale,
        int(draws[TOP] * (max(0, whole.height - size) + 1)),
        int(draws[LEFT] * (max(0, whole.width - size) + 1)),
        bool(flip and draws[FLIP] < 0.5),
    )


def jitter(sample: Sample, draws: Draws | None, *, size: int, scale: tuple[float, float], flip: bool) -> Sample:
    """Place a sample for training; see `drawn`."""
    assert draws is not None
    height, width = sample["images"].shape[:2]
    return placed(sample, drawn(height, width, size, scale, flip, draws.uniforms), MIN_SIDE)


def fit(sample: Sample, draws: Draws | None, *, size: int, enlarge: bool) -> Sample:
    """Place a sample for evaluation: nothing is cut, no box with an area is left out.

    enlarge: the longer side becomes that of the square where it is shorter.
    """
    height, width = sample["images"].shape[:2]
    longer = size if enlarge else min(size, max(height, width))
    return placed(sample, fitted(height, width, size, longer), 0.0)


def placed(sample: Sample, place: Placement, smallest: float) -> Sample:
    """Image, mask and boxes alike, as far as the square shows them; `seen` are the rows and columns that it shows."""
    sample = {**sample, "images": place.image(sample["images"]), "seen": np.array(place.seen)}
    if "masks" in sample:
        sample["masks"] = place.mask(sample["masks"])
    if "boxes" in sample:
        boxes, kept = place.boxes(sample["boxes"], smallest)
        sample |= {"boxes": boxes, "labels": sample["labels"][kept], "scales": np.float64(place.scale)}
    return sample


def recolour(sample: Sample, draws: Draws | None, *, strength: float) -> Sample:
    """Multiply brightness, then contrast, then saturation by U(1 - strength, 1 + strength) each; 0 changes nothing."""
    from torchvision.transforms.v2 import functional as colours

    assert draws is not None
    if strength == 0:
        return sample
    image = torch.from_numpy(np.ascontiguousarray(sample["images"])).permute(2, 0, 1)
    for place, change in (
        (BRIGHTNESS, colours.adjust_brightness),
        (CONTRAST, colours.adjust_contrast),
        (SATURATION, colours.adjust_saturation),
    ):
        image = change(image, 1 + strength * (2 * float(draws.uniforms[place]) - 1))
    return {**sample, "images": image.permute(1, 2, 0).numpy()}


def pad(sample: Sample, draws: Draws | None, *, size: int) -> Sample:
    """Give a sample the fixed shapes of a batch: image and mask (size, size), padded right and below; 100 boxes."""
    rows, columns = sample["seen"]
    images = np.zeros((size, size, 3), np.uint8)
    images[:rows, :columns] = sample["images"]
    sample = {**sample, "images": images}
    if "masks" in sample:
        masks = np.full((size, size), IGNORE, np.uint8)
        masks[:rows, :columns] = sample["masks"]
        sample["masks"] = masks
    if "boxes" in sample:
        # Of more than 100 boxes the largest, in their order; fewer are padded with -1.
        corners, labels = sample["boxes"], sample["labels"]
        areas = (corners[:, 2:] - corners[:, :2]).prod(1)
        chosen = np.sort(np.argsort(-areas, kind="stable")[:MAX_BOXES])
        sample["boxes"], sample["labels"] = np.full((MAX_BOXES, 4), -1, np.float32), np.full(MAX_BOXES, -1, np.int64)
        sample["boxes"][: len(chosen)], sample["labels"][: len(chosen)] = corners[chosen], labels[chosen]
    return sample
