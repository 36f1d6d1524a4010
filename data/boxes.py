"""Images with boxes: the samples that the readers of detection data produce, and the data set made of them.

A few flat arrays rather than an object per box: COCO's 860,000 boxes would be copied into every loader process.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.schema import AugmentConfig, DataConfig
from data.decode import Decode, Pixels, hint_on_turn, orientation_in, whole
from data.interface import MAX_BOXES, Data, DetectionBatch, Loading, assemble
from data.loader import FileLoader, Statistics
from data.pipelines import placed
from data.samples import Counts, Row, Sample, Samples, cut, cut_notes, fingerprint, read_file
from data.splits import Batches

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Categories:
    """The classes of a detection data set: label i is the category `names[i]`, whose id in the files is `ids[i]`."""

    ids: tuple[int, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Objects:
    """Boxes of many images, one row each.

    Args:
        boxes: (M, 4) float64, left, top, width, height in pixels of the original image, as COCO writes them.
        labels: (M,) int64 in 0 ... K - 1.
        areas: (M,) float64; COCO's is that of the object's mask, elsewhere width times height.
        ignored: (M,) bool, crowds of COCO and difficult objects of VOC: not trained on, and neither a hit nor a false
            alarm in the evaluation.
    """

    boxes: Floats
    labels: Ints
    areas: Floats
    ignored: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: slice | NDArray[Any]) -> Objects:
        return Objects(self.boxes[rows], self.labels[rows], self.areas[rows], self.ignored[rows])


@dataclass(frozen=True, kw_only=True)
class Annotated(Samples):
    """The images of a split and their objects.

    The columns are `name` (relative to the folder), `image_ids` (unique), `sizes` (height and width), `first` and
    `last`: the objects of an image are the rows `first` ... `last - 1` of all objects. Images in memory are a column.

    Args:
        everything: the objects of all images of the file, sorted by image; a part of the split shares them.
        categories: the meaning of the labels.
        degenerate: how many boxes without width or height were left out.
        outside: the image of each box that was left out since no part of it lies in the image.
        unlisted: images beside those of the split that its annotations do not name.
    """

    everything: Objects
    categories: Categories
    degenerate: int = 0
    outside: tuple[str, ...] = ()
    unlisted: tuple[str, ...] = ()

    @property
    def counts(self) -> Ints:
        """(N,) the number of objects in each image."""
        return self["last"] - self["first"]

    @cached_property
    def objects(self) -> Objects:
        """The objects of these images, one image after the other."""
        rows = [np.arange(first, last) for first, last in zip(self["first"], self["last"], strict=True)]
        return self.everything[np.concatenate(rows) if rows else np.zeros(0, np.int64)]

    @property
    def owners(self) -> Ints:
        """The image, by its position, of each of `objects`."""
        return np.repeat(np.arange(len(self)), self.counts)

    def class_counts(self, num_classes: int, most: int) -> Counts:
        """Boxes of each class; crowds and difficult objects are counted apart."""
        found = self.objects
        each = np.bincount(found.labels[~found.ignored], minlength=num_classes).tolist()
        return Counts("boxes", each, len(self), int(found.ignored.sum()))

    def of(self, index: int) -> Objects:
        """The objects of one image."""
        return self.everything[int(self["first"][index]) : int(self["last"][index])]

    def reaching_out(self) -> Ints:
        """The image, by its position, of each box that reaches more than one pixel out of it (one: a 0 for a 1)."""
        owners = self.owners
        starts, sides = np.split(self.objects.boxes, 2, axis=1)
        return owners[np.maximum(-starts, starts + sides - self["sizes"][owners, ::-1]).max(1) > 1]

    def truth(self) -> dict[str, Any]:
        """The split in COCO's format, with boxes in pixels of the original images; label i is `categories[i]["id"]`."""
        found, ids = self.objects, np.array(self.categories.ids, np.int64)
        images = zip(self["image_ids"].tolist(), self["name"], self["sizes"].tolist(), strict=True)
        rows = zip(
            self["image_ids"][self.owners].tolist(),
            ids[found.labels].tolist(),
            found.boxes.tolist(),
            found.areas.tolist(),
            found.ignored.tolist(),
            strict=True,
        )
        return {
            "images": [
                {"id": number, "file_name": os.fsdecode(name), "height": height, "width": width}
                for number, name, (height, width) in images
            ],
            # Numbered from 1: pycocotools marks a detection without a match by 0.
            "annotations": [
                {"id": row, "image_id": image, "category_id": known, "bbox": box, "area": area, "iscrowd": int(crowd)}
                for row, (image, known, box, area, crowd) in enumerate(rows, start=1)
            ],
            "categories": [
                {"id": number, "name": name}
                for number, name in zip(self.categories.ids, self.categories.names, strict=True)
            ],
        }


