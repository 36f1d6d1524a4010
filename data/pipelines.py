"""The pipelines: what happens to one sample between its file and the batch, each as a list of steps in their order.

A step is a function (sample, draws) -> sample; a sample is a dictionary whose keys become the fields of the batch.
Draws are None in evaluation. What follows on the device stands in `data.loader.ToNetwork`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from configs.schema import AugmentConfig
from data.decode import Decode
from data.draws import Draws
from data.photographs import Centre, RandomBox, flip
from data.placement import Fit, Jitter, Pad, Recolour
from data.samples import Sample, Step


def photograph(
    size: int, decode: Decode | None, augment: AugmentConfig, regularizers: Sequence[Any], training: bool
) -> list[Step]:
    """From the content of an image file to (size, size, 3) bytes. decode: None for the reference recipe."""
    if not training:
        return [Centre(size, decode)]
    return [
        RandomBox(size, decode),
        *([flip] if augment.flip else []),
        *on_image(regularizers),
    ]


def placed(size: int, augment: AugmentConfig, regularizers: Sequence[Any], training: bool, enlarge: bool) -> list[Step]:
    """From pixels with a mask or boxes to (size, size, 3) bytes and masks or boxes of fixed shapes.

    enlarge: evaluation brings smaller images to the size of the square.
    """
    if not training:
        return [Fit(size, enlarge), Pad(size)]
    return [
        Jitter(size, (augment.scale_min, augment.scale_max), augment.flip),
        Recolour(augment.photometric),
        *on_image(regularizers),
        Pad(size),
    ]


class OnImage:
    """A regularizer of images as a step."""

    def __init__(self, regularizer: Any) -> None:
        self.regularizer = regularizer

    def __call__(self, sample: Sample, draws: Draws | None) -> Sample:
        return {**sample, "images": self.regularizer.on_image(sample["images"], draws)}


def on_image(regularizers: Sequence[Any]) -> list[Step]:
    """Those of the regularizers that change the bytes of one image."""
    return [OnImage(regularizer) for regularizer in regularizers if hasattr(regularizer, "on_image")]
