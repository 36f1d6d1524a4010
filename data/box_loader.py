"""Batches of images with boxes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from data.annotated import Annotated
from data.augment import Normalize
from data.decode import Decode, Pixels, whole
from data.interface import MAX_BOXES, DetectionBatch
from data.joint import MIN_SIDE, Placement, fitted
from data.options import Augment, Loading, Reading
from data.placed import Placed, PlacedBatches, PlacedLoader, Truth
from data.splits import Batches


class Pictures(Protocol):
    """Where the pixels of a split come from."""

    def __call__(self, index: int) -> Pixels:
        """The (H, W, 3) pixels of an image; raises whatever the decoder raises on a damaged file."""
        ...


@dataclass(frozen=True)
class FilePictures:
    """Image files, decoded each time: a twentieth of what a training step takes, and workers do it beside the step."""

    annotated: Annotated
    decode: Decode

    def __call__(self, index: int) -> Pixels:
        """See `Pictures`; also ValueError for an image of another size than its annotation says."""
        pixels = self.decode(self.annotated.read(index), whole)
        (height, width), said = pixels.shape[:2], self.annotated.sizes[index].tolist()
        if [height, width] != said:
            raise ValueError(
                f"it has {width}x{height} pixels, its annotation says {said[1]}x{said[0]}: one of the two is wrong"
            )
        return pixels


@dataclass(frozen=True)
class MemoryPictures:
    """Images that are in memory. images: (N, H, W, 3) uint8."""

    images: Pixels

    def __call__(self, index: int) -> Pixels:
        """See `Pictures`."""
        return self.images[index]


class PlacedBoxes(PlacedBatches):
    """Batches of images and boxes; in evaluation the longer side is that of the square.

    Args:
        annotated: images and boxes of the split.
        pictures: the pixels of its images.
        size, augment, seed, skip: see `PlacedBatches`.
    """

    def __init__(
        self, annotated: Annotated, pictures: Pictures, size: int, augment: Augment | None, seed: int, skip: bool
    ) -> None:
        super().__init__(len(annotated), size, augment, seed, skip)
        self.annotated, self.pictures = annotated, pictures

    def name(self, position: int) -> str:
        return self.annotated.name(position)

    def read(self, position: int) -> tuple[Pixels, None]:
        return self.pictures(position), None

    def fitted(self, height: int, width: int) -> Placement:
        return fitted(height, width, self.size)

    def blank(self, count: int) -> Truth:
        return {
            "boxes": torch.full((count, MAX_BOXES, 4), -1.0),
            "labels": torch.full((count, MAX_BOXES), -1, dtype=torch.int64),
            "scales": torch.zeros(count, dtype=torch.float64),
        }

    def write(self, truth: Truth, row: int, position: int, found: None, place: Placement) -> None:
        truth["scales"][row] = place.scale
        self._objects(position, place, truth["boxes"][row], truth["labels"][row])

    def _objects(self, index: int, place: Placement, boxes: Tensor, labels: Tensor) -> None:
        """Fill in the boxes of an image: not the crowds; of more than 100 the largest that the square shows.

        In evaluation every box with an area is there, so that the truth taken for detections is a perfect score.
        """
        found = self.annotated.of(index)
        found = found[~found.ignored]
        corners, kept = place.boxes(found.boxes, 0.0 if self.augment is None else MIN_SIDE)
        areas = (corners[:, 2:] - corners[:, :2]).prod(1)
        chosen = np.sort(np.argsort(-areas, kind="stable")[:MAX_BOXES])
        boxes[: len(chosen)] = torch.from_numpy(corners[chosen])
        labels[: len(chosen)] = torch.from_numpy(found.labels[kept[chosen]])


class BoxLoader(PlacedLoader[DetectionBatch]):
    """Batches of a split of images with boxes.

    Args:
        annotated: images and boxes of the split.
        pictures: the pixels of its images, in memory or in files.
        size: side of the square batches.
        augment: of training images.
        batches, normalize, reading, loading: see `PlacedLoader`.
    """

    def __init__(
        self,
        annotated: Annotated,
        pictures: Pictures,
        size: int,
        batches: Batches,
        normalize: Normalize,
        augment: Augment,
        reading: Reading,
        loading: Loading,
    ) -> None:
        drawn_with = augment if batches.shuffled else None
        placed = PlacedBoxes(annotated, pictures, size, drawn_with, batches.seed, reading.on_bad_image == "skip")
        super().__init__(placed, isinstance(pictures, FilePictures), batches, normalize, reading, loading)
        self.annotated = annotated
        self.image_ids = torch.from_numpy(annotated.image_ids)

    @cached_property
    def truth(self) -> dict[str, Any]:
        """The split in COCO's format, in pixels of the original images; label i of a batch is `categories[i]["id"]`."""
        return self.annotated.truth()

    def with_truth(self, images: Tensor, placed: Placed) -> DetectionBatch:
        truth = placed.truth
        boxes, labels = self.moved(truth["boxes"]), self.moved(truth["labels"])
        return DetectionBatch(images, boxes, labels, truth["scales"], self.image_ids[placed.taken], placed.taken)