def annotated(
    folder: Path,
    names: Sequence[str],
    image_ids: Sequence[int] | Ints,
    sizes: Sequence[tuple[int, int]] | Ints,
    owners: Ints,
    objects: Objects,
    categories: Categories,
    pixels: Decode | Pixels,
    unused: Sequence[str] = (),
) -> Annotated:
    """Sort the objects by image and leave out boxes without width or height, and those outside of their image.

    Args:
        owners: (M,) the position in `names` of the image that each object is in.
        pixels: the decoder of the image files, or (N, H, W, 3) images in memory.
        unused: files beside them, of formats that are not read.
        Others: see `Annotated`.
    """
    # Degenerate boxes, and those of which no part lies in the image, can neither be learned nor found.
    shapes = np.asarray(sizes, np.int64).reshape(-1, 2)
    starts, sides = np.split(objects.boxes, 2, axis=1)
    proper = (sides > 0).all(1)
    inside = ((starts < shapes[owners, ::-1]) & (starts + sides > 0)).all(1)
    kept = np.flatnonzero(proper & inside)

    # Sorted by image, so that each image's objects are a range of rows.
    kept = kept[np.argsort(owners[kept], kind="stable")]
    ends = np.cumsum(np.bincount(owners[kept], minlength=len(names)))
    columns = {
        "name": np.array([os.fsencode(name) for name in names], np.bytes_),
        "image_ids": np.asarray(image_ids, np.int64),
        "sizes": shapes,
        "first": np.concatenate([[0], ends[:-1]]).astype(np.int64),
        "last": ends.astype(np.int64),
    }
    decode = None if isinstance(pixels, np.ndarray) else pixels
    if isinstance(pixels, np.ndarray):
        columns["images"] = pixels
    return Annotated(
        columns=columns,
        read=partial(read_objects, folder, decode, objects[kept]),
        folder=folder,
        in_memory=decode is None,
        from_files=decode is not None,
        unused=unused,
        everything=objects[kept],
        categories=categories,
        degenerate=int((~proper).sum()),
        outside=tuple(names[position] for position in owners[proper & ~inside]),
    )


def read_objects(folder: Path, decode: Decode | None, objects: Objects, row: Row) -> Sample:
    """The pixels of an image and its boxes; not the crowds.

    Raises:
        ValueError: for an image of another size than its annotation says.
    """
    content = read_file(folder, row)["images"] if decode else b""
    pixels = decode(content, whole) if decode else row["images"]
    (height, width), said = pixels.shape[:2], row["sizes"].tolist()
    if [height, width] != said:
        turned = hint_on_turn(orientation_in(content), [width, height] == said) or ": one of the two is wrong"
        raise ValueError(f"it has {width}x{height} pixels, its annotation says {said[1]}x{said[0]}{turned}")
    found = objects[int(row["first"]) : int(row["last"])]
    found = found[~found.ignored]
    return {"images": pixels, "boxes": found.boxes, "labels": found.labels, "image_ids": row["image_ids"]}


