"""A split is a list of samples: columns of flat arrays, and a function that reads one row of them."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from configs.schema import DataConfig
from data.decode import require_few, unreadable, why
from data.draws import Draws
from data.splits import TEST, Indices, stratified, subset, train_val

IGNORE = 255  # the class of pixels that count neither in the loss nor in a metric
TEST_SHARE = 0.2  # of the training images, where own data have no test split
FEW_VAL = 20  # images; the best epoch on fewer is often so by chance
log = logging.getLogger(__name__)

Row = dict[str, Any]  # one value of each column
Sample = dict[str, Any]  # what is read of a row; the steps of a pipeline turn it into the fields of a batch
Step = Callable[[Sample, Draws | None], Sample]


class Counts(NamedTuple):
    """The content of a split by class.

    of: what is counted: images, pixels or boxes.
    each: of each class, in the order of the labels.
    read: samples that were looked at for it.
    ignored: pixels without a class; crowds and difficult objects.
    black_and_white: masks that hold 0 and 255 alone.
    """

    of: str
    each: list[int]
    read: int
    ignored: int = 0
    black_and_white: int = 0


@dataclass(frozen=True)
class Samples:
    """The samples of a split.

    Flat arrays rather than an object a sample: a million objects would be copied into every loader process.

    Args:
        columns: (N, ...) arrays by name. `name` is how messages call a sample, relative to `folder`; `labels`, where it
            exists, is what splits are stratified by.
        read: row -> sample; raises whatever the decoder raises on a damaged file.
        folder: stands in front of every name.
        in_memory: reading takes no time, so no process is started for it.
        from_files: each name is that of an image file.
        unused: files beside them, of formats that are not read.
        left_out: path -> reason, of the files that opening could not use.
    """

    columns: dict[str, NDArray[Any]]
    read: Callable[[Row], Sample]
    folder: Path | str = ""
    in_memory: bool = False
    from_files: bool = False
    unused: Sequence[str] = ()
    left_out: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, column: str) -> NDArray[Any]:
        return self.columns[column]

    @property
    def classes(self) -> Indices:
        """(N,) the class of each sample; one class where images have many labels each."""
        return self.columns.get("labels", np.zeros(len(self), np.int64))

    def name(self, index: int) -> str:
        """The path of a sample, for messages; without a file its number."""
        if "name" not in self.columns:
            return str(index)
        return os.path.join(self.folder, os.fsdecode(self.columns["name"][index]))

    def row(self, index: int) -> Row:
        """One value of each column."""
        return {name: column[index] for name, column in self.columns.items()}

    def part(self, indices: Indices) -> Samples:
        """Some of the samples, in the order given."""
        return replace(self, columns={name: column[indices] for name, column in self.columns.items()})

    def without_pixels(self) -> Samples:
        """These samples without their images; masks and labels stay."""
        return replace(self, columns={name: column for name, column in self.columns.items() if name != "images"})

    def class_counts(self, num_classes: int, most: int) -> Counts:
        """The content of these samples by class. most: how many of those in files may be read for it."""
        if "masks" not in self.columns and "labels" not in self.columns:  # a task of one's own
            return Counts("images", [], len(self))
        if "masks" not in self.columns:
            return Counts("images", np.bincount(self["labels"], minlength=num_classes).tolist(), len(self))
        levels, black_and_white = np.zeros(256, np.int64), 0
        for mask in self["masks"]:
            of_mask = np.bincount(mask.ravel(), minlength=256)
            levels, black_and_white = levels + of_mask, black_and_white + only_ends(of_mask)
        return Counts("pixels", levels[:num_classes].tolist(), len(self), int(levels[IGNORE]), black_and_white)

    def truth(self) -> dict[str, Any]:
        """A split with boxes in COCO's format."""
        raise NotImplementedError


def only_ends(levels: NDArray[np.int64]) -> bool:
    """True for a mask with these numbers of pixels of each level that has 0 and 255 and no other."""
    return bool(levels[0] and levels[IGNORE] and levels[0] + levels[IGNORE] == levels.sum())


def read_file(folder: Path, row: Row) -> Sample:
    """The content of an image file, and its label where it has one."""
    with open(os.path.join(folder, os.fsdecode(row["name"])), "rb") as file:
        content = file.read()
    return {"images": content, "labels": row["labels"]} if "labels" in row else {"images": content}


def as_it_is(row: Row) -> Sample:
    """A row in memory, which is a sample but for its name."""
    return {key: value for key, value in row.items() if key != "name"}


