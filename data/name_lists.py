"""Text files that list names, one a line."""

from __future__ import annotations

import os
from pathlib import Path


def read_names(data: str, path: Path, one_word: bool = True, layout: str = "") -> list[str]:
    """The names in a list; empty lines are left out.

    Args:
        data: name of the data set, for messages.
        path: of the list.
        one_word: a line is the name of a file, without spaces and folders.
        layout: said where there is no list at all.

    Raises:
        FileNotFoundError: if there is no such list; names those beside it.
        ValueError: if it lists nothing, a name twice, or with `one_word` anything but names; names the line.
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
        if one_word and (len(line.split()) > 1 or os.path.basename(line) != line):
            raise ValueError(f"{path}: line {number} is not the name of an image: {line}")
        names += [line] if line else []
    if not names:
        raise ValueError(f"{path}: lists no {'image' if one_word else 'name'}")
    seen: set[str] = set()
    for known in names:
        if known in seen:
            raise ValueError(f"{path}: lists {known} twice")
        seen.add(known)
    return names
