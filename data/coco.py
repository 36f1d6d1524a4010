"""COCO's detection files: `annotations/instances_<split>.json` beside the images in `<split>/`.

The JSON is read once, into the arrays of `data.annotated`. Category ids have gaps (80 ids in 1 ... 90): labels number
them in ascending order, and the evaluation maps them back.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from data.annotated import Annotated, Categories, Objects, gathered

LAYOUT = "needs annotations/instances_<split>.json and a folder <split> of images for each split"


def read_coco(root: Path, split: str) -> Annotated:
    """The images and boxes of one split.

    Args:
        root: holds `annotations/` and the folders of images.
        split: such as `train2017`.

    Raises:
        FileNotFoundError: if a file or folder is not there, images that the JSON lists included.
        ValueError: if the JSON is damaged or contradicts itself; names the file and the entry.
    """
    path, folder = root / "annotations" / f"instances_{split}.json", root / split
    if not path.is_file():
        raise FileNotFoundError(f"coco: no file {path}; data.root {LAYOUT}")
    content = _parsed(path)
    try:
        return _arrays(path, folder, content)
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


def _arrays(path: Path, folder: Path, content: dict[str, Any]) -> Annotated:
    categories = sorted((_whole(path, "category", entry, "id"), str(entry["name"])) for entry in content["categories"])
    images, annotations = content["images"], content["annotations"]
    if not images or not categories:
        raise ValueError(f"{path}: lists {len(images)} images and {len(categories)} categories")
    known = Categories(tuple(number for number, _ in categories), tuple(name for _, name in categories))
    image_ids = [_whole(path, "image", image, "id") for image in images]
    _unique(path, "image", image_ids)
    _unique(path, "category", list(known.ids))
    _present(path, folder, [str(image["file_name"]) for image in images])
    owners = _positions(path, "image_id", image_ids, annotations)
    boxes = np.array([box_of(path, entry) for entry in annotations], np.float64).reshape(-1, 4)
    objects = Objects(
        boxes,
        _positions(path, "category_id", list(known.ids), annotations),
        np.array([area_of(path, entry, box) for entry, box in zip(annotations, boxes, strict=True)], float),
        np.array([bool(entry.get("iscrowd", 0)) for entry in annotations], bool),
    )
    names = [str(image["file_name"]) for image in images]
    sizes = [(_whole(path, "image", image, "height"), _whole(path, "image", image, "width")) for image in images]
    for name, (height, width) in zip(names, sizes, strict=True):
        if min(height, width) < 1:
            raise ValueError(f"{path}: says that {name} has {width}x{height} pixels")
    return gathered(folder, names, image_ids, sizes, owners, objects, known)


def box_of(path: Path, entry: dict[str, Any]) -> list[float]:
    """Left, top, width, height of an annotation.

    Raises:
        ValueError: if these are not four finite numbers.
    """
    box = entry["bbox"]
    if len(box) != 4 or not all(isinstance(side, int | float) and abs(side) < float("inf") for side in box):
        raise ValueError(f"{path}: the bbox of annotation {entry.get('id')} is not four numbers: {box}")
    return [float(side) for side in box]


def area_of(path: Path, entry: dict[str, Any], box: np.ndarray) -> float:
    """Pixels of an object; those of its box where the file does not say.

    Raises:
        ValueError: if the area is not a finite number.
    """
    area = entry.get("area")
    if area is None:
        return float(box[2] * box[3])
    if not isinstance(area, int | float) or not abs(area) < float("inf"):
        raise ValueError(f"{path}: the area of annotation {entry.get('id')} is not a number: {area}")
    return float(area)


def _whole(path: Path, what: str, entry: dict[str, Any], key: str) -> int:
    try:
        return int(np.int64(entry[key]))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {what} {key} is not a whole number of 64 bits: {entry[key]!r}") from error


def _unique(path: Path, what: str, ids: list[int]) -> None:
    if len(set(ids)) < len(ids):
        numbers, counts = np.unique(ids, return_counts=True)
        raise ValueError(f"{path}: {what} id {numbers[counts > 1][0]} occurs twice")


def _present(path: Path, folder: Path, names: list[str]) -> None:
    """One listing of the folder: asking for each of 118,287 files would take minutes on a network drive."""
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


def _positions(path: Path, key: str, ids: list[int], annotations: list[dict[str, Any]]) -> np.ndarray:
    place = {number: position for position, number in enumerate(ids)}
    found = np.empty(len(annotations), np.int64)
    for row, entry in enumerate(annotations):
        position = place.get(entry[key])
        if position is None:
            raise ValueError(f"{path}: annotation {entry.get('id')} has the {key} {entry[key]}, which is not listed")
        found[row] = position
    return found
