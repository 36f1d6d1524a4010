"""PASCAL VOC's boxes: a list of names, an XML for each name in `Annotations/`, its image in `JPEGImages/`.

Any classes may stand there, so the layout serves other data sets as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from data.boxes import Annotated, Categories, Objects, annotated
from data.decode import Decode, with_pillow
from data.folders import files_in, hint_on_name, read_names
from data.values import a_finite_number, a_positive_whole_number, a_truth_value

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
        hint = hint_on_name("", (file.name for file in path.parent.glob("*.xml")))
        raise FileNotFoundError(f"voc_detection: no file {path}, which a list names{hint}") from error
    try:
        root = ElementTree.fromstring(content, ElementTree.XMLParser(target=_WithoutDeclarations()))
        objects = root.findall("object")
        corners = [
            [_value(entry, f"bndbox/{side}", a_finite_number) for side in ("xmin", "ymin", "xmax", "ymax")]
            for entry in objects
        ]
        height, width = (_value(root, f"size/{side}", a_positive_whole_number) for side in ("height", "width"))
        return Scene(
            (height, width),
            tuple(_text(entry, "name") for entry in objects),
            tuple((left - 1, top - 1, right - left + 1, bottom - top + 1) for left, top, right, bottom in corners),
            tuple(
                entry.find("difficult") is not None and _value(entry, "difficult", a_truth_value) for entry in objects
            ),
        )
    except (ValueError, LookupError, ElementTree.ParseError) as error:  # LookupError: an unknown encoding
        raise ValueError(f"{path}: not an annotation of VOC ({error})") from error


def _text(entry: ElementTree.Element, where: str) -> str:
    text = (entry.findtext(where) or "").strip()
    if not text:
        raise ValueError(f"an <{entry.tag}> lacks <{where}>")
    return text


def _value(entry: ElementTree.Element, where: str, convert: Callable[[str], Any]) -> Any:
    text = (entry.findtext(where) or "").strip() if convert is a_truth_value else _text(entry, where)
    try:
        return convert(text)
    except ValueError as error:
        raise ValueError(f"<{where}> is {text!r}, not {convert.__name__.replace('_', ' ')}") from error


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
    files, unused = _images(root / "JPEGImages", set(names))
    missing = [name for name in names if name not in files]
    if missing:
        path = root / "JPEGImages" / f"{missing[0]}.jpg"
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        others = (file for stem, file in files.items() if stem not in names)
        hint = hint_on_name(missing[0], [*(file for file in unused if Path(file).stem == missing[0])] or others)
        raise FileNotFoundError(f"voc_detection: no image {path}{more}, which a list names{hint}")
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
        [str(root / "JPEGImages" / file) for file in unused],
    )


def _images(folder: Path, names: set[str]) -> tuple[dict[str, str], list[str]]:
    """The images of a folder by their name without ending, and its files of other formats.

    Raises:
        ValueError: for two images of one of the `names`.
    """
    entries, others, _ = files_in("voc_detection", folder, layout=LAYOUT)
    found: dict[str, str] = {}
    for entry in entries:
        stem = Path(entry).stem
        if stem in found and stem in names:
            raise ValueError(f"voc_detection: {folder / found[stem]} and {folder / entry} have the same name")
        found[stem] = entry
    return found, others
