"""One image file to the square of pixels that the network sees, by the fast way or by the reference recipe.

The fast way decodes to (H, W, 3) bytes, views them as a channels-last tensor, and resizes with torch's antialiased
bicubic kernel for bytes. `pil` is torchvision's reference recipe on Pillow images, with the same boxes: the oracle.
Both kernels are the same cubic (a = -0.5). They round differently, and torch's clamps between its two passes: a few
pixels in ten thousand of a training box differ by more than two levels of 255, up to eight where edges overshoot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from data.augment import Policy
from data.crops import Box, center, eval_resize, random_box
from data.decode import Content, Decode, Pixels, check_size, open_rgb, pick_decoder, whole
from data.draws import BOX, FLIP
from data.options import Augment


@dataclass(frozen=True)
class Draws:
    """What is random about one training image: its uniforms, and the key they were drawn for."""

    uniforms: NDArray[np.float64]
    seed: int
    epoch: int
    index: int


class Picture:
    """A function from the content of an image file to (size, size, 3) bytes.

    Args:
        size: side of the square.
        decoder: `auto`, `simplejpeg`, `pillow`, or `pil` for the reference recipe.
        augment: flip and AutoAugment of training images.
        decode: in the place of the decoder's, for content that is no image file.
    """

    def __init__(self, size: int, decoder: str, augment: Augment, decode: Decode | None = None) -> None:
        self.size, self.reference = size, decoder == "pil"
        self.decode, self.flip = decode or pick_decoder(decoder), augment.flip
        self.policy = Policy(augment.autoaugment) if augment.autoaugment else None

    def __call__(self, content: Content, draws: Draws | None) -> Pixels:
        """The training image for these draws; without draws the image of evaluation.

        Raises:
            Exception: whatever the decoder raises on a damaged file; ValueError for one that is too large.
        """
        if draws is None:
            return self._reference_center(content) if self.reference else self._center(content)
        picture = self._reference_box(content, draws) if self.reference else self._box(content, draws)
        if self.flip and draws.uniforms[FLIP] < 0.5:
            picture = torch.from_numpy(picture).flip(1).numpy()  # a twentieth of what numpy takes to copy [:, ::-1]
        if self.policy is not None:
            picture = self.policy(np.ascontiguousarray(picture), draws.seed, draws.epoch, draws.index)
        return picture

    def _box(self, content: Content, draws: Draws) -> Pixels:
        pixels = self.decode(content, lambda height, width: random_box(height, width, draws.uniforms[BOX:]))
        return resized(pixels, self.size, self.size)

    def _center(self, content: Content) -> Pixels:
        pixels = self.decode(content, whole)
        height, width = eval_resize(pixels.shape[0], pixels.shape[1], self.size)
        check_size(height, width)
        top, left = center(height, width, self.size)
        return resized(pixels, height, width)[top : top + self.size, left : left + self.size]

    def _reference_box(self, content: Content, draws: Draws) -> Pixels:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.functional import resized_crop

        image = open_rgb(content)
        box: Box = random_box(image.height, image.width, draws.uniforms[BOX:])
        return np.array(resized_crop(image, *box, [self.size, self.size], InterpolationMode.BICUBIC))

    def _reference_center(self, content: Content) -> Pixels:
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.functional import center_crop, resize

        image = open_rgb(content)
        height, width = eval_resize(image.height, image.width, self.size)
        check_size(height, width)
        return np.array(center_crop(resize(image, min(height, width), InterpolationMode.BICUBIC), self.size))


def resized(pixels: Pixels, height: int, width: int) -> Pixels:
    """(H, W, 3) pixels to another height and width, antialiased bicubic.

    The batch dimension comes first of all: torch then sees the strides as channels-last and answers in them, in two
    thirds of the time; `permute(2, 0, 1)[None]` is the same pixels and comes back with the channels outermost.
    """
    image: Tensor = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    return F.interpolate(image, size=(height, width), mode="bicubic", antialias=True)[0].permute(1, 2, 0).numpy()
