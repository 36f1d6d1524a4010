"""Openers of detection data: `coco` and `voc_detection` on disk, `digit_boxes` made up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from configs.schema import AugmentConfig, DataConfig
from data import coco, voc_xml
from data.boxes import Annotated, Categories, Objects, annotated, open_detection, require_training_boxes
from data.decode import pick_decoder
from data.interface import Data, Loading
from data.loader import IMAGENET_STATISTICS, channel_statistics
from data.scenes import CLASSES, compose

TRAIN_SCENES, TEST_SCENES = 2000, 400


def open_coco(data: DataConfig, augment: AugmentConfig, loading: Loading) -> Data:
    """Open `coco`.

    The official validation set is the test set here (the labels of COCO's own test set are not public); without
    `val_split`, val is cut from the training set.
    """
    name, chosen = data.name, _chosen(data, {"train": "train2017", "test": "val2017"})
    if data.root is None:
        raise FileNotFoundError(f"{name}: name its folder by data.root; it {coco.LAYOUT}")
    decode = pick_decoder(data.decoder, data.exif)
    parts = {key: coco.read_coco(Path(data.root), split, decode) for key, split in chosen.items()}
    for part in parts.values():
        ours, theirs = (dict(zip(of.ids, of.names, strict=True)) for of in (parts["train"].categories, part.categories))
        differing = sorted(ours.items() ^ theirs.items())
        if differing:
            number, known = differing[0]
            where = parts["train"].folder if (number, known) in ours.items() else part.folder
            raise ValueError(
                f"{name}: {part.folder} and {parts['train'].folder} do not have the same categories: {number} is "
                f"{known!r} in {where} alone"
            )
    notes = [
        f"{name}: most boxes of {Path(part.folder).name} reach out of their images; bbox must be x, y, width, height"
        for part in parts.values()
        if 2 * len(part.reaching_out()) > len(part.objects)
    ]
    return open_detection(data, augment, loading, parts, IMAGENET_STATISTICS, notes)


def open_voc_detection(data: DataConfig, augment: AugmentConfig, loading: Loading) -> Data:
    """Open `voc_detection`.

    `train_split`, `val_split`, `test_split` are lists in ImageSets/Main (without `val_split`, val is cut from the
    training list); `classes`, in the order of the labels, are by default all in the training list, sorted.
    """
    name, chosen = data.name, _chosen(data, {"train": "train", "test": "val"})
    if data.root is None:
        raise FileNotFoundError(f"{name}: name its folder by data.root; it {voc_xml.LAYOUT}")
    root, decode = Path(data.root), pick_decoder(data.decoder, data.exif)
    lists = {key: voc_xml.read_list(root, split) for key, split in chosen.items()}
    keys = list(lists)
    for one, other in ((one, other) for i, one in enumerate(keys) for other in keys[i + 1 :]):
        shared = sorted(set(lists[one]) & set(lists[other]))
        if shared:
            pair = f"{one}_split={chosen[one]} and {other}_split={chosen[other]}"
            raise ValueError(f"{name}: {pair} share {len(shared):,} images, one is {shared[0]}")
    # Before the other lists are read, which takes a while.
    train = voc_xml.read_voc(root, lists["train"], data.classes, decode)
    require_training_boxes(name, train)
    names = train.categories.names
    splits = {key: train if key == "train" else voc_xml.read_voc(root, lists[key], names, decode) for key in keys}
    notes = [f"{name}: object sizes (small, medium, large) by width times height, the files have no masks"]
    return open_detection(data, augment, loading, splits, IMAGENET_STATISTICS, notes)


def _chosen(data: DataConfig, defaults: Mapping[str, str]) -> dict[str, str]:
    """The names of the splits, in the order train, val, test."""
    named = {"train": data.train_split, "val": data.val_split, "test": data.test_split}
    chosen = {split: value or defaults.get(split) for split, value in named.items()}
    found = {split: value for split, value in chosen.items() if value is not None}
    if len(set(found.values())) < len(found):
        what = ", ".join(f"{split}_split={value}" for split, value in found.items())
        raise ValueError(f"{data.name}: the splits must be different ones, not {what}")
    return found


def open_digit_boxes(data: DataConfig, augment: AugmentConfig, loading: Loading) -> Data:
    """Open `digit_boxes`: detection without a download, on scenes of handwritten digits.

    `val` is not cut from the training scenes but made of digits of its own, `val_fraction` times as many scenes.
    """
    counts = {"train": TRAIN_SCENES, "val": round(TRAIN_SCENES * data.val_fraction), "test": TEST_SCENES}
    splits = {split: scenes(split, count, data.image_size) for split, count in counts.items() if count}
    if "val" not in splits:
        data = replace(data, val_fraction=0.0)
    statistics = channel_statistics(splits["train"]["images"].transpose(0, 3, 1, 2))
    notes = [f"{data.name}: {TRAIN_SCENES:,} + {TEST_SCENES:,} made-up scenes of handwritten digits"]
    return open_detection(data, augment, loading, splits, statistics, notes)


def scenes(split: str, count: int, size: int) -> Annotated:
    """The first scenes of a split, in memory. Object sizes are those of visible pixels."""
    found = compose(split, count, size)
    return annotated(
        Path(split),
        [f"scene {number}" for number in range(count)],
        np.arange(count),
        np.full((count, 2), size),
        np.repeat(np.arange(count), np.diff(found.starts)),
        Objects(found.boxes, found.labels, found.areas, np.zeros(len(found.labels), bool)),
        Categories(tuple(range(1, 11)), CLASSES),
        found.images,
    )
