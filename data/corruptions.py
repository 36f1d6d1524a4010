"""Corruptions of the images that a finished network is tested on: functions of the image, its number and a seed.

They are corruptions of this project. Their kinds are five of the fifteen of Hendrycks and Dietterich (2019, arXiv
1903.12261), their strengths are chosen here, for images of 32 to 256 pixels: the numbers are not those of CIFAR-10-C or
ImageNet-C.
"""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data.draws import NOISE, hashed
from data.splits import Indices

# The strengths at severities 1 to 5.
SEVERITIES: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.12, 0.18),  # standard deviation, of values in [0, 1]
    "defocus_blur": (0.02, 0.025, 0.03, 0.04, 0.05),  # radius of the disk, as a share of the shorter side
    "brightness": (0.1, 0.15, 0.2, 0.3, 0.4),  # added to values in [0, 1]
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),  # factor of the distance from the image's mean
    "jpeg": (80, 60, 40, 25, 15),  # quality
}


def corrupted(loader: Any, name: str, severity: int, seed: int) -> Any:
    """The loader of a split with its images corrupted, as they are before normalization.

    Args:
        name: a key of SEVERITIES.
        severity: 1 to 5.
        seed: decides the noise.
    """
    change = partial(CORRUPTIONS[name], strength=SEVERITIES[name][severity - 1], seed=seed)
    found = copy.copy(loader)
    found.to_network = Corrupted(loader.to_network, change)
    return found


class Corrupted:
    """`data.loader.ToNetwork` with a change of the bytes before it: of those that show an image, not of the padding."""

    def __init__(self, to_network: Any, change: Callable[[Tensor, Indices], Tensor]) -> None:
        self.to_network, self.change = to_network, change

    def __call__(self, images: Tensor, epoch: int, indices: Indices, seen: Tensor | None = None) -> Tensor:
        if seen is None:
            return self.to_network(self.change(images, indices), epoch, indices, seen)
        # The padding of an image belongs neither to its mean nor to its sides, and no pixel of it is a neighbour.
        changed = images.clone()
        for i, (rows, columns) in enumerate(seen.tolist()):
            changed[i, :rows, :columns] = self.change(images[i : i + 1, :rows, :columns], indices[i : i + 1])[0]
        return self.to_network(changed, epoch, indices, seen)


# Each takes (B, H, W, C) bytes and the numbers of the images in their split, and returns the same shape.


def gaussian_noise(images: Tensor, indices: Indices, strength: float, seed: int) -> Tensor:
    """Independent noise on every value, the same at every strength but for its size."""
    size = math.prod(images.shape[1:])
    noise = np.stack([normals(seed, int(index), size) for index in indices])
    added = torch.from_numpy(noise).view(images.shape).to(images.device)
    return as_bytes(images.float() / 255 + strength * added)


def defocus_blur(images: Tensor, indices: Indices, strength: float, seed: int) -> Tensor:
    """The mean over a disk, whose edge is as smooth as a pixel is wide; images continue by their mirror image."""
    radius = strength * min(images.shape[1:3])
    reach = min(max(1, math.ceil(radius)), min(images.shape[1:3]) - 1)  # a line of pixels has no mirror image
    line = torch.arange(-reach, reach + 1, dtype=torch.float32, device=images.device)
    disk = (radius + 0.5 - torch.hypot(line[:, None], line[None, :])).clamp(0, 1)
    channels = images.shape[3]
    kernel = (disk / disk.sum()).expand(channels, 1, *disk.shape)
    maps = F.pad(images.permute(0, 3, 1, 2).float() / 255, [reach] * 4, mode="reflect")
    return as_bytes(F.conv2d(maps, kernel, groups=channels).permute(0, 2, 3, 1))


def brightness(images: Tensor, indices: Indices, strength: float, seed: int) -> Tensor:
    return as_bytes(images.float() / 255 + strength)


def contrast(images: Tensor, indices: Indices, strength: float, seed: int) -> Tensor:
    values = images.float() / 255
    mean = values.mean((1, 2, 3), keepdim=True)
    return as_bytes(mean + strength * (values - mean))


def jpeg(images: Tensor, indices: Indices, strength: float, seed: int) -> Tensor:
    """Written as JPEG by Pillow, and read again."""
    from PIL import Image

    read = []
    for pixels in images.cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(file, "JPEG", quality=int(strength))
        read.append(np.array(Image.open(file)).reshape(pixels.shape))
    return torch.from_numpy(np.stack(read)).to(images.device)


CORRUPTIONS: dict[str, Callable[..., Tensor]] = {
    "gaussian_noise": gaussian_noise,
    "defocus_blur": defocus_blur,
    "brightness": brightness,
    "contrast": contrast,
    "jpeg": jpeg,
}


def normals(seed: int, index: int, count: int) -> NDArray[np.float32]:
    """Standard normal draws of an image, by the transform of Box and Muller: each hash gives two."""
    words = hashed(NOISE, seed, index, np.arange(-(-count // 2)))
    u, v = (
        (part.astype(np.float64) + 0.5) * 2.0**-32 for part in (words >> np.uint64(32), words & np.uint64(2**32 - 1))
    )
    radius, angle = np.sqrt(-2 * np.log(u)), 2 * np.pi * v
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count].astype(np.float32)


def as_bytes(values: Tensor) -> Tensor:
    """Values in [0, 1], cut off there, as bytes."""
    return (255 * values.clamp(0, 1)).round().to(torch.uint8)
