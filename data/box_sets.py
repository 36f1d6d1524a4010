"""Openers of detection data on disk: `coco` and `voc_detection`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data import coco, voc_xml
from data.class_folders import IMAGENET_STATISTICS
from data.detection import Split, open_detection, require_training_boxes
from data.interface import Data
from data.options import Augment, Cut, Loading, Reading, Source

SPLITS = ("train", "val", "test")


def open_coco(name: str, source: Source, cut: Cut, augment: Augment, reading: Reading, loading: Loading) -> Data:
    """Open `coco`; see `data.build.build_data`.

    Options: `train_split`, `val_split`, `test_split`. The official validation set is the test set here (the labels of
    COCO's own test set are not public); without `val_split`, val is cut from the training set.
    """
    chosen = _chosen(name, source, {"train": "train2017", "test": "val2017"})
    if source.folder is None:
        raise FileNotFoundError(f"{name}: name its folder by data.root; it {coco.LAYOUT}")
    parts = {key: coco.read_coco(source.folder, split) for key, split in chosen.items()}
    for part in parts.values():
        if part.categories != parts["train"].categories:
            raise ValueError(f"{name}: {part.folder} and {parts['train'].folder} do not have the same categories")
    notes = tuple(
        f"{name}: most boxes of {part.folder.name} reach out of their images; bbox must be x, y, width, height"
        for part in parts.values()
        if 2 * len(part.reaching_out()) > len(part.objects)
    )
    splits = {key: Split(part) for key, part in parts.items()}
    return open_detection(name, splits, reading.size(640), IMAGENET_STATISTICS, notes, cut, augment, reading, loading)


def open_voc_detection(
    name: str, source: Source, cut: Cut, augment: Augment, reading: Reading, loading: Loading
) -> Data:
    """Open `voc_detection`; see `data.build.build_data`.

    Options: `train_split`, `val_split`, `test_split`, lists in ImageSets/Main (without `val_split`, val is cut from
    the training list); `classes`, in the order of the labels (default: all in the training list, sorted).
    """
    chosen = _chosen(name, source, {"train": "train", "test": "val"}, "classes")
    if source.folder is None:
        raise FileNotFoundError(f"{name}: name its folder by data.root; it {voc_xml.LAYOUT}")
    root = source.folder
    lists = {key: voc_xml.read_list(root, split) for key, split in chosen.items()}
    _require_disjoint(name, lists, chosen)
    train = voc_xml.read_voc(root, lists["train"], source.options.get("classes"))
    require_training_boxes(name, train)
    names = train.categories.names
    others = {key: Split(voc_xml.read_voc(root, lists[key], names)) for key in lists if key != "train"}
    splits = {"train": Split(train), **others}
    notes = (f"{name}: object sizes (small, medium, large) by width times height, the files have no masks",)
    return open_detection(name, splits, reading.size(512), IMAGENET_STATISTICS, notes, cut, augment, reading, loading)


def _chosen(name: str, source: Source, defaults: Mapping[str, str], *others: str) -> dict[str, Any]:
    """The names of the splits, in the order train, val, test."""
    source.require_known(name, *(f"{split}_split" for split in SPLITS), *others)
    named = {split: source.options.get(f"{split}_split") or defaults.get(split) for split in SPLITS}
    chosen = {split: value for split, value in named.items() if value is not None}
    if len(set(chosen.values())) < len(chosen):
        what = ", ".join(f"{split}_split={value}" for split, value in chosen.items())
        raise ValueError(f"{name}: the splits must be different ones, not {what}")
    return chosen


def _require_disjoint(name: str, lists: Mapping[str, list[str]], chosen: Mapping[str, str]) -> None:
    keys = list(lists)
    for position, one in enumerate(keys):
        for other in keys[position + 1 :]:
            shared = sorted(set(lists[one]) & set(lists[other]))
            if shared:
                pair = f"{one}_split={chosen[one]} and {other}_split={chosen[other]}"
                raise ValueError(f"{name}: {pair} share {len(shared):,} images, one is {shared[0]}")
