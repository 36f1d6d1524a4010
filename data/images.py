"""Photographs: worker processes decode and crop to uint8 batches, the device normalizes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.augment import Normalize, cutout, for_network, pick
from data.crops import BOX_DRAWS
from data.decode import Pixels, why
from data.draws import BOX, CUTOUT_COLUMN, CUTOUT_ROW, uniforms
from data.folders import Files
from data.interface import ClassificationBatch
from data.options import Augment, Loading, Reading
from data.pictures import Draws, Picture
from data.splits import Batches, Indices
from data.workers import MAX_BAD_IN_A_ROW, BadImages, produced


class Decoded(NamedTuple):
    """What a worker sends: (B, S, S, 3) bytes; (2, B) samples asked for and samples taken; the bad ones met."""

    images: Tensor
    indices: Tensor
    bad: list[tuple[str, str]]


class DecodedBatches(Dataset[Decoded]):
    """A data set whose keys are (epoch, sample positions) and whose items are whole batches.

    Args:
        files: of the split.
        picture: file content to pixels.
        seed: of the augmentation.
        training: draw an augmentation; else take the centre.
        skip: a bad image of a training split gives way to the next good one; of an evaluation split it is left out,
            since a sample counted twice would be a wrong number. Without `skip` the batch is not used.
    """

    def __init__(self, files: Files, picture: Picture, seed: int, training: bool, skip: bool) -> None:
        self.files, self.picture, self.seed, self.training, self.skip = files, picture, seed, training, skip

    def __getitem__(self, key: tuple[int, Indices]) -> Decoded:
        epoch, wanted = key
        draws = uniforms(self.seed, epoch, wanted, 0, BOX + BOX_DRAWS) if self.training else None
        size = self.picture.size
        images = torch.empty(len(wanted), size, size, 3, dtype=torch.uint8)
        taken: list[tuple[int, int]] = []
        bad: list[tuple[str, str]] = []
        for row, index in enumerate(wanted.tolist()):
            draw = Draws(draws[row], self.seed, epoch, index) if draws is not None else None
            found = self._first_good(index, draw, bad)
            if found is not None:
                position, pixels = found
                images[len(taken)].numpy()[:] = pixels
                taken.append((index, position))
        return Decoded(images[: len(taken)], torch.tensor(taken, dtype=torch.int64).reshape(-1, 2).T, bad)

    def _first_good(self, index: int, draw: Draws | None, bad: list[tuple[str, str]]) -> tuple[int, Pixels] | None:
        """The picture of a sample, or with `skip` in training of the next sample that has one; None: there is none."""
        for step in range(MAX_BAD_IN_A_ROW if self.skip and self.training else 1):
            position = (index + step) % len(self.files)
            try:
                return position, self.picture(self.files.read(position), draw)
            except Exception as error:  # decoders raise nearly anything on damaged files
                bad.append((self.files.name(position), why(error)))
        return None


class ImageLoader:
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
        self.num_samples, self.bad = len(files), BadImages(batches.of_this_rank, reading.on_bad_image == "skip")
        self.bad_images = self.bad.reasons
        self.batches, self.normalize, self.device, self.workers = batches, normalize, loading.device, reading.workers
        self.channels_last = loading.channels_last
        self.cutout = augment.cutout if batches.shuffled else 0
        self.labels = torch.from_numpy(files.labels)
        self.decoded = DecodedBatches(files, picture, batches.seed, batches.shuffled, self.bad.skip)

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[ClassificationBatch]:
        """See `Loader.epoch`.

        Raises:
            ValueError: at an image that cannot be decoded; with `skip` when they are more than 0.1 % of the epoch.
            RuntimeError: if a worker dies.
        """
        keys = [(epoch, share) for share in self.batches.epoch(epoch, start)]
        bad: set[str] = set()
        made = produced(self.decoded, keys, self.workers, pin=self.device.type == "cuda")
        for (_, share), decoded in zip(keys, made, strict=True):
            self.bad.account(decoded.bad, bad)
            if self.batches.shuffled and decoded.indices.shape[1] < len(share):
                path, reason = decoded.bad[-1]
                raise ValueError(f"{path}: the last of {MAX_BAD_IN_A_ROW} unreadable images in a row ({reason})")
            if decoded.indices.shape[1]:
                yield self._batch(decoded, epoch)

    def _batch(self, decoded: Decoded, epoch: int) -> ClassificationBatch:
        asked, taken = decoded.indices
        images = self.normalize(decoded.images.to(self.device, non_blocking=True))
        if self.cutout:
            draws = uniforms(self.batches.seed, epoch, asked.numpy(), CUTOUT_ROW, CUTOUT_COLUMN - CUTOUT_ROW + 1)
            images = cutout(images, self.cutout, pick(draws, self.decoded.picture.size).to(self.device))
        images = for_network(images, self.channels_last)
        return ClassificationBatch(images, self.labels[taken].to(self.device, non_blocking=True), taken)
