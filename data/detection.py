"""Splits of images with boxes to a data set with its loaders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from data.annotated import Annotated
from data.augment import Normalize
from data.box_loader import BoxLoader, FilePictures, MemoryPictures, Pictures
from data.decode import Pixels, pick_decoder
from data.fingerprint import fingerprint
from data.in_memory import Statistics
from data.interface import MAX_BOXES, Data
from data.options import Augment, Cut, Loading, Reading
from data.splits import Batches, Indices


@dataclass(frozen=True)
class Split:
    """The images and boxes of a split; `images` (N, H, W, 3) uint8 where they are in memory, else they are files."""

    annotated: Annotated
    images: Pixels | None = None

    def __len__(self) -> int:
        return len(self.annotated)

    def part(self, indices: Indices) -> Split:
        """Some of the images, in the order given."""
        return Split(self.annotated.part(indices), None if self.images is None else self.images[indices])

    def pictures(self, decoder: str) -> Pictures:
        """The pixels of the images."""
        if self.images is not None:
            return MemoryPictures(self.images)
        return FilePictures(self.annotated, pick_decoder(decoder))


def open_detection(
    name: str,
    splits: Mapping[str, Split],
    size: int,
    statistics: Statistics,
    notes: tuple[str, ...],
    cut: Cut,
    augment: Augment,
    reading: Reading,
    loading: Loading,
) -> Data:
    """The data set of these splits.

    Args:
        splits: `train`, `test`, and `val` where the data set has one; else it is cut from `train`.
        size: side of the square batches.
        statistics: mean and standard deviation of each channel, of values in [0, 1].
        notes: what the reader has to say; the cut and the boxes that are treated specially are added.

    Raises:
        ValueError: for an augmentation that does not apply to images with boxes, or a split without boxes.
    """
    augment.refuse(f"is for classification, not for {name}", "crop_padding", "cutout", "autoaugment")
    classes = splits["train"].annotated.categories.names
    require_training_boxes(name, splits["train"].annotated)
    parts = cut.parts(splits)
    for split in ("val", "test"):
        if len(parts[split]) and parts[split].annotated.objects.ignored.all():
            instead = (
                "" if split in splits else "; they were cut from train: give data.val_split or another val_fraction"
            )
            raise ValueError(f"{name}: the {split} images have no boxes to measure AP by{instead}")
    normalize = Normalize(*statistics, size, loading.device)

    def loader(split: str, batches: Batches) -> BoxLoader:
        pictures = parts[split].pictures(reading.decoder)
        return BoxLoader(parts[split].annotated, pictures, size, batches, normalize, augment, reading, loading)

    return Data(
        name=name,
        task="detection",
        train=loader("train", loading.training(len(parts["train"]))),
        val=loader("val", loading.evaluation(len(parts["val"]))) if len(parts["val"]) else None,
        test=loader("test", loading.evaluation(len(parts["test"]))),
        classes=classes,
        image_shape=(3, size, size),
        fingerprint=fingerprint(name, classes, *(array for split in parts.values() for array in _identity(split))),
        notes=notes + cut.notes + cut.val_notes(name, splits, parts) + _box_notes(name, splits),
    )


def require_training_boxes(name: str, train: Annotated) -> None:
    """Raise ValueError for a training split all of whose objects are ignored, or that has none."""
    if train.objects.ignored.all():
        raise ValueError(f"{name}: the training images have no boxes to train on")


def _identity(split: Split) -> list[np.ndarray]:
    found = split.annotated
    arrays = [found.names, found.image_ids, found.sizes, found.starts, np.array(found.categories.ids, np.int64)]
    arrays += [found.objects.boxes, found.objects.labels, found.objects.ignored]
    return arrays if split.images is None else [*arrays, split.images]


def _box_notes(name: str, splits: Mapping[str, Split]) -> tuple[str, ...]:
    """What is done with boxes that cannot be used as they stand, where there are any."""
    found = [split.annotated for split in splits.values()]
    degenerate = sum(split.degenerate for split in found)
    ignored = sum(int(split.objects.ignored.sum()) for split in found)
    crowded = sum(int((_trained_boxes(split) > MAX_BOXES).sum()) for split in found)
    outside = [image for split in found for image in split.outside]
    reaching = [split.name(position) for split in found for position in split.reaching_out().tolist()]
    notes = [*_class_notes(name, splits["train"].annotated)]
    if outside:
        notes.append(f"{name}: {len(outside):,} boxes that lie outside their image are left out, one of {outside[0]}")
    if reaching:
        notes.append(f"{name}: {len(reaching):,} boxes reach out of their image, which limits AP, one in {reaching[0]}")
    if degenerate:
        notes.append(f"{name}: {degenerate:,} boxes without width or height are left out")
    if ignored:
        notes.append(f"{name}: {ignored:,} crowds or difficult objects are not trained on, and ignored in evaluation")
    if crowded:
        notes.append(f"{name}: of the {crowded:,} images with more than {MAX_BOXES} boxes the largest are trained on")
    return tuple(notes)


def _class_notes(name: str, train: Annotated) -> tuple[str, ...]:
    """Classes that differ in case alone: often one class, misspelt in some files."""
    same: dict[str, list[int]] = {}
    for label, known in enumerate(train.categories.names):
        same.setdefault(known.casefold(), []).append(label)
    counts = np.bincount(train.objects.labels, minlength=len(train.categories.names))
    alike = [
        ", ".join(f"{train.categories.names[i]} ({counts[i]:,} boxes)" for i in group)
        for group in same.values()
        if len(group) > 1
    ]
    return (f"{name}: classes that differ in case alone: {'; '.join(alike)}",) if alike else ()


def _trained_boxes(found: Annotated) -> Indices:
    owners = np.repeat(np.arange(len(found)), np.diff(found.starts))
    return np.bincount(owners[~found.objects.ignored], minlength=len(found))
