"""Small images: the whole split is one uint8 tensor on the device, an augmented batch is a few tensor operations."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.augment import Normalize, Policy, cutout, for_network, mirror, pick, windows
from data.draws import BOX, CUTOUT_COLUMN, CUTOUT_ROW, FLIP, LEFT, TOP, uniforms
from data.interface import ClassificationBatch
from data.options import Augment
from data.splits import Batches


class TensorLoader:
    """Batches of a split that lives on the device.

    Args:
        images: (N, C, H, W) uint8; kept as (N, H, W, C) with the padding of the crop around them.
        labels: (N,) int64.
        batches: which samples make up which batch; a shuffled split is augmented.
        normalize: uint8 batch to float32 batch.
        augment: applied to a shuffled split only.
        device: where the images are kept and the batches are made.
        channels_last: memory format of the batches.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batches: Batches,
        normalize: Normalize,
        augment: Augment,
        device: torch.device,
        channels_last: bool,
    ) -> None:
        self.num_samples = len(images)
        self.bad_images: dict[str, str] = {}
        self.batches, self.normalize, self.channels_last = batches, normalize, channels_last
        self.augment = augment if batches.shuffled else Augment()
        self.labels = labels.to(device)
        self.windows = windows(images.to(device).permute(0, 2, 3, 1), self.augment.crop_padding)
        self.policy = Policy(self.augment.autoaugment) if self.augment.autoaugment else None

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[ClassificationBatch]:
        """See `Loader.epoch`. The draws of the whole epoch go to the device at once: no transfer per batch."""
        shares = list(self.batches.epoch(epoch, start))
        if not shares:
            return
        order = np.concatenate(shares)
        indices, device = torch.from_numpy(order), self.labels.device
        where = indices.to(device)
        picked = self._picked(epoch, order).to(device)
        begin = 0
        for share in shares:
            part = slice(begin, begin + len(share))
            begin = part.stop
            images = self._images(where[part], indices[part], picked[part], epoch)
            yield ClassificationBatch(images, self.labels[where[part]], indices[part])

    def _picked(self, epoch: int, order: NDArray[np.int64]) -> Tensor:
        """What is drawn for each image, (N, 5): its window's row and column, 0 = flip, Cutout's row and column."""
        if self.augment == Augment():
            return torch.empty(len(order), 0, dtype=torch.int64)
        draws = uniforms(self.batches.seed, epoch, order, 0, BOX)
        crops, (height, width) = 2 * self.augment.crop_padding + 1, self.windows.shape[3:5]
        choices = {TOP: crops, LEFT: crops, FLIP: 2, CUTOUT_ROW: height, CUTOUT_COLUMN: width}
        return torch.stack([pick(draws[:, place], choices[place]) for place in range(BOX)], 1)

    def _images(self, where: Tensor, indices: Tensor, picked: Tensor, epoch: int) -> Tensor:
        augment = self.augment
        if augment.crop_padding:
            images = self.windows[where, picked[:, TOP], picked[:, LEFT]]
        else:
            images = self.windows[where, 0, 0]
        if augment.flip:
            images = mirror(images, picked[:, FLIP] == 0)
        if self.policy is not None:
            images = self._policy(images, indices, epoch)
        images = self.normalize(images)
        if augment.cutout:
            images = cutout(images, augment.cutout, picked[:, CUTOUT_ROW : CUTOUT_COLUMN + 1])
        return for_network(images, self.channels_last)

    def _policy(self, images: Tensor, indices: Tensor, epoch: int) -> Tensor:
        """AutoAugment works on one image at a time on the CPU: the slow path, for the experiments that ask for it."""
        assert self.policy is not None
        arrays, seed = images.cpu().numpy(), self.batches.seed
        changed = [self.policy(array, seed, epoch, int(i)) for array, i in zip(arrays, indices, strict=True)]
        return torch.from_numpy(np.stack(changed)).to(images.device)
