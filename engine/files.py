"""Files that are whole or not there: written aside, flushed to the disk, renamed. Imports no torch."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ASIDE = ".tmp."  # in the name of a file that is being written, before the number of the process


def write_aside(path: Path, parts: Iterable[bytes | memoryview], keep_as: str | None = None) -> None:
    """Write to a temporary file beside `path`, flush it to the disk, then rename it: all or nothing.

    Args:
        path: its folder exists.
        parts: the content; it may be made while it is written.
        keep_as: let the file that was there live on under this name.

    Raises:
        OSError: if the disk is full or the folder cannot be written; what was there before is untouched.
    """
    aside = path.with_name(f"{path.name}{ASIDE}{os.getpid()}")
    needed = sum(map(len, parts)) if isinstance(parts, Sequence) else None
    try:
        with open(aside, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())

        # The file that was there gets its second name by a link: there is no moment in which neither name has it.
        if keep_as is not None and path.exists():
            kept, link = path.with_name(keep_as), path.with_name(f"{keep_as}{ASIDE}{os.getpid()}")
            link.unlink(missing_ok=True)
            try:
                os.link(path, link)
            except OSError:  # a file system without links: for a moment only the second name exists; readers look there
                os.replace(path, kept)
            else:
                os.replace(link, kept)
        os.replace(aside, path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error, needed) from error
        raise

    # The new name is on the disk only when its folder is.
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    """`write_aside` for plain values."""
    write_aside(path, [(json.dumps(value, indent=indent) + "\n").encode()])


def cannot_write(path: Path, error: OSError, needed: int | None = None) -> OSError:
    """An OSError that tells a user what is needed: the file, the reason, and the space that is left for it."""
    try:
        free = os.statvfs(path.parent)
        space = f"; {free.f_bavail * free.f_frsize / 1e6:.1f} MB free"
    except OSError:
        space = ""
    wanted = "" if needed is None else f"; {needed / 1e6:.1f} MB needed"
    more = "; free some space, and the same command goes on" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return OSError(error.errno, f"cannot write {path} ({error.strerror or error}{wanted}{space}){more}")


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files that a kill inside `write_aside` left in a folder and in those directly in it."""
    for left in [*folder.glob(f"*{ASIDE}*"), *folder.glob(f"*/*{ASIDE}*")]:
        if left.name.rpartition(ASIDE)[2].isdecimal():  # and not a file of the user's
            left.unlink(missing_ok=True)


def absent(path: Path, within: Path | None = None) -> list[Path]:
    """Missing directories on the way to a path, the innermost first; [] if the path exists.

    Directories below `within` are listed even if they exist: another process may have made them a moment ago.
    """
    if path.exists():
        return []
    return [place for place in (path, *path.parents) if not place.exists() or within in place.parents]


def remove_made(made: Sequence[Path]) -> None:
    """Remove directories that were `absent` before: the first with its content, its parents if they are empty."""
    for number, place in enumerate(made):
        if number == 0:
            shutil.rmtree(place, ignore_errors=True)
        else:
            with suppress(OSError):  # something else is in it by now
                place.rmdir()
