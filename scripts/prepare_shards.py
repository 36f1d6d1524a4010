"""Prepare photographs: python -m scripts.prepare_shards imagenet /data/imagenet /data/imagenet-256

Class folders (train/CLASS/*, val/CLASS/*) become a few large files of smaller images, which are read several times
faster. Run again after an interruption it goes on; --check reads everything and compares checksums. Then:

    python train.py data=imagenet data.root=/data/imagenet-256 data.prepared=true

The network then crops from images that were reduced once, not from the original files as in the paper, and every record
of such a run says so.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from tqdm import tqdm

from data.decode import pick_decoder, whole, why
from data.folders import OFFICIAL, Folders, open_folders
from data.photographs import resized
from data.samples import Samples
from data.shards import HEADER, KINDS, MANIFEST, SPLITS, VERSION, is_prepared, open_prepared, read_manifest
from engine.files import remove_unfinished, write_aside, write_json
from scripts.entry import guarded, parser_of

Advance = Callable[[int], object]  # called with the number of images that were done


@dataclass(frozen=True)
class Preparation:
    """The preparation of photographs: image file in, its content in a shard out.

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
        pixels = pick_decoder("auto")(content, whole)
        height, width = pixels.shape[:2]
        scale = self.short_side / min(height, width)
        if scale < 1:
            pixels = resized(pixels, max(1, round(height * scale)), max(1, round(width * scale)))
        pixels = np.ascontiguousarray(pixels)
        if self.kind == "raw":
            return HEADER.pack(*pixels.shape[:2]) + pixels.tobytes()
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=self.quality)
        return file.getvalue()


def prepare(name: str, found: Folders, target: Path, how: Preparation, workers: int, advance: Advance) -> None:
    """Write the shards of a data set; what an earlier call has written whole is kept.

    Args:
        name: data set.
        found: its class folders.
        target: made if it is not there.
        how: the same as in an earlier call on this folder.
        workers: processes; 0 works in this one.
        advance: called with the number of images that were done.

    Raises:
        ValueError: for an image that cannot be read, or a folder with other shards; names it.
    """
    target.mkdir(parents=True, exist_ok=True)
    remove_unfinished(target)
    manifest: dict[str, Any] = {"version": VERSION, "name": name, **asdict(how), "classes": list(found.classes)}

    # A folder holds photographs of one preparation.
    if is_prepared(target):
        earlier = read_manifest(target)
        different = [key for key in manifest if manifest[key] != earlier.get(key)]
        if different:
            raise ValueError(f"{target}: holds photographs prepared otherwise ({', '.join(different)}); choose another")

    # Shard by shard, then the list of a split; the manifest comes last, so that only a whole folder has one.
    shards: list[dict[str, Any]] = []
    processes: Any = nullcontext()
    if workers:
        processes = ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    with processes as pool:
        for split, files in zip(SPLITS, (found.train, found.test), strict=True):
            lengths: list[int] = []
            for first in range(0, len(files), how.per_shard):
                part = files.part(np.arange(first, min(first + how.per_shard, len(files))))
                path = target / f"{split}-{first // how.per_shard:05d}.bin"
                entry = write_shard(part, path, how, pool, advance)
                lengths += entry.pop("lengths")
                shards.append({"split": split, "file": path.name, **entry})
            listed = io.BytesIO()
            np.savez(listed, names=files["name"], labels=files["labels"], lengths=np.array(lengths, np.int64))
            write_aside(target / f"{split}.npz", [listed.getvalue()])
    write_json(target / MANIFEST, {**manifest, "notes": list(found.notes), "shards": shards}, indent=None)


def write_shard(files: Samples, path: Path, how: Preparation, pool: Any, advance: Advance) -> dict[str, Any]:
    """Write a shard, unless an earlier call did; returns its number of images, its bytes, its sum and their lengths."""
    # The names of the files that it is made of: another source is noticed without reading it. A file that was replaced
    # under its name is not.
    source = hashlib.sha256(json.dumps([asdict(how), len(files)]).encode())
    source.update(np.ascontiguousarray(files["name"]).data)
    aside = path.with_suffix(".json")
    try:
        known = json.loads(aside.read_text())
        if known.pop("source") == source.hexdigest() and path.stat().st_size == known["bytes"]:
            advance(len(files))
            return known
    except (OSError, ValueError, KeyError):
        pass  # not there, or not whole

    # Images are written as they are made, in the order of the files; a shard may be larger than the memory.
    lengths: list[int] = []
    digest = hashlib.sha256()

    def contents() -> Iterator[bytes]:
        jobs = ((how, files.name(index)) for index in range(len(files)))
        for content in pool.map(prepared, jobs, chunksize=32) if pool else map(prepared, jobs):
            lengths.append(len(content))
            digest.update(content)
            advance(1)
            yield content

    write_aside(path, contents())
    known = {"images": len(files), "bytes": sum(lengths), "sha256": digest.hexdigest(), "lengths": lengths}
    write_json(aside, {"source": source.hexdigest(), **known}, indent=None)
    return known


def prepared(job: tuple[Preparation, str]) -> bytes:
    how, path = job
    try:
        return how(Path(path).read_bytes())
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise ValueError(f"{path}: not a readable image ({why(error)}); repair or remove it") from error


def check(target: Path, advance: Advance) -> None:
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
        advance(entry["images"])


def progress(name: str, images: int) -> tqdm[NoReturn]:
    """A bar; into a file or a pipe a line every half minute."""
    return tqdm(total=images, unit=" images", desc=name, mininterval=0.5 if sys.stderr.isatty() else 30.0)


@guarded
def main(arguments: list[str]) -> int:
    """Arguments in, exit code out: 0, or 2 with one line."""
    parser = parser_of(__doc__)
    parser.add_argument("name", choices=sorted(OFFICIAL))
    parser.add_argument("source", type=Path, help="the folder with train/ and val/")
    parser.add_argument("target", type=Path, help="where the shards go")
    parser.add_argument("--short-side", type=int, default=256, help="pixels (default %(default)s)")
    parser.add_argument("--kind", choices=KINDS, default="jpeg", help="raw: ten times the space, no decoding")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEG files (default %(default)s)")
    parser.add_argument("--per-shard", type=int, default=8192, help="images in a file (default %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default %(default)s)")
    parser.add_argument("--check", action="store_true", help="only compare the checksums of what is there")
    asked = parser.parse_args(arguments)
    if not asked.check:
        how = Preparation(asked.short_side, asked.kind, asked.quality, asked.per_shard)
        found = open_folders(asked.name, asked.source, download=False)
        images = len(found.train) + len(found.test)
        with progress("preparing", images) as bar:
            prepare(asked.name, found, asked.target, how, asked.workers, bar.update)
    written = open_prepared(asked.name, asked.target)
    images = len(written.train) + len(written.test)
    with progress("checking", images) as bar:
        check(asked.target, bar.update)
    size = sum(path.stat().st_size for path in asked.target.glob("*.bin"))
    print(f"{images:,} images in {asked.target}, {size / 1e9:.2f} GB; {written.notes[-1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
