"""Images that belong to no class of a data set, read as its own are: to measure if a network notices."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from configs.schema import DataConfig
from data.class_folders import square
from data.decode import ENDINGS, pick_decoder
from data.loader import BatchReader, FileLoader
from data.photographs import crop_centre
from data.samples import decoded, image_files
from data.tensors import TensorLoader

GREY = np.array([0.299, 0.587, 0.114], np.float32)[:, None, None]  # of red, green and blue (ITU-R BT.601)


def outside(place: Path, like: Any, data: DataConfig, workers: int) -> Any:
    """The loader of all images in a directory and those below it, brought to the form of another split's.

    Args:
        place: a directory of images, or of class folders, whose names do not count: every label is 0.
        like: the loader of a split of this data set, whose size, normalization and batches are taken.
        data: that of the run.
        workers: threads that decode small images.

    Raises:
        ValueError: if there is no image, or one that cannot be read, as data.on_bad_image says.
    """
    found = [
        os.path.relpath(os.path.join(folder, name), place)
        for folder, _, names in os.walk(place)
        for name in names
        if name.lower().endswith(ENDINGS) and not name.startswith(".")
    ]
    if not found:
        raise ValueError(f"{place}: holds no image ({', '.join(ENDINGS)})")
    names = sorted(map(os.fsencode, found))
    files = image_files(place, names, np.zeros(len(names), np.int64))
    decode, skip = pick_decoder(data.decoder, data.exif), data.on_bad_image == "skip"

    # Small images, which are kept in memory.
    if isinstance(like, TensorLoader):
        size, channels = like.windows.shape[3], like.windows.shape[5]
        samples = decoded(files, partial(square, place, size, decode), workers, skip, "usable image")
        images = samples["images"]
        if channels == 1:
            images = (images * GREY).sum(1, keepdims=True).round().astype(np.uint8)
        small = like.with_images(images, samples["labels"])
        small.bad_images.update(samples.left_out)
        return small

    # Photographs, which are read batch by batch.
    assert isinstance(like, FileLoader)
    loader = copy.copy(like)
    loader._kept = None  # its workers read the split
    chosen = None if data.decoder == "pil" else decode
    steps = [partial(crop_centre, size=data.image_size, decode=chosen, turn=data.exif == "apply")]
    loader.samples = files
    loader.reader = BatchReader(files, steps, like.reader.seed, training=False, skip=skip)
    loader.num_samples, loader.bad_images = len(files), {}
    loader.batches = replace(like.batches, num_samples=len(files))
    return loader
