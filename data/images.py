"""Photographs: worker processes decode and crop to uint8 batches, the device normalizes."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from data.augment import Normalize, cutout, for_network, pick
from data.batch_loader import BatchLoader, BatchMaker
from data.crops import BOX_DRAWS
from data.decode import Pixels
from data.draws import BOX, CUTOUT_COLUMN, CUTOUT_ROW, uniforms
from data.folders import Files
from data.interface import ClassificationBatch
from data.options import Augment, Loading, Reading
from data.pictures import Draws, Picture
from data.splits import Batches, Indices


class Decoded(NamedTuple):
    """What a worker sends.

    images: (B, S, S, 3) bytes.
    asked, taken: (B,) the samples asked for and those taken for them; bad: path and reason of the unreadable ones.
    """

    images: Tensor
    asked: Tensor
    taken: Tensor
    bad: list[tuple[str, str]]


class DecodedBatches(BatchMaker[Decoded]):
    """Batches of decoded and cropped images.

    Args:
        files: of the split.
        picture: file content to pixels; the centre of the image unless `training`.
        seed, training, skip: see `BatchMaker`.
    """

    def __init__(self, files: Files, picture: Picture, seed: int, training: bool, skip: bool) -> None:
        super().__init__(len(files), seed, training, skip)
        self.files, self.picture = files, picture

    def name(self, position: int) -> str:
        return self.files.name(position)

    def __getitem__(self, key: tuple[int, Indices]) -> Decoded:
        epoch, wanted = key
        draws = uniforms(self.seed, epoch, wanted, 0, BOX + BOX_DRAWS) if self.training else None
        size = self.picture.size
        images = torch.empty(len(wanted), size, size, 3, dtype=torch.uint8)
        taken: list[tuple[int, int]] = []
        bad: list[tuple[str, str]] = []
        for row, index in enumerate(wanted.tolist()):
            draw = Draws(draws[row], self.seed, epoch, index) if draws is not None else None
            found = self.first_good(index, partial(self._pixels, draw=draw), bad)
            if found is not None:
                position, pixels = found
                images[len(taken)].numpy()[:] = pixels
                taken.append((index, position))
        pairs = torch.tensor(taken, dtype=torch.int64).reshape(-1, 2)
        return Decoded(images[: len(taken)], pairs[:, 0], pairs[:, 1], bad)

    def _pixels(self, position: int, draw: Draws | None) -> Pixels:
        return self.picture(self.files.read(position), draw)


class ImageLoader(BatchLoader[Decoded, ClassificationBatch]):
    """Batches of a split of image files.

    Args:
        files: of the split.
        picture: file content to pixels.
        batches: which samples make up which batch; a shuffled split is augmented.
        normalize: uint8 batch to float32 batch.
        augment: of training images; what is not done by `picture` (Cutout) is done here, on the device.
        reading, loading: workers (0 decodes in this process) and what happens to bad images; device and memory format.
    """

    def __init__(
        self,
        files: Files,
        picture: Picture,
        batches: Batches,
        normalize: Normalize,
        augment: Augment,
        reading: Reading,
        loading: Loading,
    ) -> None:
        maker = DecodedBatches(files, picture, batches.seed, batches.shuffled, reading.on_bad_image == "skip")
        super().__init__(maker, batches, reading.workers, loading.device)
        self.normalize, self.channels_last = normalize, loading.channels_last
        self.size, self.cutout = picture.size, augment.cutout if batches.shuffled else 0
        self.labels = torch.from_numpy(files.labels)

    def batch(self, made: Decoded, epoch: int) -> ClassificationBatch:
        images = self.normalize(self.moved(made.images))
        if self.cutout:
            draws = uniforms(self.batches.seed, epoch, made.asked.numpy(), CUTOUT_ROW, CUTOUT_COLUMN - CUTOUT_ROW + 1)
            images = cutout(images, self.cutout, pick(draws, self.size).to(self.device))
        images = for_network(images, self.channels_last)
        return ClassificationBatch(images, self.moved(self.labels[made.taken]), made.taken)
