"""Loaders whose batches are made from samples read one by one, by worker processes or by this one.

What they share, whatever the task: which samples make up a batch, and what happens to those that cannot be used.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.decode import why
from data.splits import Batches, Indices
from data.workers import MAX_BAD_IN_A_ROW, BadImages, produced


class Made(Protocol):
    """What a worker sends.

    taken: (B,) the samples of the batch; bad: path and reason of the samples met that cannot be used.
    """

    @property
    def taken(self) -> Tensor: ...

    @property
    def bad(self) -> list[tuple[str, str]]: ...


Found = TypeVar("Found")
Sent = TypeVar("Sent", bound=Made)
Batch = TypeVar("Batch")


class BatchMaker(Dataset[Sent], ABC):
    """A data set whose keys are (epoch, sample positions) and whose items are whole batches.

    Args:
        length: number of samples of the split.
        seed: of the augmentation.
        training: draw an augmentation.
        skip: a bad sample of a training split gives way to the next good one; of an evaluation split it is left out,
            since a sample counted twice would be a wrong number. Without `skip` the batch is not used.
    """

    def __init__(self, length: int, seed: int, training: bool, skip: bool) -> None:
        self.length, self.seed, self.training, self.skip = length, seed, training, skip

    @abstractmethod
    def name(self, position: int) -> str:
        """What a sample is called in messages: its path."""

    @abstractmethod
    def __getitem__(self, key: tuple[int, Indices]) -> Sent:
        """The batch of these samples in this epoch."""

    def first_good(
        self, index: int, read: Callable[[int], Found], bad: list[tuple[str, str]]
    ) -> tuple[int, Found] | None:
        """A sample as `read`, or with `skip` in training the next one that can be; None: there is none.

        Returns:
            its position and what was read; `bad` is extended by those that could not be.
        """
        for step in range(MAX_BAD_IN_A_ROW if self.skip and self.training else 1):
            position = (index + step) % self.length
            try:
                return position, read(position)
            except Exception as error:  # decoders raise nearly anything on damaged files
                bad.append((self.name(position), why(error)))
        return None


class BatchLoader(ABC, Generic[Sent, Batch]):
    """Batches of a split.

    Args:
        maker: of its batches.
        batches: which samples make up which batch; a shuffled split is augmented.
        workers: processes that make batches; 0: this one.
        device: where the batches shall be.
    """

    def __init__(self, maker: BatchMaker[Sent], batches: Batches, workers: int, device: torch.device) -> None:
        self.maker, self.batches, self.workers, self.device = maker, batches, workers, device
        self.num_samples, self.bad = maker.length, BadImages(batches.of_this_rank, maker.skip)
        self.bad_images = self.bad.reasons

    @abstractmethod
    def batch(self, made: Sent, epoch: int) -> Batch:
        """What a worker sent, on the device and ready for the network."""

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """See `Loader.epoch`.

        Raises:
            ValueError: at a sample that cannot be used; with `skip` when they are more than a few.
            RuntimeError: if a worker dies.
        """
        keys = [(epoch, share) for share in self.batches.epoch(epoch, start)]
        bad: set[str] = set()
        sent = produced(self.maker, keys, self.workers, pin=self.device.type == "cuda")
        for (_, share), made in zip(keys, sent, strict=True):
            self.bad.account(made.bad, bad)
            if self.batches.shuffled and len(made.taken) < len(share):
                path, reason = made.bad[-1]
                raise ValueError(f"{path}: the last of {MAX_BAD_IN_A_ROW} unusable images in a row ({reason})")
            if len(made.taken):
                yield self.batch(made, epoch)

    def moved(self, part: Tensor) -> Tensor:
        """On the device."""
        return part.to(self.device, non_blocking=True)