def open_detection(
    data: DataConfig,
    augment: AugmentConfig,
    loading: Loading,
    splits: Mapping[str, Annotated],
    statistics: Statistics,
    notes: Sequence[str],
) -> Data:
    """The data set of these splits.

    Args:
        splits: `train`, `test`, and `val` where the data set has one; else it is cut from `train`.
        statistics: mean and standard deviation of each channel, of values in [0, 1].
        notes: those of the reader; notes on the cut and on boxes that are treated specially are added.

    Raises:
        ValueError: for a split without boxes.
    """
    name, size, classes = data.name, data.image_size, splits["train"].categories.names
    # A split without boxes is found before anything is trained: its AP would not be a number.
    require_training_boxes(name, splits["train"])
    for split, part in splits.items():
        if len(part.objects) and part.objects.boxes.max() <= 1:
            raise ValueError(
                f"{name}: no box of {split} reaches beyond 1: boxes are in pixels, not in shares of the image"
            )
    parts: dict[str, Any] = cut(splits, data)
    for split in ("val", "test"):
        if len(parts[split]) and parts[split].objects.ignored.all():
            of_cut = "; they were cut from train: give data.val_split or another val_fraction"
            instead = "" if split in splits else of_cut
            raise ValueError(f"{name}: the {split} images have no boxes to measure AP by{instead}")

    # Two runs with the same fingerprint saw the same boxes in images of the same names and sizes.
    identity: list[Any] = [name, classes]
    for part in parts.values():
        found, starts = part.objects, np.concatenate([[0], np.cumsum(part.counts)]).astype(np.int64)
        identity += [part["name"], part["image_ids"], part["sizes"], starts, np.array(part.categories.ids, np.int64)]
        identity += [found.boxes, found.labels, found.ignored, *([part["images"]] if part.in_memory else [])]

    def loader(samples: Samples, batches: Batches) -> FileLoader:
        steps = placed(size, augment, loading.regularizers, batches.shuffled, enlarge=True)
        return FileLoader(samples, batches, steps, DetectionBatch, statistics, data, loading)

    return assemble(
        data,
        parts,
        loader,
        loading,
        classes=classes,
        image_shape=(3, size, size),
        fingerprint=fingerprint(identity),
        notes=[*notes, *cut_notes(data, splits, parts), *_box_notes(name, splits)],
    )


def require_training_boxes(name: str, train: Annotated) -> None:
    """Raise ValueError for a training split all of whose objects are ignored, or that has none."""
    if train.objects.ignored.all():
        raise ValueError(f"{name}: the training images have no boxes to train on")


def _box_notes(name: str, splits: Mapping[str, Annotated]) -> list[str]:
    """Notes on boxes that cannot be used as they stand, where there are any."""
    found = list(splits.values())
    degenerate = sum(split.degenerate for split in found)
    ignored = sum(int(split.objects.ignored.sum()) for split in found)
    crowded = sum(int((np.bincount(split.owners[~split.objects.ignored]) > MAX_BOXES).sum()) for split in found)
    outside = [image for split in found for image in split.outside]
    reaching = [split.name(position) for split in found for position in split.reaching_out().tolist()]
    notes = _class_notes(name, splits["train"])
    for split in found:
        if split.unlisted:
            count = f"{len(split.unlisted):,} images in {split.folder}"
            notes.append(f"{name}: {count} are not in its annotations and not used, one is {split.unlisted[0]}")
    if outside:
        notes.append(f"{name}: {len(outside):,} boxes that lie outside their image are left out, one of {outside[0]}")
    if reaching:
        notes.append(f"{name}: {len(reaching):,} boxes reach out of their image, which limits AP, one in {reaching[0]}")
    if degenerate:
        notes.append(f"{name}: {degenerate:,} boxes without width or height are left out")
    if ignored:
        notes.append(f"{name}: {ignored:,} crowds or difficult objects are not trained on, and ignored in evaluation")
    if crowded:
        notes.append(f"{name}: of the {crowded:,} images with more than {MAX_BOXES} boxes the largest are trained on")
    return notes


def _class_notes(name: str, train: Annotated) -> list[str]:
    """Classes that differ in case alone: often one class, misspelt in some files."""
    same: dict[str, list[int]] = {}
    for label, known in enumerate(train.categories.names):
        same.setdefault(known.casefold(), []).append(label)
    counts = np.bincount(train.objects.labels, minlength=len(train.categories.names))
    alike = [
        ", ".join(f"{train.categories.names[i]} ({counts[i]:,} boxes)" for i in group)
        for group in same.values()
        if len(group) > 1
    ]
    return [f"{name}: classes that differ in case alone: {'; '.join(alike)}"] if alike else []
