"""Writing prepared photographs: see `data.shards` for what they are, `scripts/prepare_shards.py` for the command."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.decode import Pixels, pick_decoder, whole, why
from data.folders import Files, Folders
from data.pictures import resized
from data.shards import HEADER, KINDS, MANIFEST, SPLITS, VERSION, is_prepared, read_manifest

Tell = Callable[[int], object]  # so many images more are done


@dataclass(frozen=True)
class Preparation:
    """How photographs are prepared.

    Args:
        short_side: a longer one is reduced to it, with the kernel of training; a shorter one stays.
        kind: `jpeg`, or `raw` for pixels that need no decoding.
        quality: of the JPEG files.
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
        name: of the data set.
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
    if is_prepared(target):
        earlier = read_manifest(target)
        different = [key for key in manifest if manifest[key] != earlier.get(key)]
        if different:
            raise ValueError(f"{target}: holds photographs prepared otherwise ({', '.join(different)}); choose another")
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
            np.savez(buffer, names=files.names, labels=files.labels, lengths=np.array(lengths, np.int64))
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


def _shard(files: Files, path: Path, how: Preparation, pool: Any, tell: Tell) -> dict[str, Any]:
    """What is known of a shard: of an earlier call if it is there and whole, else of one written now."""
    # The names of the files that it is made of: another source is noticed without reading it. A file that was replaced
    # under its name is not.
    source = hashlib.sha256(json.dumps([asdict(how), len(files)]).encode())
    source.update(np.ascontiguousarray(files.names).data)
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
