"""Batches of images with masks: each pair is placed in the square, the device normalizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from data.augment import Normalize, for_network
from data.decode import Pixels
from data.draws import JOINT_DRAWS, uniforms
from data.interface import IGNORE, SegmentationBatch
from data.joint import Mask, Placement, drawn, fitted, zero_padding
from data.masks import MaskFiles, Pairs
from data.options import Augment, Loading, Reading
from data.photometric import recoloured
from data.splits import Batches, Indices
from data.workers import MAX_BAD_IN_A_ROW, BadImages, produced


class Placed(NamedTuple):
    """What a worker sends.

    images: (B, S, S, 3) bytes; masks: (B, S, S) bytes; seen: (B, 2) rows and columns that show the image.
    taken: (B,) the samples; bad: path and reason of the pairs met that cannot be used.
    """

    images: Tensor
    masks: Tensor
    seen: Tensor
    taken: Tensor
    bad: list[tuple[str, str]]


class PlacedMasks(Dataset[Placed]):
    """A data set whose keys are (epoch, sample positions) and whose items are whole batches.

    Args:
        pairs: of the split.
        size: side of the square.
        augment: None: the placement of evaluation, at the image's own size as long as it fits into the square.
        seed: of the augmentation.
        skip: a bad pair of a training split gives way to the next good one; of an evaluation split it is left out.
    """

    def __init__(self, pairs: Pairs, size: int, augment: Augment | None, seed: int, skip: bool) -> None:
        self.pairs, self.size, self.augment, self.seed, self.skip = pairs, size, augment, seed, skip

    def __getitem__(self, key: tuple[int, Indices]) -> Placed:
        epoch, wanted = key
        count, size = len(wanted), self.size
        draws = uniforms(self.seed, epoch, wanted, 0, JOINT_DRAWS)
        images = torch.zeros(count, size, size, 3, dtype=torch.uint8)
        masks = torch.full((count, size, size), IGNORE, dtype=torch.uint8)
        seen, taken = torch.zeros(count, 2, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
        bad: list[tuple[str, str]] = []
        row = 0
        for index, draw in zip(wanted.tolist(), draws, strict=True):
            found = self._first_good(index, bad)
            if found is None and not self.skip:
                break
            if found is None:
                continue
            position, pixels, mask = found
            place = self._place(pixels.shape[0], pixels.shape[1], draw)
            rows, columns = place.seen
            image = place.image(pixels)
            if self.augment is not None:
                image = recoloured(image, self.augment.photometric, draw)
            images[row].numpy()[:rows, :columns] = image
            masks[row].numpy()[:rows, :columns] = place.mask(mask)
            seen[row], taken[row] = torch.tensor(place.seen), position
            row += 1
        return Placed(images[:row], masks[:row], seen[:row], taken[:row], bad)

    def _place(self, height: int, width: int, draw: NDArray[np.float64]) -> Placement:
        if self.augment is None:
            return fitted(height, width, self.size, min(self.size, max(height, width)))
        jitter = (self.augment.scale_min, self.augment.scale_max)
        return drawn(height, width, self.size, jitter, self.augment.flip, draw)

    def _first_good(self, index: int, bad: list[tuple[str, str]]) -> tuple[int, Pixels, Mask] | None:
        """The pair of a sample, or with `skip` in training of the next sample that has one; None: there is none."""
        for step in range(MAX_BAD_IN_A_ROW if self.skip and self.augment is not None else 1):
            position = (index + step) % len(self.pairs)
            try:
                return position, *self.pairs[position]
            except Exception as error:  # decoders raise nearly anything on damaged files
                bad.append((self.pairs.name(position), " ".join(str(error).split()) or type(error).__name__))
        return None


class MaskLoader:
    """Batches of a split of images with masks.

    Args:
        pairs: of the split. Pairs in memory are placed in this process; files are decoded by `reading.workers`.
        size: side of the square batches.
        batches: which samples make up which batch; a shuffled split is augmented.
        normalize: uint8 batch to float32 batch.
        augment: of training images.
        reading, loading: workers, what happens to bad pairs; device and memory format.
    """

    def __init__(
        self,
        pairs: Pairs,
        size: int,
        batches: Batches,
        normalize: Normalize,
        augment: Augment,
        reading: Reading,
        loading: Loading,
    ) -> None:
        self.num_samples, self.batches, self.normalize = len(pairs), batches, normalize
        self.device, self.channels_last = loading.device, loading.channels_last
        # Starting workers takes longer than placing some hundred images that are in memory.
        self.workers = reading.workers if isinstance(pairs, MaskFiles) else 0
        self.bad = BadImages(len(pairs), reading.on_bad_image == "skip")
        self.bad_images = self.bad.reasons
        drawn_with = augment if batches.shuffled else None
        self.placed = PlacedMasks(pairs, size, drawn_with, batches.seed, self.bad.skip)

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[SegmentationBatch]:
        """See `Loader.epoch`.

        Raises:
            ValueError: at a pair that cannot be used; with `skip` when they are more than 0.1 % of the epoch.
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
                yield self._batch(placed)

    def _batch(self, placed: Placed) -> SegmentationBatch:
        def moved(part: Tensor) -> Tensor:
            return part.to(self.device, non_blocking=True)

        images = zero_padding(self.normalize(moved(placed.images)), moved(placed.seen))
        return SegmentationBatch(
            for_network(images, self.channels_last), moved(placed.masks).to(torch.int64), placed.taken
        )
