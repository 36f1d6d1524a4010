"""The division of a data set: into splits, of a split into batches, and of a batch among the ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.draws import SPLIT, hashed, permutation

Indices = NDArray[np.int64]
# A split has a number of its own in the hash, so that the parts cut for different purposes are unrelated.
TEST, VAL, SUBSET = range(3)


def stratified(labels: Indices, size: int, purpose: int) -> Indices:
    """Choose `size` samples, each class in proportion; a fixed function of the labels, whatever the run's seed.

    Args:
        labels: (N,) class of each sample.
        size: how many to choose, 0 ... N.
        purpose: TEST, VAL or SUBSET.

    Returns:
        the positions of the chosen samples, ascending.
    """
    counts = np.bincount(labels)
    share = counts * (size / len(labels))
    quota = np.floor(share).astype(np.int64)
    # The largest fractions get the places that rounding down left over.
    quota[np.argsort(quota - share, kind="stable")[: size - int(quota.sum())]] += 1
    order = np.lexsort((hashed(SPLIT, purpose, np.arange(len(labels))), labels))
    rank_in_class = np.arange(len(labels)) - (np.cumsum(counts) - counts)[labels[order]]
    return np.sort(order[rank_in_class < quota[labels[order]]])


def train_val(labels: Indices, val_fraction: float) -> tuple[Indices, Indices]:
    """Cut the training set into the part to train on and the part to select on (empty for fraction 0).

    Raises:
        ValueError: for a fraction outside [0, 1), or one that leaves nothing to train on.
    """
    if not 0.0 <= val_fraction < 1.0:
        raise ValueError(f"data.val_fraction={val_fraction}: must lie in [0, 1)")
    size = max(1, round(len(labels) * val_fraction)) if val_fraction else 0
    if size >= len(labels):
        raise ValueError(f"data.val_fraction={val_fraction}: leaves none of the {len(labels)} samples to train on")
    val = stratified(labels, size, VAL)
    return np.setdiff1d(np.arange(len(labels)), val, assume_unique=True), val


def subset(train: Indices, labels: Indices, size: int | None) -> Indices:
    """Keep `size` samples of the training part, each class in proportion; None keeps all.

    Raises:
        ValueError: for a size that is not 1 ... the size of the training part.
    """
    if size is None:
        return train
    if not 1 <= size <= len(train):
        raise ValueError(f"data.train_subset={size}: must lie in 1 ... {len(train)}, the training part")
    return train[stratified(labels[train], size, SUBSET)]


@dataclass(frozen=True)
class Batches:
    """The batches of a split and this rank's share of each.

    A training split (`shuffled`) is permuted anew each epoch and drops the remainder, as the released code does (1251
    steps of 1024 on ImageNet). An evaluation split is taken in order, to the last sample, without padding.

    Args:
        num_samples: size of the split.
        batch_size: samples of a batch over all ranks.
        shuffled: a training split.
        seed: seed of the permutations.
        rank, world_size: which share this process gets.

    Raises:
        ValueError: for sizes that cannot be shared out.
    """

    num_samples: int
    batch_size: int
    shuffled: bool = False
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must lie in 0 ... {self.world_size - 1}, not {self.rank}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be 1 or more, not {self.batch_size}")
        if self.shuffled and self.batch_size % self.world_size:
            # Unequal shares would weigh samples unequally when gradients are averaged over the ranks.
            raise ValueError(f"batch_size {self.batch_size} cannot be shared equally by {self.world_size} ranks")
        if self.shuffled and self.batch_size > self.num_samples:
            raise ValueError(f"batch_size {self.batch_size} is larger than the {self.num_samples} training samples")
        if self.batch_size < self.world_size:
            raise ValueError(f"eval_batch_size {self.batch_size} is smaller than the {self.world_size} ranks")

    @property
    def of_this_rank(self) -> int:
        """Samples that this rank sees in an epoch, rounded up."""
        return -(-self.num_samples // self.world_size)

    def _share(self, batch: int) -> tuple[int, int]:
        begin = batch * self.batch_size
        size = min(self.batch_size, self.num_samples - begin)
        return begin + self.rank * size // self.world_size, begin + (self.rank + 1) * size // self.world_size

    def __len__(self) -> int:
        """Batches of an epoch in which this rank has a share: a last small batch may leave a rank without one."""
        if self.shuffled:
            return self.num_samples // self.batch_size
        batches = -(-self.num_samples // self.batch_size)
        begin, end = self._share(batches - 1) if batches else (0, 1)
        return batches - (begin == end)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Indices]:
        """This rank's sample positions, batch by batch from batch `start` on."""
        if start < 0:
            raise ValueError(f"start must be 0 or more, not {start}")
        order = permutation(self.seed, epoch, self.num_samples) if self.shuffled else np.arange(self.num_samples)
        for batch in range(start, len(self)):
            begin, end = self._share(batch)
            yield order[begin:end]
