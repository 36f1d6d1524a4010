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
from numpy.typing import NDArray
from torch import Tensor

from data.decode import Pixels
from data.draws import (
    AUGMIX,
    CUTOUT_COLUMN,
    CUTOUT_ROW,
    ERASE,
    ERASED,
    POLICY,
    RANDOM,
    TRIVIAL,
    Draws,
    hashed,
    on_device,
    pick,
    uniforms,
)
from data.splits import Indices


class TorchvisionPolicy:
    """An augmentation of torchvision on one image, drawn for (seed, epoch, image).

    Applied after crop and flip and before what changes the normalized batch.

    Args:
        purpose: key of its draws, from `data.draws`; policies of one run have different ones.
        transform: changes a PIL image.
    """

    def __init__(self, purpose: int, transform: Callable[[Any], Any]) -> None:
        self.purpose, self.transform = purpose, transform

    def on_image(self, pixels: Pixels, draws: Draws) -> Pixels:
        """(H, W, C) to the same shape, C 1 or 3.

        torchvision draws from torch's default generator: it is seeded for the call and put back after.
        """
        from PIL import Image

        image = Image.fromarray(np.ascontiguousarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]))
        generator = torch.default_generator
        before = generator.get_state()
        generator.manual_seed(int(hashed(self.purpose, draws.seed, draws.epoch, draws.index)[0] >> np.uint64(1)))
        try:
            changed = np.array(self.transform(image))
        finally:
            generator.set_state(before)
        return changed.reshape(pixels.shape)


class AutoAugment(TorchvisionPolicy):
    """AutoAugment (Cubuk et al. 2019), as torchvision has it, with its defaults.

    Before Cutout, as in the paper (section 4).

    Args:
        autoaugment: policy `imagenet`, `cifar10` or `svhn`; `auto`: the one that was found on images of such a size.
    """

    def __init__(self, autoaugment: str) -> None:
        from torchvision.transforms import AutoAugment, AutoAugmentPolicy

        super().__init__(POLICY, self._by_size)
        small, large = ("cifar10", "imagenet") if autoaugment == "auto" else (autoaugment, autoaugment)
        self.small, self.large = AutoAugment(AutoAugmentPolicy(small)), AutoAugment(AutoAugmentPolicy(large))

    def _by_size(self, image: Any) -> Any:
        return (self.large if max(image.size) > 64 else self.small)(image)


class TrivialAugment(TorchvisionPolicy):
    """TrivialAugment (Müller and Hutter 2021), the wide form: one random operation of random strength on each image."""

    def __init__(self) -> None:
        from torchvision.transforms import TrivialAugmentWide

        super().__init__(TRIVIAL, TrivialAugmentWide())


class RandAugment(TorchvisionPolicy):
    """RandAugment (Cubuk et al. 2020), as torchvision has it: random operations, all of one strength.

    Args:
        operations: the paper's N.
        magnitude: the paper's M, 0 to 30.
    """

    def __init__(self, operations: int, magnitude: int) -> None:
        from torchvision.transforms import RandAugment

        super().__init__(RANDOM, RandAugment(int(operations), int(magnitude)))


class AugMix(TorchvisionPolicy):
    """AugMix (Hendrycks et al. 2020): the image mixed with three chains of one to three operations on it.

    The images alone: the paper also has a loss that asks for one prediction on three versions of an image. As there,
    without the operations that its test corruptions resemble (colour, contrast, brightness, sharpness).

    Args:
        severity: strength of the operations, 1 to 10.
    """

    def __init__(self, severity: int) -> None:
        from torchvision.transforms import AugMix

        super().__init__(AUGMIX, AugMix(severity=int(severity), all_ops=False))


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
        return self.at(images, on_device(centers, images.device))

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


class RandomErasing:
    """Random erasing (Zhong et al. 2020): one rectangle of random area and aspect in some of the images.

    It lies inside the image. The first of ten trials that fits is taken; without one nothing is erased (torchvision's
    rule; the paper tries on).

    Args:
        probability: share of the images that are changed.
        area_least, area_most: range of the rectangle's area as a share of the image; uniform in between.
        aspect: smallest ratio of height to width, whose inverse is the largest; its logarithm is uniform in between.
        value: `zero`, the mean colour, or `random`, a normal draw for each number.

    Raises:
        ValueError: for a range of areas that is none.
    """

    TRIALS = 10

    def __init__(self, probability: float, area_least: float, area_most: float, aspect: float, value: str) -> None:
        if area_least > area_most:
            raise ValueError(f"random_erasing: area_least={area_least} is above area_most={area_most}")
        self.probability, self.areas, self.aspect, self.value = probability, (area_least, area_most), aspect, value

    def on_batch(self, images: Tensor, seed: int, epoch: int, indices: Indices) -> Tensor:
        """Erase in place. images: (B, H, W, C), normalized."""
        _, height, width, channels = images.shape
        boxes = self.boxes(height, width, seed, epoch, indices)

        # A draw for each number, image by image; the streams of RandomState are frozen, those of others are not.
        if self.value == "random":
            keys = (hashed(ERASED, seed, epoch, np.asarray(indices)) >> np.uint64(32)).tolist()
            for image, key, (top, left, high, wide) in zip(images, keys, boxes.tolist(), strict=True):
                numbers = np.random.RandomState(key).standard_normal((high, wide, channels)).astype(np.float32)
                image[top : top + high, left : left + wide] = on_device(numbers, image.device)
            return images

        top, left, high, wide = on_device(boxes, images.device)[:, :, None].unbind(1)
        rows = torch.arange(height, device=images.device)
        columns = torch.arange(width * channels, device=images.device) // channels
        inside_rows = (rows >= top) & (rows < top + high)
        inside_columns = (columns >= left) & (columns < left + wide)
        images.flatten(2).masked_fill_(inside_rows[:, :, None] & inside_columns[:, None, :], 0.0)
        return images

    def boxes(self, height: int, width: int, seed: int, epoch: int, indices: Indices) -> NDArray[np.int64]:
        """(B, 4): top, left, height and width of each image's rectangle; all 0 in an image that is left as it is."""
        drawn = uniforms(seed, epoch, indices, ERASE, 1 + 4 * self.TRIALS)
        area, aspect, top, left = np.moveaxis(drawn[:, 1:].reshape(-1, self.TRIALS, 4), 2, 0)
        least, most = self.areas
        areas = height * width * (least + area * (most - least))
        ratios = np.exp(np.log(self.aspect) * (1 - 2 * aspect))
        high, wide = (np.rint(np.sqrt(squares)).astype(np.int64) for squares in (areas * ratios, areas / ratios))
        fits = (high < height) & (wide < width)  # as in torchvision: no side is the image's
        tops, lefts = pick(top, height - high + 1), pick(left, width - wide + 1)
        trial = np.arange(len(drawn)), fits.argmax(1)
        boxes = np.stack([numbers[trial] for numbers in (tops, lefts, high, wide)], 1)
        boxes[(drawn[:, 0] >= self.probability) | ~fits.any(1)] = 0
        return boxes


IMAGE_REGULARIZERS: dict[str, Callable[..., Any]] = {
    "augmix": AugMix,
    "autoaugment": AutoAugment,
    "cutout": Cutout,
    "randaugment": RandAugment,
    "random_erasing": RandomErasing,
    "trivialaugment": TrivialAugment,
}
