"""COCO's detection files: `annotations/instances_<split>.json` beside the images in `<split>/`.

The JSON is read once, into the arrays of `data.boxes`. Category ids have gaps (80 ids in 1 ... 90): labels number
them in ascending order, and the evaluation maps them back.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.boxes import Annotated, Categories, Objects, annotated
from data.decode import Decode, with_pillow

LAYOUT = "needs annotations/instances_<split>.json and a folder <split> of images for each split"


def read_coco(root: Path, split: str, decode: Decode = with_pillow) -> Annotated:
    """The images and boxes of one split.

    Args:
        root: holds `annotations/` and the folders of images.
        split: such as `train2017`.
        decode: image file to pixels.

    Raises:
        FileNotFoundError: if a file or folder is not there, images that the JSON lists included.
        ValueError: if the JSON is damaged or contradicts itself; names the file and the entry.
    """
    path, folder = root / "annotations" / f"instances_{split}.json", root / split
    if not path.is_file():
        raise FileNotFoundError(f"coco: no file {path}; data.root {LAYOUT}")
    content = _parsed(path)
    try:
        return _arrays(path, folder, content, decode)
    except (KeyError, TypeError) as error:
        what = f"an entry lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: not an instances file of COCO ({what})") from error


def _parsed(path: Path) -> dict[str, Any]:
    def without_outlines(entry: dict[str, Any]) -> dict[str, Any]:
        entry.pop("segmentation", None)  # nine tenths of the file, and nothing here needs them
        return entry

    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file, object_hook=without_outlines)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file, or a damaged one ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not an instances file of COCO (a {type(content).__name__}, not an object)")
    return content


def _arrays(path: Path, folder: Path, content: dict[str, Any], decode: Decode) -> Annotated:
    images, annotations, listed = content["images"], content["annotations"], content["categories"]
    if not images or not listed:
        raise ValueError(f"{path}: lists {len(images)} images and {len(listed)} categories")

    def column(what: str, entries: list[dict[str, Any]], key: str, convert: Callable[[Any], Any]) -> list[Any]:
        """One value of each entry; the one rule for all of them names an entry that has no such value."""
        values = []
        for entry in entries:
            try:
                values.append(convert(entry[key]))
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                kind, given = convert.__name__.replace("_", " "), entry.get(key)
                raise ValueError(f"{path}: {key} of {what} {entry.get('id')} must be {kind}, not {given!r}") from error
        return values

    # The columns of the three lists. Labels number the categories in the order of their ids, which have gaps.
    categories = sorted(
        zip(column("category", listed, "id", a_whole_number), column("category", listed, "name", str), strict=True)
    )
    category_ids, names = zip(*categories, strict=True)
    image_ids = column("image", images, "id", a_whole_number)
    files = column("image", images, "file_name", str)
    sizes = list(
        zip(
            column("image", images, "height", a_positive_number),
            column("image", images, "width", a_positive_number),
            strict=True,
        )
    )
    places: dict[str, Sequence[int]] = {"image": image_ids, "category": category_ids}
    for what, ids in places.items():
        if len(set(ids)) < len(ids):
            raise ValueError(f"{path}: {what} id {Counter(ids).most_common(1)[0][0]} occurs twice")
    _present(path, folder, files)

    # Each annotation by the positions of its image and its category.
    found = {}
    for what, ids in places.items():
        key, place = f"{what}_id", {number: position for position, number in enumerate(ids)}
        for entry in annotations:
            if entry[key] not in place:
                raise ValueError(
                    f"{path}: annotation {entry.get('id')} has the {key} {entry[key]}, which is not listed"
                )
        found[key] = np.array([place[entry[key]] for entry in annotations], np.int64)
    boxes = np.array(column("annotation", annotations, "bbox", four_finite_numbers), np.float64).reshape(-1, 4)
    # An object without an area of its own has that of its box.
    sides = [(float(width * height), entry) for entry, (_, _, width, height) in zip(annotations, boxes, strict=True)]
    given = [entry if entry.get("area") is not None else {**entry, "area": area} for area, entry in sides]
    objects = Objects(
        boxes,
        found["category_id"],
        np.array(column("annotation", given, "area", a_finite_number), np.float64),
        np.array([bool(entry.get("iscrowd", 0)) for entry in annotations], bool),
    )
    known = Categories(category_ids, names)
    return annotated(folder, files, image_ids, sizes, found["image_id"], objects, known, decode)


def a_whole_number(value: Any) -> int:
    """An id, of 64 bits."""
    return int(np.int64(value))


def a_positive_number(value: Any) -> int:
    """The height or width of an image: a whole number above 0."""
    if np.int64(value) < 1:
        raise ValueError
    return int(value)


def a_finite_number(value: Any) -> float:
    """An area, or a side of a box."""
    if not math.isfinite(value):
        raise ValueError
    return float(value)


def four_finite_numbers(value: Any) -> list[float]:
    """A box: left, top, width and height."""
    left, top, width, height = map(a_finite_number, value)
    return [left, top, width, height]


def _present(path: Path, folder: Path, names: list[str]) -> None:
    """List the folder once: asking for each of 118,287 files would take minutes on a network drive."""
    try:
        found = {entry.name for entry in os.scandir(folder)}
    except FileNotFoundError as error:
        raise FileNotFoundError(f"coco: no folder {folder}; data.root {LAYOUT}") from error
    except OSError as error:
        raise ValueError(f"coco: cannot read {folder} ({error.strerror})") from error
    outside = next((name for name in names if os.path.basename(name) != name), None)
    if outside is not None:
        raise ValueError(f"{path}: the file name {outside!r} is not one in {folder}")
    missing = [name for name in names if name not in found]
    if missing:
        more = f" and {len(missing) - 1:,} more images" if len(missing) > 1 else ""
        raise FileNotFoundError(f"coco: no file {folder / missing[0]}{more}, listed by {path}")
