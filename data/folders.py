"""Class folders: `root/train/<class>/<image>` and `root/val/<class>/<image>`, one class map for both."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unicodedata import category

import numpy as np

from data.decode import ENDINGS, Decode
from data.downloads import default_root, fetch
from data.samples import Samples, image_files

SYSTEM_FILES = ("thumbs.db", "desktop.ini")  # which programs leave in folders of images
VAL_FOLDERS = ("val", "valid", "validation")
FLAGS = ("-1", "0", "1")  # behind the names in VOC's lists of one class: absent, difficult, present
LAYOUT = "needs train/<class>/*.JPEG and val/<class>/*.JPEG"
# Images to train and to evaluate, classes.
OFFICIAL = {"imagenet": (1_281_167, 50_000, 1000), "imagenette": (9_469, 3_925, 10)}


@dataclass(frozen=True)
class Folders:
    """A data set of class folders: its two official parts and their common class map.

    Prepared ones say in which `version` their pixels are, and, if they are no image files, how to `decode` them.
    """

    train: Samples
    test: Samples
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    version: str = ""
    decode: Decode | None = None


def open_folders(name: str, root: Path | None, download: bool) -> Folders:
    """Find and list `imagenet` or `imagenette`.

    Raises:
        FileNotFoundError: if there is no such folder; says what to do.
        ValueError: if train and val do not hold the same classes, or a class holds no image; names the folders.
    """
    root = _imagenette(root, download) if name == "imagenette" else _imagenet(root)
    classes = class_names(name, root / "train")
    require_same(name, classes, root, "val")
    train, test = (list_files(name, root / split, classes) for split in ("train", "val"))
    # Parts of the official set are fine for trials; the record says that they are parts.
    found = (len(train), len(test), len(classes))
    notes: tuple[str, ...] = ()
    if found != OFFICIAL[name]:
        notes = (
            "{}: {:,} + {:,} images in {:,} classes found, the official set has {:,} + {:,} in {:,}".format(
                name, *found, *OFFICIAL[name]
            ),
        )
    if (root / "test").is_dir():
        notes += (
            f"{name}: {root / 'test'} is not used, val/ is the official evaluation set; data=folder takes all three",
        )
    if root.name == "imagenette2-320":
        notes += ("imagenette: the version whose short sides are 320 px",)
    return Folders(train, test, tuple(classes), notes)


def _imagenet(root: Path | None) -> Path:
    if root is None:
        raise FileNotFoundError(f"imagenet cannot be downloaded: name its folder by data.root; it {LAYOUT}")
    return root


def _imagenette(root: Path | None, download: bool) -> Path:
    """`root` itself, or one of the folders that the archives unpack to, or a new download of the 320 px version."""
    place = root or default_root()
    for folder in (place, place / "imagenette2-320", place / "imagenette2"):
        if (folder / "train").is_dir() or (folder / "val").is_dir():
            return folder
    url = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz"
    otherwise = f"fetch {url} on another machine, unpack it, and name its folder by data.root"
    if not download:
        raise FileNotFoundError(f"imagenette: no class folders in {place}, and download is off; {otherwise}")
    from torchvision.datasets import Imagenette

    unpacked = "imagenette2-320"
    fetch("imagenette", url, place, unpacked, lambda aside: Imagenette(aside, size="320px", download=True), otherwise)
    return place / unpacked


def class_names(name: str, folder: Path, layout: str = LAYOUT) -> list[str]:
    """The class folders of a split, in the order of their labels.

    Raises:
        FileNotFoundError: if there are none; says which `layout` is expected.
        ValueError: for a folder that cannot be read or holds hidden folders.
    """
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name}: no folder {folder}; data.root {layout}") from error
    except OSError as error:
        raise ValueError(f"{name}: cannot read {folder} ({error.strerror})") from error
    # Each folder is a class, so one that a program left behind would be a class as well.
    classes = sorted(entry.name for entry in entries if entry.is_dir())
    hidden = [known for known in classes if known.startswith(".")]
    foreign = [known for known in classes if any(category(letter) in ("Cs", "Cc") for letter in known)]
    if foreign:
        raise ValueError(f"{name}: {folder} holds class folders whose names are no text, {few(foreign)!a}; rename them")
    if hidden:
        raise ValueError(
            f"{name}: {folder} holds hidden folders, which are no classes: {few(hidden)}; move them out of it"
        )
    if not classes:
        raise FileNotFoundError(f"{name}: {folder} holds no class folders; data.root {layout}")
    return classes


def require_same(name: str, train: Sequence[str], root: Path, split: str, layout: str = LAYOUT) -> None:
    """Raise ValueError unless a split holds the classes of train.

    Numbering each split by itself would shift every label behind a missing folder.
    """
    other = class_names(name, root / split, layout)
    if other == ["images"] and "images" not in train:  # as Tiny ImageNet unpacks
        lists = few(sorted(file.name for file in (root / split).glob("*.txt"))) or "the list of its classes"
        raise ValueError(
            f"{name}: the images of {root / split} lie in images/, without their classes: move each into "
            f"{split}/CLASS/, as {lists} says, or move {split}/ out of {root}"
        )
    missing, extra = sorted(set(train) - set(other)), sorted(set(other) - set(train))
    problems = [f"{root / split} lacks {few(missing)}"] if missing else []
    problems += [f"{root / 'train'} lacks {few(extra)}"] if extra else []
    if problems:
        raise ValueError(f"{name}: train and {split} must hold the same class folders, but {' and '.join(problems)}")


def list_files(name: str, folder: Path, classes: Sequence[str]) -> Samples:
    """The image files of a split.

    Raises:
        ValueError: for a class folder without an image, with folders beside them, or that cannot be read; names it.
    """
    names: list[bytes] = []
    counts, unused = [], list[str]()
    for known in classes:
        place = known
        images, others, nested = files_in(name, folder / place)
        if not images and nested == ["images"]:  # as Tiny ImageNet unpacks
            place, boxes = f"{known}/images", others
            images, others, nested = files_in(name, folder / place)
            others = [*others, *(f"../{file}" for file in boxes)]
        if nested:
            raise ValueError(
                f"{name}: the class folder {folder / place} holds folders ({few(nested)}): move the images in them up "
                "into it, or the folders out of the data set"
            )
        if not images:
            found = f", only {by_ending(others)}" if others else ""
            raise ValueError(f"{name}: the class folder {folder / place} holds no image ({', '.join(ENDINGS)}){found}")
        names.extend(os.fsencode(f"{place}/{image}") for image in images)
        counts.append(len(images))
        unused += [os.path.normpath(folder / place / file) for file in others]
    return image_files(folder, names, np.repeat(np.arange(len(classes)), counts), unused)


def files_in(
    name: str, folder: Path, endings: Sequence[str] = ENDINGS, layout: str = ""
) -> tuple[list[str], list[str], list[str]]:
    """The images of a folder, its files of other formats, and the folders in it, each sorted.

    Hidden files are left out: `._x.JPEG` is what some systems put beside `x.JPEG`. A link to nowhere is an image that
    cannot be read.

    Args:
        name: data set, for messages.
        endings: those of the images.
        layout: said where there is no such folder.

    Raises:
        FileNotFoundError: if there is no such folder.
        ValueError: for one that cannot be read.
    """
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(f"{name}: no folder {folder}{layout and f'; data.root {layout}'}") from error
    except OSError as error:
        raise ValueError(f"{name}: cannot read {folder} ({error.strerror})") from error
    folders = [entry.name for entry in entries if entry.is_dir()]
    seen = [e for e in entries if not e.name.startswith(".") and not e.is_dir() and e.name.lower() not in SYSTEM_FILES]
    files = [entry.name for entry in seen]
    # A pipe or a device is none, whatever its name: reading one would wait for ever.
    readable = [entry.name for entry in seen if entry.is_file() or not os.path.exists(entry)]
    images = [file for file in readable if file.lower().endswith(tuple(endings))]
    return images, sorted(set(files) - set(images)), folders


def by_ending(files: Iterable[str]) -> str:
    """The endings of these files with their numbers, the most frequent first: ".gif 12, .txt 3"."""
    counts = Counter(os.path.splitext(file)[1].lower() or "no ending" for file in files)
    return few([f"{ending} {count:,}" for ending, count in counts.most_common()])


def split_folders(name: str, root: Path) -> dict[str, str]:
    """The folders train, val and test of a root by their split, as far as there are any; val may be called valid.

    Raises:
        ValueError: for several folders that may be val.
    """
    found = [folder for folder in VAL_FOLDERS if (root / folder).is_dir()]
    if len(found) > 1:
        raise ValueError(f"{name}: {root} holds {' and '.join(found)}, each of which may be val: keep one of them")
    named = {"train": "train", "val": found[0] if found else "val", "test": "test"}
    return {split: folder for split, folder in named.items() if (root / folder).is_dir()}


def size_on_disk(path: str) -> int:
    """Bytes of a file, a cheap sign that it was replaced by another of its name; -1 if it cannot be read."""
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def image_folders(root: Path) -> list[str]:
    """The folders within `root` that hold an image."""
    folders = [entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(folder for folder in folders if files_in("", root / folder)[0])


def few(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def read_names(data: str, path: Path, of_files: bool = True, layout: str = "") -> list[str]:
    """The names in a list; empty lines are left out.

    Args:
        data: name of the data set, for messages.
        path: the list.
        of_files: a line is the name of a file, without folders; behind each, VOC's lists of one class have a flag.
        layout: said where there is no list at all.

    Raises:
        FileNotFoundError: if there is no such list; names those beside it.
        ValueError: if it lists nothing, a name twice, or with `of_files` a folder.
    """
    # A list that is not there is often one of another name.
    if not path.is_file():
        beside = sorted(file.stem for file in path.parent.glob(f"*{path.suffix}"))[:8]
        known = f"; lists there: {', '.join(beside)}" if beside else layout and f"; data.root {layout}"
        raise FileNotFoundError(f"{data}: no file {path}{known}")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error})") from error
    # A name per line, of a file without its folder; nothing is listed twice.
    for number, line in enumerate(lines, start=1):
        if of_files and os.path.basename(line) != line:
            raise ValueError(f"{path}: line {number} is not the name of an image: {line}")
    names = [line for line in lines if line]
    # Flags, and not the last words of names such as "photo 1" and "photo 0", which would be one name without them.
    flagged = [line.split() for line in names]
    if of_files and all(len(words) == 2 and words[1] in FLAGS for words in flagged):
        names = [words[0] for words in flagged] if len({words[0] for words in flagged}) == len(names) else names
    if not names:
        raise ValueError(f"{path}: lists no {'image' if of_files else 'name'}")
    seen: set[str] = set()
    for known in names:
        if known in seen:
            raise ValueError(f"{path}: lists {known} twice")
        seen.add(known)
    return names


def hint_on_name(name: str, there: Iterable[str] = ()) -> str:
    """For the message about a name that has no file: that it was listed with its ending, and a file that is there."""
    if name.lower().endswith(ENDINGS):
        return "; list names without their endings"
    example = min(there, default="")
    return f"; a file that is there: {example}" if example else ""
