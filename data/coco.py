"""COCO's detection files: `annotations/instances_<split>.json` beside the images in `<split>/`.

The JSON is read once, into the arrays of `data.boxes`. Category ids have gaps (80 ids in 1 ... 90): labels number
them in ascending order, and the evaluation maps them back.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data.boxes import Annotated, Categories, Objects, annotated
from data.decode import ENDINGS, Decode, with_pillow
from data.folders import files_in, hint_on_name
from data.values import a_finite_number, a_positive_whole_number, a_truth_value, a_whole_number, four_finite_numbers

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
        return _arrays(path, root, folder, content, decode)
    except (KeyError, TypeError, AttributeError) as error:  # of an entry that is no object, the last
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


def _arrays(path: Path, root: Path, folder: Path, content: dict[str, Any], decode: Decode) -> Annotated:
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
            column("image", images, "height", a_positive_whole_number),
            column("image", images, "width", a_positive_whole_number),
            strict=True,
        )
    )
    places: dict[str, Sequence[int]] = {"image": image_ids, "category": category_ids}
    for what, ids in places.items():
        if len(set(ids)) < len(ids):
            raise ValueError(f"{path}: {what} id {Counter(ids).most_common(1)[0][0]} occurs twice")
        far = max(ids, key=abs)
        if abs(far) > 2**53:  # the evaluation computes in float64, which would round it
            raise ValueError(f"{path}: {what} id {far} lies beyond 2**53 = {2**53}: number them anew, such as from 1")
    files, unused, unlisted = _present(path, root, folder, files)

    # Each annotation by the positions of its image and its category.
    found = {}
    for what, ids in places.items():
        key, place = f"{what}_id", {number: position for position, number in enumerate(ids)}
        numbers = column("annotation", annotations, key, a_whole_number)
        orphan = next((i for i, number in enumerate(numbers) if number not in place), None)
        if orphan is not None:
            raise ValueError(
                f"{path}: annotation {annotations[orphan].get('id')} has the {key} {numbers[orphan]}, which is not "
                f"listed; one that is: {ids[0]}"
            )
        found[key] = np.array([place[number] for number in numbers], np.int64)
    boxes = np.array(column("annotation", annotations, "bbox", four_finite_numbers), np.float64).reshape(-1, 4)
    # An object without an area of its own has that of its box.
    areas = np.array(column("annotation", [{"area": 0, **entry} for entry in annotations], "area", an_area), np.float64)
    objects = Objects(
        boxes,
        found["category_id"],
        np.where(areas > 0, areas, boxes[:, 2] * boxes[:, 3]),
        np.array(column("annotation", [{"iscrowd": 0, **e} for e in annotations], "iscrowd", a_truth_value), bool),
    )
    known = Categories(category_ids, names)
    own = annotated(folder, files, image_ids, sizes, found["image_id"], objects, known, decode, unused)
    return replace(own, unlisted=tuple(unlisted))


def an_area(value: Any) -> float:
    """A finite number; 0 where there is none."""
    return 0.0 if value is None else a_finite_number(value)


def _present(path: Path, root: Path, folder: Path, names: list[str]) -> tuple[list[str], list[str], list[str]]:
    """The listed images by their place in the folder of the split, or relative to it.

    Each folder is listed once: asking for each of 118,287 files would take minutes on a network drive.

    Args:
        names: `file_name` of each, within the folder of the split or within `root`.

    Returns:
        the names relative to `folder`; the files beside the images that are of other formats; the images in `folder`
        that are not listed.
    """
    own, others, _ = files_in("coco", folder, ENDINGS, LAYOUT)
    there: dict[str, set[str]] = {"": {*own, *others}}  # the folders, relative to that of the split
    places, missing = list[str](), list[str]()
    for name in names:
        # Names of other systems have backslashes.
        relative = PurePosixPath(name if name in there[""] else name.replace("\\", "/"))
        if not relative.name or relative.is_absolute() or ".." in relative.parts or ":" in relative.parts[0]:
            raise ValueError(f"{path}: the file name {name!r} does not lie below {folder} or {root}")
        below = str(relative.parent) if len(relative.parts) > 1 else ""
        for place in (below, os.path.relpath(root / below, folder)) if below else ("",):
            if place not in there:
                there[place] = set(os.listdir(folder / place)) if (folder / place).is_dir() else set()
            if relative.name in there[place]:
                places.append(os.path.normpath(os.path.join(place, relative.name)))
                break
        else:
            missing.append(name)
    if missing:
        more = f" and {len(missing) - 1:,} more images" if len(missing) > 1 else ""
        hint = hint_on_name("", (str(folder / name) for name in set(own) - set(places)))
        raise FileNotFoundError(f"coco: no file {folder / missing[0]}{more}, listed by {path}{hint}")
    return places, [str(folder / name) for name in others], sorted(set(own) - set(places))
