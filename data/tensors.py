"""Small images: the whole split is one uint8 tensor on the device, an augmented batch is a few tensor operations."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from configs.schema import AugmentConfig
from data.draws import FLIP, LEFT, MOST, TOP, Draws, on_device, pick, uniforms
from data.interface import ClassificationBatch, Loading
from data.loader import Statistics, ToNetwork
from data.splits import Batches


class TensorLoader:
    """Batches of a split that lives on the device.

    Args:
        images: (N, C, H, W) uint8; kept as (N, H, W, C) with the padding of the crop around them.
        labels: (N,) int64.
        batches: which samples make up which batch; a shuffled split is augmented.
        statistics: mean and standard deviation of each channel, of values in [0, 1].
        augment: zeros around an image before the random crop back to its size, and flip, of a shuffled split.
        loading: the device where the batches are made, and the images kept; their memory format; regularizers.
    """

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.int64],
        batches: Batches,
        statistics: Statistics,
        augment: AugmentConfig,
        loading: Loading,
    ) -> None:
        self.num_samples = len(images)
        self.bad_images: dict[str, str] = {}
        self.batches = batches
        self.padding, self.flip, regularizers = augment.crop_padding, augment.flip, loading.regularizers
        if not batches.shuffled:
            self.padding, self.flip, regularizers = 0, False, ()
        self.on_image = [change.on_image for change in regularizers if hasattr(change, "on_image")]
        # Images that are changed one by one, on the CPU, are kept there.
        self.labels = torch.from_numpy(labels).to(loading.device)
        kept = torch.from_numpy(images).to("cpu" if self.on_image else loading.device)
        self.windows = windows(kept.permute(0, 2, 3, 1), self.padding)
        self.to_network = ToNetwork(statistics, images.shape[3], loading, training=batches.shuffled)

    def with_images(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> TensorLoader:
        """A loader of other images, (N, C, H, W), normalized and in batches as those of this evaluation split."""
        found = copy.copy(self)
        found.num_samples, found.bad_images = len(images), {}
        found.batches = replace(self.batches, num_samples=len(images))
        found.labels = torch.from_numpy(labels).to(self.labels.device)
        found.windows = windows(torch.from_numpy(images).to(self.labels.device).permute(0, 2, 3, 1), self.padding)
        return found

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[ClassificationBatch]:
        """See `Loader.epoch`. The draws of the whole epoch go to the device at once: no transfer per batch."""
        shares = list(self.batches.epoch(epoch, start))
        if not shares:
            return
        order = np.concatenate(shares)
        indices, device, place = torch.from_numpy(order), self.labels.device, self.windows.device
        labels = self.labels[on_device(order, device)]
        where, picked = on_device(order, place), on_device(self._picked(epoch, order), place)
        begin = 0
        for share in shares:
            part = slice(begin, begin + len(share))
            begin = part.stop
            # Crops by one fancy index into the windows of the padded images; flips; what works on single images.
            images = self.windows[where[part], picked[part, 0], picked[part, 1]]
            if self.flip:
                images = mirror(images, picked[part, 2] == 0)
            if self.on_image:
                images = on_device(self._each(images, epoch, share), device)
            images = self.to_network(images, epoch, share)
            yield ClassificationBatch(images, labels[part], indices[part])

    def _picked(self, epoch: int, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row and column of each image's window, 0 = flip: (N, 3)."""
        if not self.padding and not self.flip:
            return np.zeros((len(order), 3), np.int64)
        draws, crops = uniforms(self.batches.seed, epoch, order, 0, FLIP + 1), 2 * self.padding + 1
        choices = {TOP: crops, LEFT: crops, FLIP: 2}
        return np.stack([pick(draws[:, place], choices[place]) for place in choices], 1)

    def _each(self, images: Tensor, epoch: int, share: NDArray[np.int64]) -> NDArray[np.uint8]:
        """AutoAugment and its like, image by image on the CPU: the slow path, for experiments that ask for it."""
        seed, changed = self.batches.seed, []
        drawn = uniforms(seed, epoch, share, 0, MOST)
        for pixels, numbers, index in zip(images.numpy(), drawn, share.tolist(), strict=True):
            for change in self.on_image:
                pixels = change(pixels, Draws(numbers, seed, epoch, index))
            changed.append(pixels)
        return np.stack(changed)


def windows(images: Tensor, padding: int) -> Tensor:
    """Every crop of the zero-padded images, as a view.

    Args:
        images: (N, H, W, C).
        padding: zeros on each side.

    Returns:
        (N, 2 padding + 1, 2 padding + 1, H, W, C): entry [n, i, j] is image n cropped at row i and column j.
    """
    height, width = images.shape[1:3]
    padded = F.pad(images, [0, 0, *[padding] * 4])
    return padded.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)


def mirror(images: Tensor, which: Tensor) -> Tensor:
    """Flip some images left and right. images: (B, H, W, C), which: (B,) bool."""
    return torch.where(which[:, None, None, None], images.flip(2), images)