def decoded(samples: Samples, decode: Callable[[Row], Sample], workers: int, skip: bool, what: str) -> Samples:
    """Read every sample once and keep it in memory.

    Args:
        samples: files.
        decode: row -> sample; of arrays of one shape the column is one array, of others an array of objects.
        workers: threads (decoders release the interpreter's lock).
        skip: leave out a few samples that cannot be read, instead of raising.
        what: a usable sample is called this in messages.

    Raises:
        ValueError: for samples that cannot be read; with `skip` if they are more than a few, or all.
    """

    def one(index: int) -> Sample | str:
        try:
            return decode(samples.row(index))
        except Exception as error:  # decoders raise nearly anything on damaged files
            return why(error)

    with ThreadPoolExecutor(max(1, workers)) as pool:
        found = list(pool.map(one, range(len(samples))))

    # Those that failed end the opening or are left out; the others become columns, in their order.
    left_out = {samples.name(i): reason for i, reason in enumerate(found) if isinstance(reason, str)}
    good = [i for i, sample in enumerate(found) if not isinstance(sample, str)]
    if left_out and (not skip or not good):
        raise ValueError(unreadable(list(left_out.items()), what, len(samples)))
    require_few(left_out, len(samples))
    for path, reason in left_out.items():
        log.warning("%s: left out, not a %s (%s)", path, what, reason)
    kept = [sample for sample in found if not isinstance(sample, str)]
    columns = {"name": samples["name"][good]}
    for key in list(kept[0]) if kept else ():
        values = [sample.pop(key) for sample in kept]
        if len({np.shape(value) for value in values}) == 1:
            columns[key] = np.stack(values)
            continue
        columns[key] = np.empty(len(values), object)  # images of several sizes
        for position, value in enumerate(values):
            columns[key][position] = value
    return replace(samples, columns=columns, read=as_it_is, in_memory=True, left_out=left_out)


def image_files(folder: Path, names: Sequence[bytes], labels: Indices, unused: Sequence[str] = ()) -> Samples:
    """Image files of a folder with one label each. names: `class/file`; unused: files of other formats."""
    columns = {"name": np.array(names, np.bytes_), "labels": labels}
    return Samples(columns, partial(read_file, folder), folder, from_files=True, unused=unused)


def with_test(name: str, splits: dict[str, Samples], of: str) -> tuple[dict[str, Samples], list[str]]:
    """Cut a fifth of `train` off as `test` where there is none, the same in every run, stratified; and the note."""
    if "test" in splits:
        return splits, []
    train = splits["train"]
    test = stratified(train.classes, max(1, round(TEST_SHARE * len(train))), TEST)
    kept = np.setdiff1d(np.arange(len(train)), test)
    note = f"{name}: no test folder, {len(test):,} of the {of} are cut off as test"
    return {**splits, "train": train.part(kept), "test": train.part(test)}, [note]


def positions(splits: Mapping[str, Samples], data: DataConfig) -> tuple[Indices, Indices]:
    """The samples of `train` to train on, and those to select on: none where the data have a val of their own.

    Both cuts are stratified and fixed functions of the labels, whatever the seed of a run.
    """
    train = splits["train"]
    kept, held_out = np.arange(len(train)), np.zeros(0, np.int64)
    if "val" not in splits:
        kept, held_out = train_val(train.classes, data.val_fraction)
    return subset(kept, train.classes, data.train_subset), held_out


def cut(splits: Mapping[str, Samples], data: DataConfig) -> dict[str, Samples]:
    """`train`, `val` and `test` of a run: val is cut from train where the data have none; see `positions`."""
    train, (kept, held_out) = splits["train"], positions(splits, data)
    val = splits["val"] if "val" in splits else train.part(held_out)
    return {"train": train.part(kept), "val": val, "test": splits["test"]}


def cut_notes(data: DataConfig, splits: Mapping[str, Samples], parts: Mapping[str, Samples]) -> list[str]:
    """Notes on the parts that were cut: a subset to train on, and a `val` too small to choose an epoch by."""
    notes, count = [], len(parts["val"])
    many_labels = "labels" not in parts["val"].columns
    if data.train_subset is not None:
        notes.append(f"trained on a fixed subset of {data.train_subset:,} training images")
    if "val" not in splits and 0 < count < FEW_VAL and many_labels:
        images = "image" if count == 1 else "images"
        few = "few to choose the best epoch by; data.val_fraction sets its share"
        notes.append(f"{data.name}: val has {count} {images}, {few}")
    return notes


def fingerprint(parts: Iterable[str | tuple[str, ...] | NDArray[Any]]) -> str:
    """sha256 over the parts, each preceded by its kind and size so that no two lists of parts run together."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            text = part if isinstance(part, str) else "\0".join(part)
            digest.update(f"text{len(text)}".encode() + text.encode())
    return digest.hexdigest()
