"""The pipelines: what happens to one sample between its file and the batch, each as a list of steps in their order.

A step is a function (sample, draws) -> sample; a sample is a dictionary whose keys become the fields of the batch.
Draws are None in evaluation. What follows on the device stands in `data.loader.ToNetwork`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from configs.schema import AugmentConfig
from data.decode import Decode
from data.draws import Draws
from data.photographs import crop_box, crop_centre, flip
from data.placement import fit, jitter, pad, recolour
from data.samples import Sample, Step


class RegularizerError(RuntimeError):
    """An image regularizer has failed: its class has a mistake, or the options that it was given."""


def photograph(
    size: int,
    decode: Decode | None,
    augment: AugmentConfig,
    regularizers: Sequence[Any],
    training: bool,
    turn: bool = False,
) -> list[Step]:
    """From the content of an image file to (size, size, 3) bytes.

    decode, turn: None for the reference recipe, and whether that applies the EXIF orientation.
    """
    if not training:
        return [partial(crop_centre, size=size, decode=decode, turn=turn)]
    return [
        partial(crop_box, size=size, decode=decode, turn=turn),
        *([flip] if augment.flip else []),
        *[partial(regularized, by=change) for change in regularizers if hasattr(change, "on_image")],
    ]


def placed(size: int, augment: AugmentConfig, regularizers: Sequence[Any], training: bool, enlarge: bool) -> list[Step]:
    """From pixels with a mask or boxes to (size, size, 3) bytes and masks or boxes of fixed shapes.

    enlarge: evaluation brings smaller images to the size of the square.
    """
    if not training:
        return [partial(fit, size=size, enlarge=enlarge), partial(pad, size=size)]
    return [
        partial(jitter, size=size, scale=(augment.scale_min, augment.scale_max), flip=augment.flip),
        partial(recolour, strength=augment.photometric),
        *[partial(regularized, by=change) for change in regularizers if hasattr(change, "on_image")],
        partial(pad, size=size),
    ]


def regularized(sample: Sample, draws: Draws | None, *, by: Any) -> Sample:
    """Change the bytes of an image by a regularizer; see `data.image_regularizers`."""
    try:
        return {**sample, "images": by.on_image(sample["images"], draws)}
    except Exception as error:  # not to be taken for an unusable image, which `on_bad_image=skip` leaves out
        raise RegularizerError(f"{type(by).__name__}.on_image: {type(error).__name__}: {error}") from error
