"""Text files that list names, one a line."""

from __future__ import annotations

import os
from pathlib import Path

from data.folders import ENDINGS

FLAGS = ("-1", "0", "1")  # behind the names in VOC's lists of one class: absent, difficult, present


def read_names(data: str, path: Path, of_files: bool = True, layout: str = "") -> list[str]:
    """The names in a list; empty lines are left out.

    Args:
        data: name of the data set, for messages.
        path: of the list.
        of_files: a line is the name of a file, without folders.
        layout: said where there is no list at all.

    Raises:
        FileNotFoundError: if there is no such list; names those beside it.
        ValueError: if it lists nothing, a name twice, or with `of_files` a folder.
    """
    if not path.is_file():
        beside = sorted(file.stem for file in path.parent.glob(f"*{path.suffix}"))[:8]
        known = f"; lists there: {', '.join(beside)}" if beside else layout and f"; data.root {layout}"
        raise FileNotFoundError(f"{data}: no file {path}{known}")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file ({error})") from error
    names: list[str] = []
    for number, line in enumerate(lines, start=1):
        if of_files and os.path.basename(line) != line:
            raise ValueError(f"{path}: line {number} is not the name of an image: {line}")
        names += [line] if line else []
    if not names:
        raise ValueError(f"{path}: lists no {'image' if of_files else 'name'}")
    seen: set[str] = set()
    for known in names:
        if known in seen:
            raise ValueError(f"{path}: lists {known} twice")
        seen.add(known)
    return names


def hint_on_name(name: str) -> str:
    """For the message about a name that has no file: whether it was listed with its ending, or with a flag of VOC."""
    if name.lower().endswith(ENDINGS):
        return "; list names without their endings"
    words = name.split()
    return "; list names without VOC's flags" if len(words) > 1 and words[-1] in FLAGS else ""
