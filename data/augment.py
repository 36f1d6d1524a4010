"""Augmentation of a whole batch at a time, one draw per image; and AutoAugment, image by image.

Images are (B, H, W, C) here, the layout in which they are decoded and in which channels-last networks want them.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data.draws import POLICY, hashed


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


def pick(draws: NDArray[np.float64], choices: int) -> Tensor:
    """Uniforms in [0, 1) to integers 0 ... choices - 1; on the CPU, since not every device knows float64."""
    return torch.from_numpy((draws * choices).astype(np.int64))


def mirror(images: Tensor, which: Tensor) -> Tensor:
    """Flip some images left and right. images: (B, H, W, C), which: (B,) bool."""
    return torch.where(which[:, None, None, None], images.flip(2), images)


class Normalize:
    """Bytes to float32 with mean 0 and standard deviation 1.

    Args:
        mean, std: of each channel, of values in [0, 1].
        width: of the images.
        device: where the images are.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device) -> None:
        # One constant for each number of an image's row: three would be too few to fill a vector register.
        self.shift = (-255.0 * torch.tensor(mean, dtype=torch.float64)).float().repeat(width).to(device)
        self.scale = (1.0 / (255.0 * torch.tensor(std, dtype=torch.float64))).float().repeat(width).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """(B, H, W, C) uint8 -> float32."""
        return images.flatten(2).float().add_(self.shift).mul_(self.scale).view(images.shape)


def cutout(images: Tensor, side: int, centers: Tensor) -> Tensor:
    """Zero one square in each image, in place.

    Args:
        images: (B, H, W, C), normalized, so that 0 is the mean colour (as in the code of DeVries and Taylor 2017).
        side: of the square, in pixels; the part outside the image is lost.
        centers: (B, 2) int64, the row and the column of the centre pixel.
    """
    _, height, width, channels = images.shape

    def inside(center: Tensor, places: Tensor) -> Tensor:
        first = center[:, None] - side // 2
        return (places >= first) & (places < first + side)

    rows = inside(centers[:, 0], torch.arange(height, device=images.device))
    columns = inside(centers[:, 1], torch.arange(width * channels, device=images.device) // channels)
    images.flatten(2).masked_fill_(rows[:, :, None] & columns[:, None, :], 0.0)
    return images


def for_network(images: Tensor, channels_last: bool) -> Tensor:
    """(B, H, W, C) as (B, C, H, W): in the channels-last memory format as it stands, else copied."""
    images = images.permute(0, 3, 1, 2)
    return images if channels_last else images.contiguous()


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
