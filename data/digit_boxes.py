"""`digit_boxes`: detection without a download, on scenes of handwritten digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from data.annotated import Categories, Objects, gathered
from data.detection import Split, open_detection
from data.in_memory import channel_statistics
from data.interface import Data
from data.options import Augment, Cut, Loading, Reading, Source
from data.scenes import CLASSES, compose

TRAIN_SCENES, TEST_SCENES, SIZE = 2000, 400, 128


def open_digit_boxes(name: str, source: Source, cut: Cut, augment: Augment, reading: Reading, loading: Loading) -> Data:
    """Open `digit_boxes`; see `data.build.build_data`.

    `val` is not cut from the training scenes but made of digits of its own, `val_fraction` times as many scenes.
    """
    source.require_known(name)
    size = reading.size(SIZE)
    counts = {"train": TRAIN_SCENES, "val": round(TRAIN_SCENES * cut.val_fraction), "test": TEST_SCENES}
    splits = {split: scenes(split, count, size) for split, count in counts.items() if count}
    if "val" not in splits:
        cut = Cut(0.0, cut.train_subset)
    images = splits["train"].images
    assert images is not None
    statistics = channel_statistics(torch.from_numpy(images).permute(0, 3, 1, 2))
    notes = (f"{name}: {TRAIN_SCENES:,} + {TEST_SCENES:,} made-up scenes of handwritten digits",)
    return open_detection(name, splits, size, statistics, notes, cut, augment, reading, loading)


def scenes(split: str, count: int, size: int) -> Split:
    """The first scenes of a split, in memory. Object sizes are those of visible pixels."""
    found = compose(split, count, size)
    objects = Objects(found.boxes, found.labels, found.areas, np.zeros(len(found.labels), bool))
    annotated = gathered(
        Path(split),
        [f"scene {number}" for number in range(count)],
        np.arange(count),
        np.full((count, 2), size),
        np.repeat(np.arange(count), np.diff(found.starts)),
        objects,
        Categories(tuple(range(1, 11)), CLASSES),
    )
    return Split(annotated, found.images)
