"""Random brightness, contrast and saturation of an image, by draws that are handed in."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as F

from data.decode import Pixels
from data.draws import BRIGHTNESS, CONTRAST, SATURATION

CHANGES = {
    BRIGHTNESS: F.adjust_brightness,
    CONTRAST: F.adjust_contrast,
    SATURATION: F.adjust_saturation,
}


def recoloured(pixels: Pixels, strength: float, draws: NDArray[np.float64]) -> Pixels:
    """Multiply brightness, then contrast, then saturation by U(1 - strength, 1 + strength) each.

    Args:
        pixels: (H, W, 3) uint8.
        strength: in [0, 1); 0 returns the pixels as they are.
        draws: uniforms in [0, 1) of this image, at the places of `data.draws`.
    """
    if strength == 0:
        return pixels
    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    for place, change in CHANGES.items():
        image = change(image, 1 + strength * (2 * float(draws[place]) - 1))
    return image.permute(1, 2, 0).numpy()
