"""PASCAL VOC's boxes: a list of names, an XML for each name in `Annotations/`, its image in `JPEGImages/`.

Any classes may stand there, so the layout serves other data sets as well.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from data.boxes import Annotated, Categories, Objects, annotated
from data.decode import Decode, with_pillow
from data.folders import ENDINGS, hint_on_name, read_names

LAYOUT = "needs ImageSets/Main/<list>.txt, Annotations/<name>.xml and JPEGImages/<name>.jpg"


@dataclass(frozen=True)
class Scene:
    """One XML: height and width; class, box (left, top, width, height) and difficulty of each object."""

    size: tuple[int, int]
    classes: tuple[str, ...]
    boxes: tuple[tuple[float, float, float, float], ...]
    difficult: tuple[bool, ...]


class _WithoutDeclarations(ElementTree.TreeBuilder):
    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Entities are declared here: a file of a hundred bytes may stand for gigabytes, or for another file."""
        raise ValueError("it declares a document type, which no annotation needs")


def read_list(root: Path, name: str) -> list[str]:
    """The image names of a list, one a line.

    Raises:
        FileNotFoundError: if there is no such list; names those that there are.
        ValueError: if the list is empty, a line is not the name of a file, or a name is there twice.
    """
    return read_names("voc_detection", root / "ImageSets" / "Main" / f"{name}.txt", layout=LAYOUT)


def read_scene(path: Path) -> Scene:
    """Parse one annotation. Corners are 1-based and inclusive there: pixel columns xmin - 1 up to xmax, exclusive.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not an annotation; names the file.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"voc_detection: no file {path}, which a list names") from error
    try:
        root = ElementTree.fromstring(content, ElementTree.XMLParser(target=_WithoutDeclarations()))
        objects = root.findall("object")
        corners = [[_number(entry, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")] for entry in objects]
        height, width = (int(_number(root, f"size/{side}")) for side in ("height", "width"))
        if min(height, width) < 1:
            raise ValueError(f"its <size> is {width}x{height} pixels")
        return Scene(
            (height, width),
            tuple(_text(entry, "name") for entry in objects),
            tuple((left - 1, top - 1, right - left + 1, bottom - top + 1) for left, top, right, bottom in corners),
            tuple(entry.findtext("difficult", "0").strip() not in ("0", "") for entry in objects),
        )
    except (ValueError, LookupError, ElementTree.ParseError) as error:  # LookupError: an unknown encoding
        raise ValueError(f"{path}: not an annotation of VOC ({error})") from error


def _text(entry: ElementTree.Element, where: str) -> str:
    text = (entry.findtext(where) or "").strip()
    if not text:
        raise ValueError(f"an <{entry.tag}> lacks <{where}>")
    return text


def _number(entry: ElementTree.Element, where: str) -> float:
    text = _text(entry, where)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"<{where}> is {text!r}, not a number")
    return number


def read_voc(
    root: Path, names: Sequence[str], classes: Sequence[str] | None, decode: Decode = with_pillow
) -> Annotated:
    """The images and boxes of the named images.

    Args:
        root: holds `Annotations/` and `JPEGImages/`.
        names: images, without their endings.
        classes: names in the order of the labels; None: all that occur, sorted.
        decode: image file to pixels.

    Raises:
        FileNotFoundError: if an image or annotation is not there.
        ValueError: if an annotation is damaged or names a class that is not among `classes`, or if there are two images
            of one name; names the file.
    """
    # Every image is there before the first annotation is read.
    files = _images(root / "JPEGImages", set(names))
    missing = next((name for name in names if name not in files), None)
    if missing is not None:
        path = root / "JPEGImages" / f"{missing}.jpg"
        raise FileNotFoundError(f"voc_detection: no image {path}, which a list names{hint_on_name(missing)}")
    # The classes are those of the training list, in the order of the alphabet, or what the configuration says.
    scenes = [read_scene(root / "Annotations" / f"{name}.xml") for name in names]
    if classes is None:
        classes = sorted({label for scene in scenes for label in scene.classes})
    place = {label: position for position, label in enumerate(classes)}
    for name, scene in zip(names, scenes, strict=True):
        unknown = next((label for label in scene.classes if label not in place), None)
        if unknown is not None:
            path = root / "Annotations" / f"{name}.xml"
            raise ValueError(f"{path}: the class {unknown!r} is not one of {', '.join(classes) or 'none'}")
    # One row for each object, image by image.
    boxes = np.array([box for scene in scenes for box in scene.boxes], np.float64).reshape(-1, 4)
    objects = Objects(
        boxes,
        np.array([place[label] for scene in scenes for label in scene.classes], np.int64),
        boxes[:, 2] * boxes[:, 3],
        np.array([hard for scene in scenes for hard in scene.difficult], bool),
    )
    return annotated(
        root / "JPEGImages",
        [files[name] for name in names],
        np.arange(len(names)),
        [scene.size for scene in scenes],
        np.repeat(np.arange(len(names)), [len(scene.boxes) for scene in scenes]),
        objects,
        Categories(tuple(range(1, len(classes) + 1)), tuple(classes)),
        decode,
    )


def _images(folder: Path, names: set[str]) -> dict[str, str]:
    """The files of a folder by their name without ending; ValueError for two files of one of the `names`."""
    try:
        entries = sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(ENDINGS))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"voc_detection: no folder {folder}; data.root {LAYOUT}") from error
    except OSError as error:
        raise ValueError(f"voc_detection: cannot read {folder} ({error.strerror})") from error
    found: dict[str, str] = {}
    for entry in entries:
        stem = Path(entry).stem
        if stem in found and stem in names:
            raise ValueError(f"voc_detection: {folder / found[stem]} and {folder / entry} have the same name")
        found[stem] = entry
    return found
