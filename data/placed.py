"""Batches of images with masks or boxes: each image is placed in a square, the device normalizes."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.augment import Normalize, for_network
from data.batch_loader import BatchLoader, BatchMaker
from data.decode import Pixels
from data.draws import JOINT_DRAWS, uniforms
from data.joint import Placement, drawn, zero_padding
from data.options import Augment, Loading, Reading
from data.photometric import recoloured
from data.splits import Batches, Indices

Truth = dict[str, Tensor]
Batch = TypeVar("Batch")


class Placed(NamedTuple):
    """What a worker sends.

    images: (B, S, S, 3) bytes; seen: (B, 2) rows and columns that show the image.
    truth: what there is to learn, by name, (B, ...) each.
    taken: (B,) the samples; bad: path and reason of the samples met that cannot be used.
    """

    images: Tensor
    seen: Tensor
    truth: Truth
    taken: Tensor
    bad: list[tuple[str, str]]


class PlacedBatches(BatchMaker[Placed]):
    """Batches of images, each placed in a square.

    Args:
        length, seed, skip: see `BatchMaker`.
        size: side of the square.
        augment: of training; None: the placement of evaluation.
    """

    def __init__(self, length: int, size: int, augment: Augment | None, seed: int, skip: bool) -> None:
        super().__init__(length, seed, augment is not None, skip)
        self.size, self.augment = size, augment

    @abstractmethod
    def read(self, position: int) -> tuple[Pixels, Any]:
        """The (H, W, 3) pixels of a sample and what else its files hold; raises whatever decoders raise."""

    @abstractmethod
    def fitted(self, height: int, width: int) -> Placement:
        """Where evaluation places an image."""

    @abstractmethod
    def blank(self, count: int) -> Truth:
        """The truth of so many images, before anything is placed."""

    @abstractmethod
    def write(self, truth: Truth, row: int, position: int, found: Any, place: Placement) -> None:
        """Fill in the truth of a placed sample; `found` is what `read` gave."""

    def __getitem__(self, key: tuple[int, Indices]) -> Placed:
        epoch, wanted = key
        count, size = len(wanted), self.size
        draws = uniforms(self.seed, epoch, wanted, 0, JOINT_DRAWS)
        images = torch.zeros(count, size, size, 3, dtype=torch.uint8)
        seen, taken = torch.zeros(count, 2, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
        truth = self.blank(count)
        bad: list[tuple[str, str]] = []
        row = 0
        for index, draw in zip(wanted.tolist(), draws, strict=True):
            sample = self.first_good(index, self.read, bad)
            if sample is None and not self.skip:
                break
            if sample is None:
                continue
            position, (pixels, found) = sample
            place = self._place(pixels.shape[0], pixels.shape[1], draw)
            rows, columns = place.seen
            image = place.image(pixels)
            if self.augment is not None:
                image = recoloured(image, self.augment.photometric, draw)
            images[row].numpy()[:rows, :columns] = image
            seen[row], taken[row] = torch.tensor(place.seen), position
            self.write(truth, row, position, found, place)
            row += 1
        return Placed(images[:row], seen[:row], {name: part[:row] for name, part in truth.items()}, taken[:row], bad)

    def _place(self, height: int, width: int, draw: NDArray[np.float64]) -> Placement:
        if self.augment is None:
            return self.fitted(height, width)
        jitter = (self.augment.scale_min, self.augment.scale_max)
        return drawn(height, width, self.size, jitter, self.augment.flip, draw)


class PlacedLoader(BatchLoader[Placed, Batch]):
    """Batches of a split of images with masks or boxes.

    Args:
        placed: its samples.
        in_files: whether they are decoded from files, by `reading.workers` (0: in this process). Starting workers takes
            longer than placing some hundred images that are in memory.
        batches: which samples make up which batch; a shuffled split is augmented.
        normalize: uint8 batch to float32 batch.
        reading, loading: workers; device and memory format.
    """

    def __init__(
        self,
        placed: PlacedBatches,
        in_files: bool,
        batches: Batches,
        normalize: Normalize,
        reading: Reading,
        loading: Loading,
    ) -> None:
        super().__init__(placed, batches, reading.workers if in_files else 0, loading.device)
        self.normalize, self.channels_last = normalize, loading.channels_last

    @abstractmethod
    def with_truth(self, images: Tensor, placed: Placed) -> Batch:
        """The batch of these normalized images, on the device."""

    def batch(self, made: Placed, epoch: int) -> Batch:
        images = zero_padding(self.normalize(self.moved(made.images)), self.moved(made.seen))
        return self.with_truth(for_network(images, self.channels_last), made)
