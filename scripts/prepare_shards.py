"""Prepare photographs: python -m scripts.prepare_shards imagenet /data/imagenet /data/imagenet-256

Class folders (train/CLASS/*, val/CLASS/*) become a few large files of smaller images, which are read several times
faster. Run again after an interruption it goes on; --check reads everything and compares checksums. Then:

    python train.py data=imagenet data.root=/data/imagenet-256 data.prepared=true

The network then crops from images that were reduced once, not from the original files as in the paper, and every record
of such a run says so.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from data.folders import OFFICIAL, open_folders
from data.shards import KINDS, Preparation, check, open_prepared, prepare
from scripts.entry import guarded, parser_of


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
