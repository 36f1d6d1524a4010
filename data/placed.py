"""Batches of images with masks or boxes: each image is placed in a square, the device normalizes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from data.augment import Normalize, for_network
from data.decode import Pixels, why
from data.draws import JOINT_DRAWS, uniforms
from data.joint import Placement, drawn, zero_padding
from data.options import Augment, Loading, Reading
from data.photometric import recoloured
from data.splits import Batches, Indices
from data.workers import MAX_BAD_IN_A_ROW, BadImages, produced

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


class PlacedBatches(Dataset[Placed], ABC):
    """A data set whose keys are (epoch, sample positions) and whose items are whole batches.

    Args:
        length: number of samples of the split.
        size: side of the square.
        augment: None: the placement of evaluation.
        seed: of the augmentation.
        skip: a bad sample of a training split gives way to the next good one; of an evaluation split it is left out.
    """

    def __init__(self, length: int, size: int, augment: Augment | None, seed: int, skip: bool) -> None:
        self.length, self.size, self.augment, self.seed, self.skip = length, size, augment, seed, skip

    @abstractmethod
    def name(self, position: int) -> str:
        """What a sample is called in messages: its path."""

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
            sample = self._first_good(index, bad)
            if sample is None and not self.skip:
                break
            if sample is None:
                continue
            position, pixels, found = sample
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

    def _first_good(self, index: int, bad: list[tuple[str, str]]) -> tuple[int, Pixels, Any] | None:
        """A sample as read, or with `skip` in training the next one that can be; None: there is none."""
        for step in range(MAX_BAD_IN_A_ROW if self.skip and self.augment is not None else 1):
            position = (index + step) % self.length
            try:
                return position, *self.read(position)
            except Exception as error:  # decoders raise nearly anything on damaged files
                bad.append((self.name(position), why(error)))
        return None


class PlacedLoader(ABC, Generic[Batch]):
    """Batches of a split.

    Args:
        placed: its samples.
        in_files: whether they are decoded from files, by `reading.workers` (0: in this process). Starting workers takes
            longer than placing some hundred images that are in memory.
        batches: which samples make up which batch; a shuffled split is augmented.
        normalize: uint8 batch to float32 batch.
        reading, loading: workers, what happens to bad samples; device and memory format.
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
        self.placed, self.num_samples, self.batches, self.normalize = placed, placed.length, batches, normalize
        self.device, self.channels_last = loading.device, loading.channels_last
        self.workers = reading.workers if in_files else 0
        self.bad = BadImages(batches.of_this_rank, placed.skip)
        self.bad_images = self.bad.reasons

    @abstractmethod
    def batch(self, images: Tensor, placed: Placed) -> Batch:
        """The batch of these normalized images, on the device."""

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """See `Loader.epoch`.

        Raises:
            ValueError: at a sample that cannot be used; with `skip` when they are more than 0.1 % of the epoch.
            RuntimeError: if a worker dies.
        """
        keys = [(epoch, share) for share in self.batches.epoch(epoch, start)]
        bad: set[str] = set()
        made = produced(self.placed, keys, self.workers, pin=self.device.type == "cuda")
        for (_, share), placed in zip(keys, made, strict=True):
            self.bad.account(placed.bad, bad)
            if self.batches.shuffled and len(placed.taken) < len(share):
                path, reason = placed.bad[-1]
                raise ValueError(f"{path}: the last of {MAX_BAD_IN_A_ROW} unusable images in a row ({reason})")
            if len(placed.taken):
                images = zero_padding(self.normalize(self.moved(placed.images)), self.moved(placed.seen))
                yield self.batch(for_network(images, self.channels_last), placed)

    def moved(self, part: Tensor) -> Tensor:
        """On the device."""
        return part.to(self.device, non_blocking=True)
