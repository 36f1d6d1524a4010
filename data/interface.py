"""What other packages see of the data: batches of the three tasks, a loader, a data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self, cast

from torch import Tensor

IGNORE = 255  # the class of pixels that count neither in the loss nor in a metric
MAX_BOXES = 100  # of an image, in a batch


class Batch:
    """What the batches of all tasks share; each of them is a frozen dataclass of tensors over B images.

    images: (B, C, H, W) float32, normalized, on the device.
    indices: (B,) int64 on the CPU, which samples of the split these are.
    """

    images: Tensor
    indices: Tensor  # no fields of a dataclass here: each task's batch lists its own, in its own order

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.images)

    def split(self, parts: int) -> list[Self]:
        """Nearly equal parts, in order, like `torch.tensor_split`; a part may be empty."""
        split = {name: value.tensor_split(parts) for name, value in self.plain().items()}
        return [type(self)(**{name: values[i] for name, values in split.items()}) for i in range(parts)]

    def plain(self) -> dict[str, Tensor]:
        """The fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(cast(Any, self))}


@dataclass(frozen=True)
class ClassificationBatch(Batch):
    """Images ready for the network, and their classes.

    images: (B, C, H, W) float32, normalized, on the device.
    labels: (B,) int64 on the device.
    indices: (B,) int64 on the CPU, which samples of the split these are.
    """

    images: Tensor
    labels: Tensor
    indices: Tensor


@dataclass(frozen=True)
class SegmentationBatch(Batch):
    """Images ready for the network, and the class of each pixel.

    images: (B, C, H, W) float32, normalized, on the device; padding is 0, the mean colour.
    masks: (B, H, W) int64 on the device, `IGNORE` where a pixel has no class, padding included.
    indices: (B,) int64 on the CPU, which samples of the split these are.
    """

    images: Tensor
    masks: Tensor
    indices: Tensor


@dataclass(frozen=True)
class DetectionBatch(Batch):
    """Images ready for the network, and the objects in them.

    images: (B, 3, S, S) float32, normalized, on the device; padding is 0, the mean colour.
    boxes: (B, 100, 4) float32 on the device, x1 y1 x2 y2 in pixels of the batch's image, padded with -1.
    labels: (B, 100) int64 on the device, padded with -1.
    scales: (B,) float64 on the CPU, pixels of the batch's image per pixel of the original image.
    image_ids: (B,) int64 on the CPU, the ids that `loader.truth` knows the images by.
    indices: (B,) int64 on the CPU, which samples of the split these are.
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
        task: `classification`, `segmentation` or `detection`: which batches the loaders yield.
        train, val, test: the loaders; `test` is the official evaluation set, `val` a part of the training set or None.
        classes: in the order of the labels.
        image_shape: channels, height, width of a batch's images.
        fingerprint: sha256 over what identifies the data, in segmentation with the sizes of the splits; two runs with
            equal fingerprints saw the same samples under the same labels.
        notes: what a report about this data must say.
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

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)
