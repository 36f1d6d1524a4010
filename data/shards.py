"""Prepared photographs: made smaller once, and kept in a few large files instead of a million small ones.

`prepared.json`, written last, names the shards with their sizes and sums; `train.npz` and `val.npz` say where each
image lies. An image is a JPEG, or raw: 4 bytes of height and width, then the pixels. The order is that of the class
folders, and images are read one by one wherever they lie, so that an epoch is the same samples in the same order.
What the network sees is not what it sees of the original files: `Data.notes` says so, and the fingerprint differs.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from data.decode import Content, Part, Pixels, pick_decoder, whole, why
from data.folders import Folders
from data.photographs import resized
from data.samples import Row, Sample, Samples

MANIFEST, VERSION = "prepared.json", 1
KINDS = ("jpeg", "raw")
SPLITS = ("train", "val")
Tell = Callable[[int], object]  # so many images more are done
HEADER = struct.Struct("<HH")  # height, width of a raw image


def is_prepared(root: Path | None) -> bool:
    """True if a folder holds prepared photographs, all of them."""
    return root is not None and (root / MANIFEST).is_file()


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
    raw, side, quality = manifest["kind"] == "raw", manifest["short_side"], manifest["quality"]
    kind = "raw pixels" if raw else f"JPEG quality {quality}"
    note = (
        f"input prepared to short sides of {side} pixels ({kind}): not the paper's, which crops from the original files"
    )
    return Folders(
        train,
        test,
        tuple(manifest["classes"]),
        (*manifest["notes"], note),
        version=f"prepared, {side} pixels, {kind}",
        decode=raw_pixels if raw else None,
    )


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
    ends = np.concatenate([np.cumsum(part) for part in np.split(lengths, np.cumsum(counts)[:-1])])
    shard = np.repeat(np.arange(len(entries), dtype=np.int32), counts)
    paths = tuple(root / entry["file"] for entry in entries)
    columns = {"name": names, "labels": labels, "shard": shard, "begins": ends - lengths, "ends": ends}
    return Shards(columns=columns, read=partial(read_shard, paths), folder=root, paths=paths)


@dataclass(frozen=True)
class Preparation:
    """The preparation of photographs.

    Args:
        short_side: a longer one is reduced to it, with the kernel of training; a shorter one stays.
        kind: `jpeg`, or `raw` for pixels that need no decoding.
        quality: quality of the JPEG files.
        per_shard: images of a shard.

    Raises:
        ValueError: for a value out of range.
    """

    short_side: int = 256
    kind: str = "jpeg"
    quality: int = 90
    per_shard: int = 8192

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind '{self.kind}', choose one of {', '.join(KINDS)}")
        for name, low, high in (("short_side", 8, 4096), ("quality", 1, 95), ("per_shard", 1, 1 << 20)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must lie in {low} ... {high}, not {getattr(self, name)}")

    def __call__(self, content: bytes) -> bytes:
        """An image file as it stands in a shard."""
        pixels = self._reduced(pick_decoder("auto")(content, whole))
        if self.kind == "raw":
            return HEADER.pack(*pixels.shape[:2]) + pixels.tobytes()
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=self.quality)
        return file.getvalue()

    def _reduced(self, pixels: Pixels) -> Pixels:
        height, width = pixels.shape[:2]
        short = min(height, width)
        if short <= self.short_side:
            return np.ascontiguousarray(pixels)
        scale = self.short_side / short
        return np.ascontiguousarray(resized(pixels, max(1, round(height * scale)), max(1, round(width * scale))))


def prepare(name: str, found: Folders, target: Path, how: Preparation, workers: int, tell: Tell) -> None:
    """Write the shards of a data set; what an earlier call has written whole is kept.

    Args:
        name: data set.
        found: its class folders.
        target: made if it is not there.
        how: the same as in an earlier call on this folder.
        workers: processes; 0 works in this one.
        tell: called with the number of images that were done.

    Raises:
        ValueError: for an image that cannot be read, or a folder with other shards; names it.
    """
    target.mkdir(parents=True, exist_ok=True)
    manifest: dict[str, Any] = {"version": VERSION, "name": name, **asdict(how), "classes": list(found.classes)}
    # A folder holds photographs of one preparation.
    if is_prepared(target):
        earlier = read_manifest(target)
        different = [key for key in manifest if manifest[key] != earlier.get(key)]
        if different:
            raise ValueError(f"{target}: holds photographs prepared otherwise ({', '.join(different)}); choose another")
    # Shard by shard; the manifest comes last, so that only a whole folder has one.
    shards: list[dict[str, Any]] = []
    with ProcessPoolExecutor(workers, initializer=_one_thread) if workers else nullcontext() as pool:
        for split, files in zip(SPLITS, (found.train, found.test), strict=True):
            lengths: list[int] = []
            for first in range(0, len(files), how.per_shard):
                part = files.part(np.arange(first, min(first + how.per_shard, len(files))))
                path = target / f"{split}-{first // how.per_shard:05d}.bin"
                entry = _shard(part, path, how, pool, tell)
                lengths += entry.pop("lengths")
                shards.append({"split": split, "file": path.name, **entry})
            buffer = io.BytesIO()
            np.savez(buffer, names=files["name"], labels=files["labels"], lengths=np.array(lengths, np.int64))
            _write(target / f"{split}.npz", iter([buffer.getvalue()]))
    _write_json(target / MANIFEST, {**manifest, "notes": list(found.notes), "shards": shards})


def check(target: Path, tell: Tell) -> None:
    """Read every shard and compare its sum.

    Raises:
        ValueError: names the first that is damaged.
    """
    for entry in read_manifest(target)["shards"]:
        path, digest = target / entry["file"], hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
        if digest.hexdigest() != entry["sha256"]:
            raise ValueError(f"{path}: damaged; remove it and run this again without --check, it is made anew")
        tell(entry["images"])


def _shard(files: Samples, path: Path, how: Preparation, pool: Any, tell: Tell) -> dict[str, Any]:
    """The entry of a shard: of an earlier call if it is there and whole, else of one written now."""
    # The names of the files that it is made of: another source is noticed without reading it. A file that was replaced
    # under its name is not.
    source = hashlib.sha256(json.dumps([asdict(how), len(files)]).encode())
    source.update(np.ascontiguousarray(files["name"]).data)
    aside = path.with_suffix(".json")
    try:
        known = json.loads(aside.read_text())
        if known.pop("source") == source.hexdigest() and path.stat().st_size == known["bytes"]:
            tell(len(files))
            return known
    except (OSError, ValueError, KeyError):
        pass  # not there, or not whole
    lengths: list[int] = []
    digest = hashlib.sha256()

    def contents() -> Iterator[bytes]:
        jobs = ((how, files.name(index)) for index in range(len(files)))
        for content in pool.map(_prepared, jobs, chunksize=32) if pool else map(_prepared, jobs):
            lengths.append(len(content))
            digest.update(content)
            tell(1)
            yield content

    _write(path, contents())
    known = {"images": len(files), "bytes": sum(lengths), "sha256": digest.hexdigest(), "lengths": lengths}
    _write_json(aside, {"source": source.hexdigest(), **known})
    return known


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _prepared(job: tuple[Preparation, str]) -> bytes:
    how, path = job
    try:
        return how(Path(path).read_bytes())
    except Exception as error:  # decoders raise nearly anything on damaged files
        reason = why(error)
        raise ValueError(f"{path}: not a readable image ({reason}); repair or remove it") from error


def _write_json(path: Path, value: Any) -> None:
    _write(path, iter([(json.dumps(value) + "\n").encode()]))


def _write(path: Path, parts: Iterator[bytes]) -> None:
    """Write aside, flush, rename: under its name a file is whole."""
    aside = path.with_name(f"{path.name}.tmp")
    try:
        with open(aside, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
