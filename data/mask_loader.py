"""Batches of images with masks."""

from __future__ import annotations

import torch
from torch import Tensor

from data.augment import Normalize
from data.decode import Pixels
from data.interface import IGNORE, SegmentationBatch
from data.joint import Mask, Placement, fitted
from data.masks import MaskFiles, Pairs
from data.options import Augment, Loading, Reading
from data.placed import Placed, PlacedBatches, PlacedLoader, Truth
from data.splits import Batches


class PlacedMasks(PlacedBatches):
    """Batches of images and masks; in evaluation at the image's own size as long as it fits into the square.

    Args:
        pairs: of the split.
        size, augment, seed, skip: see `PlacedBatches`.
    """

    def __init__(self, pairs: Pairs, size: int, augment: Augment | None, seed: int, skip: bool) -> None:
        super().__init__(len(pairs), size, augment, seed, skip)
        self.pairs = pairs

    def name(self, position: int) -> str:
        return self.pairs.name(position)

    def read(self, position: int) -> tuple[Pixels, Mask]:
        return self.pairs[position]

    def fitted(self, height: int, width: int) -> Placement:
        return fitted(height, width, self.size, min(self.size, max(height, width)))

    def blank(self, count: int) -> Truth:
        return {"masks": torch.full((count, self.size, self.size), IGNORE, dtype=torch.uint8)}

    def write(self, truth: Truth, row: int, position: int, found: Mask, place: Placement) -> None:
        rows, columns = place.seen
        truth["masks"][row].numpy()[:rows, :columns] = place.mask(found)


class MaskLoader(PlacedLoader[SegmentationBatch]):
    """Batches of a split of images with masks.

    Args:
        pairs: of the split, in memory or in files.
        size: side of the square batches.
        augment: of training images.
        batches, normalize, reading, loading: see `PlacedLoader`.
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
        drawn_with = augment if batches.shuffled else None
        placed = PlacedMasks(pairs, size, drawn_with, batches.seed, reading.on_bad_image == "skip")
        super().__init__(placed, isinstance(pairs, MaskFiles), batches, normalize, reading, loading)

    def with_truth(self, images: Tensor, placed: Placed) -> SegmentationBatch:
        return SegmentationBatch(images, self.moved(placed.truth["masks"]).to(torch.int64), placed.taken)
