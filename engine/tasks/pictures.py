"""Images and class maps as pixels, for TensorBoard."""

from __future__ import annotations

import torch
from torch import Tensor


def as_pixels(images: Tensor) -> Tensor:
    """Normalized images (N, 1 or 3, H, W) as (N, 3, H, W) uint8; each is stretched to the whole range."""
    flat = images.float().flatten(1)
    low, high = flat.min(1).values, flat.max(1).values
    shape = (-1, 1, 1, 1)
    pixels = 255 * (images - low.view(shape)) / (high - low).clamp(min=1e-6).view(shape)
    return pixels.round().to(torch.uint8).expand(-1, 3, -1, -1)


def class_colours(classes: Tensor) -> Tensor:
    """Classes (N, H, W) below 256 as (N, 3, H, W) uint8: 0 black, 255 white, neighbouring numbers far apart.

    The bits of a class, lowest first, go in turn to the highest bits of red, green and blue (as PASCAL VOC colours its
    masks).
    """
    channels = []
    for channel in range(3):
        value = torch.zeros_like(classes)
        for bit in range(3):
            value |= (classes >> (3 * bit + channel) & 1) << (7 - bit)
        channels.append(value)
    colours = torch.stack(channels, dim=1)
    return torch.where((classes == 255)[:, None], 255, colours).to(torch.uint8)
