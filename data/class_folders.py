"""Openers of class folders: `imagenet` and `imagenette`, whose two parts are official, and one's own in `folder`.

One's own: `root/train/<class>/<image>`, and `val/` and `test/` of the same form where they exist. Small images (up to
`IN_MEMORY` pixels a side) are decoded once and kept as uint8; larger ones are read per batch.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from configs.schema import AugmentConfig, DataConfig
from data.decode import ENDINGS, FORMATS, GRAY, Decode, pick_decoder, whole
from data.folders import (
    VAL_FOLDERS,
    Folders,
    class_names,
    few,
    image_folders,
    list_files,
    open_folders,
    require_same,
    size_on_disk,
    split_folders,
)
from data.interface import ClassificationBatch, Data, Loading, assemble
from data.loader import IMAGENET_STATISTICS, FileLoader, Statistics, channel_statistics, statistics_given
from data.photographs import center, resized
from data.pipelines import photograph
from data.samples import Row, Sample, Samples, cut, cut_notes, decoded, fingerprint, positions, read_file, with_test
from data.shards import is_prepared, open_prepared
from data.splits import Batches
from data.tensors import TensorLoader

IN_MEMORY = 64  # side of the largest images that are kept in memory
OWN_LAYOUT = f"needs train/<class>/<image>, and if you have them val/ and test/ of the same form ({', '.join(ENDINGS)})"

# A folder that only the layout of another task has.
OTHER_LAYOUTS = {"annotations": "coco", "JPEGImages": "voc_detection", "masks": "segmentation_folder"}


def open_class_folders(data: DataConfig, augment: AugmentConfig, loading: Loading) -> Data:
    """Open `imagenet` or `imagenette`, the original files or what was prepared from them."""
    refuse_padding(data.name, augment)
    found = _official(data)
    splits = {"train": found.train, "test": found.test}
    parts = cut(splits, data)
    identity: list[Any] = [data.name, found.classes, *positions(splits, data)]
    identity += [samples[column] for samples in splits.values() for column in ("name", "labels")]
    identity += [found.version] if found.version else []
    return assemble(
        data,
        parts,
        photograph_loader(data, augment, loading, IMAGENET_STATISTICS, found.decode),
        loading,
        classes=found.classes,
        image_shape=(3, data.image_size, data.image_size),
        fingerprint=fingerprint(identity),
        notes=[*found.notes, *cut_notes(data, splits, parts)],
    )


def _official(data: DataConfig) -> Folders:
    """Class folders, or what was prepared from them; the two give different runs, so neither is guessed."""
    root = None if data.root is None else Path(data.root)
    if is_prepared(root) and not data.prepared:
        raise ValueError(
            f"{data.name}: {root} holds prepared photographs, which are not the original ones: data.prepared=true"
        )
    if not data.prepared:
        return open_folders(data.name, root, data.download)
    if root is None or not is_prepared(root):
        raise FileNotFoundError(
            f"{data.name}: no prepared photographs in data.root={root}, or not all; see scripts.prepare_shards"
        )
    found = open_prepared(data.name, root)
    if found.decode is not None and data.decoder == "pil":
        raise ValueError(f"{data.name}: decoder pil reads image files, and {root} holds raw pixels; use decoder=auto")
    return found


def photograph_loader(
    data: DataConfig,
    augment: AugmentConfig,
    loading: Loading,
    statistics: Statistics,
    decode: Decode | None = None,
) -> Callable[[Samples, Batches], FileLoader]:
    """Makes the loader of a split of photographs. decode: of content that is no image file."""
    if decode is None and data.decoder != "pil":
        decode = pick_decoder(data.decoder, data.exif)

    def loader(samples: Samples, batches: Batches) -> FileLoader:
        turn = data.exif == "apply"
        steps = photograph(data.image_size, decode, augment, loading.regularizers, batches.shuffled, turn)
        return FileLoader(samples, batches, steps, ClassificationBatch, statistics, data, loading)

    return loader


def refuse_padding(name: str, augment: AugmentConfig) -> None:
    """Raise ValueError for the padding of small images."""
    if augment.crop_padding:
        raise ValueError(
            f"recipe.augment.crop_padding is for small images; {name} is cropped by random boxes: set it to 0, or "
            "choose a recipe of photographs such as recipe=imagenette"
        )


def open_own_folders(data: DataConfig, augment: AugmentConfig, loading: Loading) -> Data:
    """Open `folder`. Without `test/` a fifth of the training images is cut off, the same in every run, stratified.

    Raises:
        FileNotFoundError: if there are no class folders; says which layout is expected.
        ValueError: for splits with different classes, or a class folder without an image; names it.
    """
    name, size, statistics = data.name, data.image_size, statistics_given(data)
    # The folder's own splits, and what is missing cut from train.
    splits, classes, notes = find_splits(name, data.root)
    splits, of_test = with_test(name, splits, "training images")
    parts = cut(splits, data)
    notes = [*notes, *of_test, *cut_notes(data, splits, parts)]
    identity: list[Any] = [name, classes]
    loader: Callable[[Samples, Batches], FileLoader | TensorLoader]

    if size > IN_MEMORY:  # read for each batch, as photographs are; what is hashed is the size of each file
        refuse_padding(name, augment)
        channels = 3
        if statistics is None:
            statistics = IMAGENET_STATISTICS
            notes.append(f"{name}: normalized with ImageNet's mean and std; data.mean and data.std set others")
        loader = photograph_loader(data, augment, loading, statistics)
        for split, samples in parts.items():
            sizes = np.array([size_on_disk(samples.name(i)) for i in range(len(samples))], np.int64)
            identity += [split, samples["name"], samples["labels"], sizes]
    else:
        decode, skip = pick_decoder(data.decoder, data.exif), data.on_bad_image == "skip"
        for split, files in parts.items():
            if len(files):
                read = partial(square, Path(files.folder), size, decode)
                parts[split] = decoded(files, read, loading.workers, skip, "usable image")
        full = {split: samples for split, samples in parts.items() if len(samples)}
        # Where no image of any split has a colour, one channel says all.
        channels = 1 if all(samples["gray"].all() for samples in full.values()) else 3
        if statistics is None:
            statistics = channel_statistics(parts["train"]["images"][:, :channels])

        def loader(samples: Samples, batches: Batches) -> TensorLoader:
            images = samples["images"][:, :channels]
            return TensorLoader(images, samples["labels"], batches, statistics, augment, loading)

        for split, samples in full.items():
            identity += [split, samples["name"], samples["labels"], samples["images"]]
        # What opening changed or left out.
        changed = sum(int(samples["resized"].sum()) for samples in full.values())
        left_out = sum(len(samples.left_out) for samples in full.values())
        if changed:
            of = f"{changed:,} of {sum(map(len, full.values())):,}"
            notes.append(f"{name}: {of} images came in another size; short side to {size}, centre cropped")
        if left_out:
            notes.append(f"{name}: {left_out:,} unreadable file{'s are' if left_out > 1 else ' is'} left out")

    if len(statistics[0]) != channels:
        raise ValueError(f"data.mean and data.std name {len(statistics[0])} channels, the images have {channels}")
    return assemble(
        data,
        parts,
        loader,
        loading,
        classes=classes,
        image_shape=(channels, size, size),
        fingerprint=fingerprint(identity),
        notes=notes,
    )


def find_splits(name: str, place: str | None) -> tuple[dict[str, Samples], tuple[str, ...], list[str]]:
    """The splits that a folder has, its classes, and notes on it; see `open_own_folders`."""
    if place is None:
        raise FileNotFoundError(f"{name}: name the folder of your images by data.root; it {OWN_LAYOUT}")
    root = Path(place)
    if not root.is_dir():
        raise FileNotFoundError(f"{name}: no folder {root}; data.root {OWN_LAYOUT}")
    # The most frequent mistakes: class folders right below the root, a root one level too deep, another layout.
    held = [] if (root / "train").exists() else image_folders(root)
    if held:
        layout = next((data for part, data in OTHER_LAYOUTS.items() if (root / part).is_dir()), None)
        if root.name in ("train", *VAL_FOLDERS, "test"):
            advice = f"it is itself a split: data.root={root.parent}"
        elif layout is not None:
            advice = f"it looks like the layout of data={layout}"
        elif all(re.match("train|val|test", folder.lower()) for folder in held):
            advice = f"it holds {few(held)}: name the splits train, val and test"
        else:
            of = "1 folder" if len(held) == 1 else f"{len(held)} folders"
            advice = f"it holds {of} of images: move {'it' if len(held) == 1 else 'them'} into train/"
        raise FileNotFoundError(f"{name}: no folder {root / 'train'}; data.root {OWN_LAYOUT}; {advice}")
    classes = class_names(name, root / "train", OWN_LAYOUT)
    if len(classes) < 2:
        raise ValueError(f"{name}: {root / 'train'} holds the one class folder {classes[0]}; two or more are needed")

    folders = split_folders(name, root)
    splits: dict[str, Samples] = {}
    for split, folder in folders.items():
        require_same(name, classes, root, folder, OWN_LAYOUT)
        splits[split] = list_files(name, root / folder, classes)
    # What a user may not have meant.
    others = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and entry.name not in folders.values())
    notes = [f"{name}: folders that are none of train, val, test are not used: {few(others)}"] if others else []
    return splits, tuple(classes), notes


def square(folder: Path, size: int, decode: Decode, row: Row) -> Sample:
    """Pixels (3, size, size) of a file; whether it is gray, and came in another size."""
    from PIL import Image

    content = read_file(folder, row)["images"]
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        gray = image.mode in GRAY
    pixels = decode(content, whole)
    height, width = pixels.shape[:2]
    other_size = (height, width) != (size, size)
    if other_size:
        scale = size / min(height, width)
        height, width = max(size, round(height * scale)), max(size, round(width * scale))
        top, left = center(height, width, size)
        pixels = resized(pixels, height, width)[top : top + size, left : left + size]
    images = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return {"images": images, "labels": row["labels"], "gray": gray, "resized": other_size}
