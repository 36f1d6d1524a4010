"""Batches of images with boxes: worker processes decode and place them, the device normalizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.annotated import Annotated
from data.augment import Normalize, for_network
from data.decode import Decode, Pixels, whole
from data.draws import JOINT_DRAWS, uniforms
from data.interface import MAX_BOXES, DetectionBatch
from data.joint import MIN_SIDE, Placement, drawn, fitted, zero_padding
from data.options import Augment, Loading, Reading
from data.photometric import recoloured
from data.splits import Batches, Indices
from data.workers import MAX_BAD_IN_A_ROW, BadImages, produced


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
            raise ValueError(f"it has {width}x{height} pixels, its annotation says {said[1]}x{said[0]}")
        return pixels


@dataclass(frozen=True)
class MemoryPictures:
    """Images that are in memory. images: (N, H, W, 3) uint8."""

    images: Pixels

    def __call__(self, index: int) -> Pixels:
        """See `Pictures`."""
        return self.images[index]


class Placed(NamedTuple):
    """What a worker sends.

    images: (B, S, S, 3) bytes; seen: (B, 2) rows and columns that show the image.
    boxes, labels, scales: see `DetectionBatch`.
    taken: (B,) the samples; bad: path and reason of the unreadable images met.
    """

    images: Tensor
    seen: Tensor
    boxes: Tensor
    labels: Tensor
    scales: Tensor
    taken: Tensor
    bad: list[tuple[str, str]]


class PlacedBatches(Dataset[Placed]):
    """A data set whose keys are (epoch, sample positions) and whose items are whole batches.

    Args:
        annotated: images and boxes of the split.
        pictures: the pixels of its images.
        size: side of the square.
        augment: None: the placement of evaluation.
        seed: of the augmentation.
        skip: a bad image of a training split gives way to the next good one; of an evaluation split it is left out.
    """

    def __init__(
        self, annotated: Annotated, pictures: Pictures, size: int, augment: Augment | None, seed: int, skip: bool
    ) -> None:
        self.annotated, self.pictures, self.size = annotated, pictures, size
        self.augment, self.seed, self.skip = augment, seed, skip

    def __getitem__(self, key: tuple[int, Indices]) -> Placed:
        epoch, wanted = key
        count, size = len(wanted), self.size
        draws = uniforms(self.seed, epoch, wanted, 0, JOINT_DRAWS)
        images = torch.zeros(count, size, size, 3, dtype=torch.uint8)
        seen, taken = torch.zeros(count, 2, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
        boxes = torch.full((count, MAX_BOXES, 4), -1.0)
        labels = torch.full((count, MAX_BOXES), -1, dtype=torch.int64)
        scales = torch.zeros(count, dtype=torch.float64)
        bad: list[tuple[str, str]] = []
        row = 0
        for index, draw in zip(wanted.tolist(), draws, strict=True):
            found = self._first_good(index, bad)
            if found is None and not self.skip:
                break
            if found is None:
                continue
            position, pixels = found
            place = self._place(pixels.shape[0], pixels.shape[1], draw)
            rows, columns = place.seen
            image = place.image(pixels)
            if self.augment is not None:
                image = recoloured(image, self.augment.photometric, draw)
            images[row].numpy()[:rows, :columns] = image
            seen[row], taken[row], scales[row] = torch.tensor(place.seen), position, place.scale
            self._objects(position, place, boxes[row], labels[row])
            row += 1
        return Placed(images[:row], seen[:row], boxes[:row], labels[:row], scales[:row], taken[:row], bad)

    def _place(self, height: int, width: int, draw: np.ndarray[Any, np.dtype[np.float64]]) -> Placement:
        if self.augment is None:
            return fitted(height, width, self.size)
        jitter = (self.augment.scale_min, self.augment.scale_max)
        return drawn(height, width, self.size, jitter, self.augment.flip, draw)

    def _first_good(self, index: int, bad: list[tuple[str, str]]) -> tuple[int, Pixels] | None:
        """The image of a sample, or with `skip` in training of the next sample that has one; None: there is none."""
        for step in range(MAX_BAD_IN_A_ROW if self.skip and self.augment is not None else 1):
            position = (index + step) % len(self.annotated)
            try:
                return position, self.pictures(position)
            except Exception as error:  # decoders raise nearly anything on damaged files
                bad.append((self.annotated.name(position), " ".join(str(error).split()) or type(error).__name__))
        return None

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


class BoxLoader:
    """Batches of a split of images with boxes.

    Args:
        annotated: images and boxes of the split.
        pictures: the pixels of its images.
        size: side of the square batches.
        batches: which samples make up which batch; a shuffled split is augmented.
        normalize: uint8 batch to float32 batch.
        augment: of training images.
        reading, loading: workers (0 decodes in this process), what happens to bad images; device and memory format.
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
        self.num_samples, self.annotated, self.batches, self.normalize = len(annotated), annotated, batches, normalize
        self.device, self.channels_last = loading.device, loading.channels_last
        # Starting workers takes longer than placing some hundred small images that are in memory.
        self.workers = reading.workers if isinstance(pictures, FilePictures) else 0
        self.bad = BadImages(len(annotated), reading.on_bad_image == "skip")
        self.bad_images = self.bad.reasons
        self.image_ids = torch.from_numpy(annotated.image_ids)
        drawn_with = augment if batches.shuffled else None
        self.placed = PlacedBatches(annotated, pictures, size, drawn_with, batches.seed, self.bad.skip)

    @cached_property
    def truth(self) -> dict[str, Any]:
        """The split in COCO's format, in pixels of the original images; label i of a batch is `categories[i]["id"]`."""
        return self.annotated.truth()

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[DetectionBatch]:
        """See `Loader.epoch`.

        Raises:
            ValueError: at an image that cannot be decoded; with `skip` when they are more than 0.1 % of the epoch.
            RuntimeError: if a worker dies.
        """
        keys = [(epoch, share) for share in self.batches.epoch(epoch, start)]
        bad: set[str] = set()
        made = produced(self.placed, keys, self.workers, pin=self.device.type == "cuda")
        for (_, share), placed in zip(keys, made, strict=True):
            self.bad.account(placed.bad, bad)
            if self.batches.shuffled and len(placed.taken) < len(share):
                path, reason = placed.bad[-1]
                raise ValueError(f"{path}: the last of {MAX_BAD_IN_A_ROW} unreadable images in a row ({reason})")
            if len(placed.taken):
                yield self._batch(placed)

    def _batch(self, placed: Placed) -> DetectionBatch:
        def moved(part: Tensor) -> Tensor:
            return part.to(self.device, non_blocking=True)

        images = zero_padding(self.normalize(moved(placed.images)), moved(placed.seen))
        return DetectionBatch(
            for_network(images, self.channels_last),
            moved(placed.boxes),
            moved(placed.labels),
            placed.scales,
            self.image_ids[placed.taken],
            placed.taken,
        )
