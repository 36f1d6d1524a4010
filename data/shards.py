"""Prepared photographs: made smaller once, and kept in a few large files (`scripts/prepare_shards.py` writes them).

`prepared.json`, written last, names the shards with their sizes and sums; `train.npz` and `val.npz` say where each
image lies. An image is a JPEG, or raw: 4 bytes of height and width, then the pixels. The order is that of the class
folders, and images are read one by one wherever they lie, so that an epoch is the same samples in the same order.
What the network sees is not what it sees of the original files: `Data.notes` says so, and the fingerprint differs.
"""

from __future__ import annotations

import functools
import json
import mmap
import struct
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from data.decode import Content, Part, Pixels, whole
from data.folders import Folders
from data.samples import Row, Sample, Samples

MANIFEST, VERSION = "prepared.json", 1
KINDS = ("jpeg", "raw")
SPLITS = ("train", "val")
HEADER = struct.Struct("<HH")  # height, width of a raw image


def is_prepared(root: Path | None) -> bool:
    """True if a folder holds prepared photographs, all of them."""
    return root is not None and (root / MANIFEST).is_file()


def open_prepared(name: str, root: Path) -> Folders:
    """The data set in a prepared folder, as `open_folders` gives the original.

    Raises:
        ValueError: if it is of another data set, or a shard is missing or not of its size.
    """
    manifest = read_manifest(root)
    if manifest["name"] != name:
        raise ValueError(f"{root}: prepared from {manifest['name']}, not from {name}")

    # A shard that was copied in part would show only when one of its images is read.
    for entry in manifest["shards"]:
        path = root / entry["file"]
        size = path.stat().st_size if path.is_file() else None
        if size != entry["bytes"]:
            found = "missing" if size is None else f"{size:,} bytes instead of {entry['bytes']:,}"
            raise ValueError(f"{path}: {found}; run python -m scripts.prepare_shards again, it makes what is missing")
    train, test = (_open_split(root, manifest, split) for split in SPLITS)

    # Reduced pixels are other data than the original files: the notes say so, and the version is in the fingerprint.
    raw, side, quality = manifest["kind"] == "raw", manifest["short_side"], manifest["quality"]
    kind = "raw pixels" if raw else f"JPEG quality {quality}"
    made = f"input prepared to short sides of {side} pixels ({kind})"
    notes = (*manifest["notes"], f"{made}: not the paper's, which crops from the original files")
    version, decode = f"prepared, {side} pixels, {kind}", raw_pixels if raw else None
    return Folders(train, test, tuple(manifest["classes"]), notes, version, decode)


def read_manifest(root: Path) -> dict[str, Any]:
    """The content of `prepared.json`.

    Raises:
        ValueError: if it is damaged or of another version.
    """
    try:
        manifest = json.loads((root / MANIFEST).read_text())
    except ValueError as error:
        raise ValueError(f"{root / MANIFEST}: not readable ({error}); prepare the folder again") from error
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        raise ValueError(f"{root / MANIFEST}: not of this version ({VERSION}); prepare the folder again")
    return manifest


def _open_split(root: Path, manifest: dict[str, Any], split: str) -> Shards:
    path = root / f"{split}.npz"
    try:
        with np.load(path) as arrays:
            names, labels, lengths = arrays["names"], arrays["labels"], arrays["lengths"]
    except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
        raise ValueError(f"{path}: not readable ({error}); run python -m scripts.prepare_shards again") from error
    entries = [entry for entry in manifest["shards"] if entry["split"] == split]
    counts = [entry["images"] for entry in entries]
    if not sum(counts) == len(names) == len(labels) == len(lengths):
        raise ValueError(f"{path}: does not belong to {root / MANIFEST}; run python -m scripts.prepare_shards again")

    # Images lie one behind the other; where a shard ends, the count of bytes begins anew.
    ends = np.concatenate([np.cumsum(part) for part in np.split(lengths, np.cumsum(counts)[:-1])])
    shard = np.repeat(np.arange(len(entries), dtype=np.int32), counts)
    paths = tuple(root / entry["file"] for entry in entries)
    columns = {"name": names, "labels": labels, "shard": shard, "begins": ends - lengths, "ends": ends}
    return Shards(columns=columns, read=partial(read_shard, paths), folder=root, paths=paths)


@dataclass(frozen=True, kw_only=True)
class Shards(Samples):
    """The images of a split, in shards.

    The columns are `name` (that of the image file), `labels`, `shard` (which file holds an image), and `begins` and
    `ends`, the bytes where it lies.
    """

    paths: tuple[Path, ...]

    def name(self, index: int) -> str:
        """The name that the image file had, and its shard."""
        return f"{self['name'][index].decode(errors='replace')} in {self.paths[self['shard'][index]]}"


def read_shard(paths: tuple[Path, ...], row: Row) -> Sample:
    """The content of an image, nothing of which is copied before it is used, and its label."""
    return {"images": _mapped(paths[row["shard"]])[row["begins"] : row["ends"]], "labels": row["labels"]}


@functools.cache
def _mapped(path: Path) -> memoryview:
    """A shard as memory of this process; private, so that nobody can write into the file by mistake."""
    with open(path, "rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def raw_pixels(content: Content, part: Part = whole) -> Pixels:
    """(H, W, 3) pixels of a part of a raw image, as a view."""
    height, width = HEADER.unpack_from(content)
    pixels = np.frombuffer(content, np.uint8, offset=HEADER.size).reshape(height, width, 3)
    top, left, height, width = part(height, width)
    return pixels[top : top + height, left : left + width]
