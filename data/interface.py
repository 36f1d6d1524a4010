"""The data as other packages see them: batches of the three tasks, a loader, a data set and how it is put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor

from configs.schema import DataConfig
from data.samples import Samples
from data.splits import Batches

MAX_BOXES = 100  # of an image, in a batch


class Batch:
    """The common part of the batches of all tasks, each of them a frozen dataclass of tensors over B images.

    images: (B, C, H, W) float32, normalized, on the device.
    indices: (B,) int64 on the CPU, the positions of these samples in the split.
    """

    images: Tensor
    indices: Tensor  # no fields of a dataclass here: each task's batch lists its own, in its own order

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.images)

    def split(self, parts: int) -> list[Self]:
        """Nearly equal parts, in order, like `torch.tensor_split`; a part may be empty."""
        plain = self.plain()
        split = {name: value.tensor_split(parts) for name, value in plain.items() if isinstance(value, Tensor)}
        return [type(self)(**{**plain, **{name: part[i] for name, part in split.items()}}) for i in range(parts)]

    def plain(self) -> dict[str, Any]:
        """The fields by name, those that are None aside."""
        values = {field.name: getattr(self, field.name) for field in fields(cast(Any, self))}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True)
class ClassificationBatch(Batch):
    """Images ready for the network, and their classes.

    Args:
        images: (B, C, H, W) float32, normalized, on the device.
        labels: (B,) int64 on the device.
        indices: (B,) int64 on the CPU, the positions of these samples in the split.
        other_labels: (B,) int64 on the device, the labels of the images mixed in (`data.batch_regularizers`).
        share: share of the images themselves in a mixture, in [0, 1]: one for all, or (B,) float32 on the device.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor
    other_labels: Tensor | None = None
    share: float | Tensor | None = None


@dataclass(frozen=True)
class SegmentationBatch(Batch):
    """Images ready for the network, and the class of each pixel.

    Args:
        images: (B, C, H, W) float32, normalized, on the device; padding is 0, the mean colour.
        masks: (B, H, W) int64 on the device, `IGNORE` where a pixel has no class, padding included.
        indices: (B,) int64 on the CPU, the positions of these samples in the split.
    """

    images: Tensor
    masks: Tensor
    indices: Tensor


@dataclass(frozen=True)
class DetectionBatch(Batch):
    """Images ready for the network, and the objects in them.

    Args:
        images: (B, 3, S, S) float32, normalized, on the device; padding is 0, the mean colour.
        boxes: (B, 100, 4) float32 on the device, x1 y1 x2 y2 in pixels of the batch's image, padded with -1.
        labels: (B, 100) int64 on the device, padded with -1.
        scales: (B,) float64 on the CPU, pixels of the batch's image per pixel of the original image.
        image_ids: (B,) int64 on the CPU, the ids that `loader.truth` knows the images by.
        indices: (B,) int64 on the CPU, the positions of these samples in the split.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    scales: Tensor
    image_ids: Tensor
    indices: Tensor


class Loader(Protocol):
    """One split, batch by batch. `epoch(e, k)` yields exactly what `epoch(e)` yields from its batch k on."""

    num_samples: int  # of the split, over all ranks
    bad_images: dict[str, str]  # path -> reason, of the images left out so far (`on_bad_image="skip"`)

    def __len__(self) -> int:
        """Batches per epoch on this rank."""
        ...

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Batches `start`, `start + 1`, ... of this epoch; a split that is not shuffled ignores `epoch`."""
        ...


@dataclass(frozen=True)
class Data:
    """A data set as the training loop sees it.

    Args:
        task: `classification`, `segmentation` or `detection`: the kind of batches that the loaders yield.
        train, val, test: the loaders; `test` is the official evaluation set, `val` a part of the training set or None.
        classes: names in the order of the labels.
        image_shape: channels, height, width of a batch's images.
        fingerprint: sha256 over what identifies the data, in segmentation with the sizes of the splits; two runs with
            equal fingerprints saw the same samples under the same labels.
        notes: what a report about this data must say.
        config: how the data were asked for.
        splits: the samples of each split, without the pixels of their images.
        train_unchanged: makes a loader of the training images in order and without augmentation, as val and test are
            evaluated: how far a network fits its training set.
    """

    name: str
    task: str
    train: Loader
    val: Loader | None
    test: Loader
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    fingerprint: str
    notes: tuple[str, ...]
    config: DataConfig
    splits: Mapping[str, Samples]
    train_unchanged: Callable[[], Loader]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)


@dataclass(frozen=True)
class Loading:
    """The making of batches, whatever the data set.

    Args:
        batch_size, eval_batch_size: over all ranks; None = as in training.
        seed: seed of the permutations and the augmentation.
        rank, world_size: this process's share of every batch.
        device, channels_last: where the batches shall be, and their memory format.
        workers: processes that read image files per batch; threads that decode a small set into memory.
        regularizers: changes of training images, in their order; see `data.image_regularizers`.
    """

    batch_size: int
    eval_batch_size: int | None = None
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 - immutable
    channels_last: bool = False
    workers: int = 0
    regularizers: Sequence[Any] = ()

    def batches(self, num_samples: int, training: bool) -> Batches:
        """The batches of a split: shuffled in training, in order in evaluation."""
        size = self.batch_size if training or self.eval_batch_size is None else self.eval_batch_size
        return Batches(num_samples, size, training, self.seed, self.rank, self.world_size)


def assemble(
    data: DataConfig,
    parts: Mapping[str, Samples],
    loader: Callable[[Samples, Batches], Loader],
    loading: Loading,
    *,
    classes: tuple[str, ...],
    image_shape: tuple[int, int, int],
    fingerprint: str,
    notes: Sequence[str],
) -> Data:
    """Put a data set together.

    Args:
        parts: `train`, `val` (may be empty: then there is none) and `test`.
        loader: makes the loader of a part; the batches of training are the shuffled ones.
        classes, image_shape, fingerprint, notes: see `Data`.
    """
    loaders: dict[str, Loader] = {}
    for split, samples in parts.items():
        if split != "val" or len(samples):
            loaders[split] = loader(samples, loading.batches(len(samples), training=split == "train"))
            loaders[split].bad_images.update(samples.left_out)
    return Data(
        name=data.name,
        task=data.task,
        train=loaders["train"],
        val=loaders.get("val"),
        test=loaders["test"],
        classes=classes,
        image_shape=image_shape,
        fingerprint=fingerprint,
        notes=tuple(notes),
        config=data,
        splits={split: samples.without_pixels() for split, samples in parts.items() if split in loaders},
        train_unchanged=lambda: loader(parts["train"], loading.batches(len(parts["train"]), training=False)),
    )
