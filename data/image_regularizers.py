"""Regularizers that change training images: one class each, its options as keyword arguments.

A class defines `on_image`, which changes the bytes of one image in the process that reads it, or `on_batch`, which
changes a normalized batch on the device; both are functions of (seed, epoch, index), so that a resumed run, any number
of loader processes and a rerun see the same images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.decode import Pixels
from data.draws import CUTOUT_COLUMN, CUTOUT_ROW, POLICY, Draws, hashed, pick, uniforms
from data.splits import Indices


class AutoAugment:
    """AutoAugment (Cubuk et al. 2019), as torchvision has it, with its defaults.

    Applied after crop and flip and before Cutout, the order of the paper (section 4).

    Args:
        autoaugment: policy `imagenet`, `cifar10` or `svhn`; `auto`: the one that was found on images of such a size.
    """

    def __init__(self, autoaugment: str) -> None:
        from torchvision.transforms import AutoAugment, AutoAugmentPolicy

        small, large = ("cifar10", "imagenet") if autoaugment == "auto" else (autoaugment, autoaugment)
        self.small, self.large = AutoAugment(AutoAugmentPolicy(small)), AutoAugment(AutoAugmentPolicy(large))

    def on_image(self, pixels: Pixels, draws: Draws) -> Pixels:
        """(H, W, C) to the same shape, C 1 or 3.

        torchvision draws from torch's default generator: it is seeded for the call and put back after.
        """
        from PIL import Image

        image = Image.fromarray(np.ascontiguousarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]))
        generator = torch.default_generator
        before = generator.get_state()
        generator.manual_seed(int(hashed(POLICY, draws.seed, draws.epoch, draws.index)[0] >> np.uint64(1)))
        try:
            changed = np.array((self.large if max(image.size) > 64 else self.small)(image))
        finally:
            generator.set_state(before)
        return changed.reshape(pixels.shape)


class Cutout:
    """Cutout (DeVries and Taylor 2017): one square, its centre anywhere in the image, so it may stick out.

    Args:
        cutout: side of the square as a share of the image's.
    """

    def __init__(self, cutout: float) -> None:
        self.cutout = cutout

    def on_batch(self, images: Tensor, seed: int, epoch: int, indices: Indices) -> Tensor:
        """Zero one square in each image, in place.

        Args:
            images: (B, H, W, C), normalized, so that 0 is the mean colour (as in the authors' code).
        """
        drawn = uniforms(seed, epoch, indices, CUTOUT_ROW, CUTOUT_COLUMN - CUTOUT_ROW + 1)
        centers = np.stack([pick(drawn[:, axis], images.shape[1 + axis]) for axis in range(2)], 1)
        return self.at(images, torch.from_numpy(centers).to(images.device))

    def at(self, images: Tensor, centers: Tensor) -> Tensor:
        """Zero the squares with these centres, (B, 2) int64 rows and columns; what lies outside the image is lost."""
        _, height, width, channels = images.shape
        side = round(self.cutout * height)

        def inside(center: Tensor, places: Tensor) -> Tensor:
            first = center[:, None] - side // 2
            return (places >= first) & (places < first + side)

        rows = inside(centers[:, 0], torch.arange(height, device=images.device))
        columns = inside(centers[:, 1], torch.arange(width * channels, device=images.device) // channels)
        images.flatten(2).masked_fill_(rows[:, :, None] & columns[:, None, :], 0.0)
        return images


IMAGE_REGULARIZERS: dict[str, Callable[..., Any]] = {"autoaugment": AutoAugment, "cutout": Cutout}
