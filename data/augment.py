"""Augmentation of a whole batch at a time, one draw per image; and AutoAugment, image by image."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data.draws import POLICY, hashed


def windows(images: Tensor, padding: int) -> Tensor:
    """Every crop of the zero-padded images, as a view: (N, C, 2 padding + 1, 2 padding + 1, H, W)."""
    height, width = images.shape[-2:]
    return F.pad(images, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)


def pick(draws: NDArray[np.float64], choices: int) -> Tensor:
    """Uniforms in [0, 1) to integers 0 ... choices - 1; on the CPU, since not every device knows float64."""
    return torch.from_numpy((draws * choices).astype(np.int64))


def mirror(images: Tensor, which: Tensor) -> Tensor:
    """Flip some images left and right. images: (B, C, H, W), which: (B,) bool."""
    return torch.where(which[:, None, None, None], images.flip(-1), images)


def cutout(images: Tensor, side: int, centers: Tensor) -> Tensor:
    """Zero one square in each image, in place.

    Args:
        images: (B, C, H, W), normalized, so that 0 is the mean colour (as in the code of DeVries and Taylor 2017).
        side: of the square, in pixels; the part outside the image is lost.
        centers: (B, 2) int64, the row and the column of the centre pixel.
    """

    def inside(center: Tensor, size: int) -> Tensor:
        first = center - side // 2
        place = torch.arange(size, device=images.device)[None, :]
        return (place >= first[:, None]) & (place < first[:, None] + side)

    rows, columns = inside(centers[:, 0], images.shape[2]), inside(centers[:, 1], images.shape[3])
    return images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


class Normalize:
    """uint8 images to float32 ones with the given mean and standard deviation (of values in [0, 1]) at 0 and 1."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device, channels_last: bool):
        self.shift = (-255.0 * torch.tensor(mean, dtype=torch.float64)).float().to(device)[:, None, None]
        self.scale = (1.0 / (255.0 * torch.tensor(std, dtype=torch.float64))).float().to(device)[:, None, None]
        self.memory = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> float32, in the memory format asked for."""
        return images.to(torch.float32, memory_format=self.memory).add_(self.shift).mul_(self.scale)


class Policy:
    """torchvision's AutoAugment, with its defaults, as a function of (image, seed, epoch, index).

    Args:
        name: `imagenet`, `cifar10` or `svhn`.
    """

    def __init__(self, name: str) -> None:
        from torchvision.transforms import AutoAugment, AutoAugmentPolicy

        self.transform = AutoAugment(AutoAugmentPolicy(name))

    def __call__(self, image: NDArray[np.uint8], seed: int, epoch: int, index: int) -> NDArray[np.uint8]:
        """(H, W, C) to the same shape, C 1 or 3.

        torchvision draws from torch's default generator: it is seeded for the call and put back after.
        """
        from PIL import Image

        generator = torch.default_generator
        before = generator.get_state()
        generator.manual_seed(int(hashed(POLICY, seed, epoch, index)[0] >> np.uint64(1)))
        try:
            changed = np.array(self.transform(Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0])))
        finally:
            generator.set_state(before)
        return changed.reshape(image.shape)
