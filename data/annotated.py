"""Images with boxes: what the readers of detection data sets produce, and what trains and evaluates on it.

A few flat arrays rather than an object per box: COCO's 860,000 boxes would be copied into every loader worker.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.decode import Content

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


@dataclass(frozen=True)
class Annotated:
    """The images of a split and their objects.

    Args:
        folder: of the image files.
        names: (N,) file names as bytes, relative to the folder.
        image_ids: (N,) int64, unique.
        sizes: (N, 2) int64, height and width.
        starts: (N + 1,) int64: the objects of image i are the rows `starts[i]` ... `starts[i + 1] - 1`.
        objects: of all images.
        categories: what the labels mean.
        degenerate: how many boxes without width or height were left out.
        outside: the image of each box that was left out since no part of it lies in the image.
    """

    folder: Path
    names: NDArray[np.bytes_]
    image_ids: Ints
    sizes: Ints
    starts: Ints
    objects: Objects
    categories: Categories
    degenerate: int = 0
    outside: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def name(self, index: int) -> str:
        """The path of an image, for messages."""
        return os.path.join(self.folder, os.fsdecode(self.names[index]))

    def read(self, index: int) -> Content:
        """The content of an image file."""
        with open(self.name(index), "rb") as file:
            return file.read()

    def of(self, index: int) -> Objects:
        """The objects of one image."""
        return self.objects[int(self.starts[index]) : int(self.starts[index + 1])]

    def reaching_out(self) -> Ints:
        """The image, by its position, of each box that reaches more than one pixel out of it (one: a 0 for a 1)."""
        owners = np.repeat(np.arange(len(self)), np.diff(self.starts))
        starts, sides = np.split(self.objects.boxes, 2, axis=1)
        return owners[np.maximum(-starts, starts + sides - self.sizes[owners, ::-1]).max(1) > 1]

    def part(self, indices: Ints) -> Annotated:
        """Some of the images with their objects, in the order given."""
        counts = np.diff(self.starts)[indices]
        rows = [np.arange(self.starts[i], self.starts[i + 1]) for i in indices.tolist()]
        return replace(
            self,
            names=self.names[indices],
            image_ids=self.image_ids[indices],
            sizes=self.sizes[indices],
            starts=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            objects=self.objects[np.concatenate(rows) if rows else np.zeros(0, np.int64)],
        )

    def truth(self) -> dict[str, Any]:
        """The split in COCO's format, with boxes in pixels of the original images."""
        owners = np.repeat(self.image_ids, np.diff(self.starts)).tolist()
        found, ids = self.objects, np.array(self.categories.ids, np.int64)
        rows = zip(
            owners, ids[found.labels].tolist(), found.boxes.tolist(), found.areas.tolist(), found.ignored.tolist(),
            strict=True,
        )  # fmt: skip
        return {
            "images": [
                {"id": number, "file_name": os.fsdecode(name), "height": height, "width": width}
                for number, name, (height, width) in zip(
                    self.image_ids.tolist(), self.names, self.sizes.tolist(), strict=True
                )
            ],
            # Numbered from 1: pycocotools marks a detection without a match by 0.
            "annotations": [
                {
                    "id": row,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(ignored),
                }
                for row, (image, category, box, area, ignored) in enumerate(rows, start=1)
            ],
            "categories": [
                {"id": number, "name": name}
                for number, name in zip(self.categories.ids, self.categories.names, strict=True)
            ],
        }


def gathered(
    folder: Path,
    names: Sequence[str],
    image_ids: Sequence[int] | Ints,
    sizes: Sequence[tuple[int, int]] | Ints,
    owners: Ints,
    objects: Objects,
    categories: Categories,
) -> Annotated:
    """Sort the objects by image and leave out boxes without width or height, and those outside of their image.

    Args:
        owners: (M,) the position in `names` of the image that each object is in.
        Others: see `Annotated`.
    """
    shapes = np.asarray(sizes, np.int64).reshape(-1, 2)
    starts, sides = np.split(objects.boxes, 2, axis=1)
    proper = (sides > 0).all(1)
    inside = ((starts < shapes[owners, ::-1]) & (starts + sides > 0)).all(1)  # in part
    kept = np.flatnonzero(proper & inside)
    kept = kept[np.argsort(owners[kept], kind="stable")]
    counts = np.bincount(owners[kept], minlength=len(names))
    return Annotated(
        folder,
        np.array([os.fsencode(name) for name in names], np.bytes_),
        np.asarray(image_ids, np.int64),
        shapes,
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        objects[kept],
        categories,
        int((~proper).sum()),
        tuple(names[position] for position in owners[proper & ~inside]),
    )
