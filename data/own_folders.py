"""A user's own class folders: `root/train/<class>/<image>`, and `val/` and `test/` of the same form where they exist.

Small images (up to `IN_MEMORY` pixels a side) are decoded once and kept as uint8; larger ones are read per batch.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.augment import Normalize
from data.class_folders import IMAGENET_STATISTICS, require_photograph_augmentation
from data.decoded_split import Decoded, decode_all
from data.fingerprint import fingerprint
from data.folders import ENDINGS, Files, class_names, few, image_folders, list_files, require_same, size_on_disk
from data.images import ImageLoader
from data.in_memory import Statistics, channel_statistics
from data.interface import Data
from data.options import Augment, Cut, Loading, Reading, Source
from data.pictures import Picture
from data.splits import TEST, Batches, Indices, stratified, subset
from data.tensors import TensorLoader

IN_MEMORY = 64  # side of the largest images that are kept in memory
TEST_SHARE = 0.2  # of the training images, where there is no test folder
SPLITS = ("train", "val", "test")
MOST_COUNTED = 1000  # images of a held-out split that are in train as well; more are not looked for
LAYOUT = f"needs train/<class>/<image>, and if you have them val/ and test/ of the same form ({', '.join(ENDINGS)})"


@dataclass(frozen=True)
class OwnFolders:
    """The splits of a folder, before `val` is cut: `val` is None where the folder has none."""

    train: Files
    val: Files | None
    test: Files
    classes: tuple[str, ...]
    notes: tuple[str, ...]


def find_splits(name: str, root: Path | None) -> OwnFolders:
    """List a folder; without `test/` a fifth of the training images is cut off, the same in every run, stratified.

    Raises:
        FileNotFoundError: if there are no class folders; says which layout is expected.
        ValueError: for splits with different classes, or a class folder without an image; names it.
    """
    if root is None:
        raise FileNotFoundError(f"{name}: name the folder of your images by data.root; it {LAYOUT}")
    if not root.is_dir():
        raise FileNotFoundError(f"{name}: no folder {root}; data.root {LAYOUT}")
    held = 0 if (root / "train").exists() else len(image_folders(root))
    if held:
        of = "1 folder" if held == 1 else f"{held} folders"
        moved = f"it holds {of} of images: move {'it' if held == 1 else 'them'} into train/"
        raise FileNotFoundError(f"{name}: no folder {root / 'train'}; data.root {LAYOUT}; {moved}")
    classes = class_names(name, root / "train", LAYOUT)
    if len(classes) < 2:
        raise ValueError(f"{name}: {root / 'train'} holds the one class folder {classes[0]}; two or more are needed")
    found: dict[str, Files] = {}
    for split in SPLITS:
        if (root / split).is_dir():
            require_same(name, classes, root, split, LAYOUT)
            found[split] = list_files(name, root / split, classes)
    others = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name not in SPLITS)
    notes: tuple[str, ...] = ()
    if others:
        notes = (f"{name}: folders that are none of train, val, test are not used: {few(others)}",)
    train = found["train"]
    for split in ("val", "test"):
        if split in found:
            notes += also_in_training(name, train, split, found[split])
    if "test" not in found:
        test = stratified(train.labels, max(1, round(TEST_SHARE * len(train))), TEST)
        found["test"] = train.part(test)
        train = train.part(np.setdiff1d(np.arange(len(train)), test))
        notes += (f"{name}: no test folder, {len(test):,} of the training images are cut off as test",)
    return OwnFolders(train, found.get("val"), found["test"], tuple(classes), notes)


def also_in_training(name: str, train: Files, split: str, held: Files) -> tuple[str, ...]:
    """A note where a held-out split holds training images: files of the same class, name and content."""
    _, ours, theirs = np.intersect1d(train.names, held.names, return_indices=True)
    pairs = zip(ours.tolist(), theirs.tolist(), strict=True)
    same = list(islice((held.name(j) for i, j in pairs if equal_files(train.name(i), held.name(j))), MOST_COUNTED))
    if not same:
        return ()
    count = f"{'at least ' if len(same) == MOST_COUNTED else ''}{len(same):,} of {len(held):,}"
    return (f"{name}: of the {split} images {count} are in train as well, one is {same[0]}",)


def equal_files(one: str, other: str) -> bool:
    """Whether two files have the same content; not if it is none, or cannot be read, of which the loaders tell more."""
    try:
        return os.path.getsize(one) > 0 and filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def open_own_folders(name: str, source: Source, cut: Cut, augment: Augment, reading: Reading, loading: Loading) -> Data:
    """Open `folder`; see `data.build.build_data`. Options: `mean`, `std`."""
    source.require_known(name, "mean", "std")
    given = statistics_given(source.options)
    found = find_splits(name, source.folder)
    if found.val is None:
        train, val = cut(found.train.labels)
        parts = {"train": found.train.part(train), "val": found.train.part(val), "test": found.test}
    else:
        train = subset(np.arange(len(found.train)), found.train.labels, cut.train_subset)
        parts = {"train": found.train.part(train), "val": found.val, "test": found.test}
    open_parts = _in_memory if reading.size(IN_MEMORY) <= IN_MEMORY else _per_batch
    data = open_parts(name, parts, found.classes, given, augment, reading, loading)
    return replace(data, notes=found.notes + cut.notes + data.notes)


def _in_memory(
    name: str,
    parts: dict[str, Files],
    classes: tuple[str, ...],
    given: Statistics | None,
    augment: Augment,
    reading: Reading,
    loading: Loading,
) -> Data:
    augment.refuse(f"is for segmentation and detection, not for {name}", "scale_min", "scale_max", "photometric")
    size = reading.size(IN_MEMORY // 2)
    decoded = {
        split: decode_all(files, size, reading.decoder, reading.workers, reading.on_bad_image == "skip")
        for split, files in parts.items()
        if len(files)
    }
    channels = 1 if all(part.gray for part in decoded.values()) else 3
    mean, std = given or channel_statistics(decoded["train"].images[:, :channels])
    if len(mean) != channels:
        raise ValueError(f"data.mean and data.std name {len(mean)} channels, the images have {channels}")
    normalize = Normalize(mean, std, size, loading.device)

    def loader(split: str, batches: Callable[[int], Batches]) -> TensorLoader:
        images, files = decoded[split].images[:, :channels], decoded[split].files
        loader = TensorLoader(
            *(images, torch.from_numpy(files.labels), batches(len(files)), normalize, augment),
            *(loading.device, loading.channels_last),
        )
        loader.bad_images.update(decoded[split].bad)
        return loader

    return Data(
        name=name,
        task="classification",
        train=loader("train", loading.training),
        val=loader("val", loading.evaluation) if "val" in decoded else None,
        test=loader("test", loading.evaluation),
        classes=classes,
        image_shape=(channels, size, size),
        fingerprint=fingerprint(
            *(name, classes),
            *(value for s, part in decoded.items() for value in (s, part.files.names, part.files.labels, part.images)),
        ),
        notes=_decoded_notes(name, size, list(decoded.values())),
    )


def _decoded_notes(name: str, size: int, parts: Sequence[Decoded]) -> tuple[str, ...]:
    """How many images were changed and left out, where any were."""
    changed, total = sum(part.resized for part in parts), sum(len(part.files) for part in parts)
    left_out = sum(len(part.bad) for part in parts)
    notes = []
    if changed:
        notes.append(
            f"{name}: {changed:,} of {total:,} images came in another size; short side to {size}, centre cropped"
        )
    if left_out:
        notes.append(f"{name}: {left_out:,} unreadable file{'s are' if left_out > 1 else ' is'} left out")
    return tuple(notes)


def _per_batch(
    name: str,
    parts: dict[str, Files],
    classes: tuple[str, ...],
    given: Statistics | None,
    augment: Augment,
    reading: Reading,
    loading: Loading,
) -> Data:
    require_photograph_augmentation(name, augment)
    size = reading.size(IN_MEMORY)
    mean, std = given or IMAGENET_STATISTICS
    if len(mean) != 3:
        raise ValueError(f"data.mean and data.std name {len(mean)} channels; above {IN_MEMORY} pixels there are 3")
    picture, normalize = Picture(size, reading.decoder, augment), Normalize(mean, std, size, loading.device)

    def loader(files: Files, batches: Batches) -> ImageLoader:
        return ImageLoader(files, picture, batches, normalize, augment, reading, loading)

    val, test = parts["val"], parts["test"]
    return Data(
        name=name,
        task="classification",
        train=loader(parts["train"], loading.training(len(parts["train"]))),
        val=loader(val, loading.evaluation(len(val))) if len(val) else None,
        test=loader(test, loading.evaluation(len(test))),
        classes=classes,
        image_shape=(3, size, size),
        fingerprint=fingerprint(
            *(name, classes),
            *(value for s, part in parts.items() for value in (s, part.names, part.labels, file_sizes(part))),
        ),
        notes=() if given else (f"{name}: normalized with ImageNet's mean and std; data.mean and data.std set others",),
    )


def statistics_given(options: Mapping[str, Any]) -> Statistics | None:
    """The options `mean` and `std`, or None without them.

    Raises:
        ValueError: for one without the other, or values outside [0, 1].
    """
    mean, std = options.get("mean"), options.get("std")
    if (mean is None) != (std is None):
        raise ValueError("data.mean and data.std belong together: give both or none")
    if mean is None or std is None:
        return None
    if len(mean) != len(std) or not all(0 <= m <= 1 for m in mean) or not all(0 < s <= 1 for s in std):
        raise ValueError(f"data.mean={list(mean)} data.std={list(std)}: one number in [0, 1] for each channel")
    return tuple(mean), tuple(std)


def file_sizes(files: Files) -> Indices:
    """(N,) bytes of each file."""
    return np.array([size_on_disk(files.name(i)) for i in range(len(files))], np.int64)
