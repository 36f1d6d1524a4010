"""What the other rooms see of the data: a batch, a loader, the augmentation of a training image, a data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self

from torch import Tensor

POLICIES = ("imagenet", "cifar10", "svhn")


class Batch:
    """What the batches of every task have in common; each field is a tensor over the B samples.

    images: (B, C, H, W) float32, normalized, on the device.
    indices: (B,) int64 on the CPU, which samples of the split these are.
    """

    images: Tensor
    indices: Tensor  # no fields of a dataclass yet: each task's batch lists its own, in its own order

    @property
    def size(self) -> int:
        """B, the number of samples."""
        return len(self.indices)

    def plain(self) -> dict[str, Tensor]:
        """The tensors by name, as `torch.load(weights_only=True)` can read them back."""
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]

    def split(self, parts: int) -> list[Self]:
        """The batch in micro-batches whose sizes differ by at most one."""
        pieces = {name: tensor.tensor_split(parts) for name, tensor in self.plain().items()}
        return [type(self)(**{name: piece[i] for name, piece in pieces.items()}) for i in range(parts)]


@dataclass(frozen=True)
class ClassificationBatch(Batch):
    """labels: (B,) int64 on the device."""

    images: Tensor
    labels: Tensor
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
class Augment:
    """What happens to a training image.

    Args:
        crop_padding: zeros around a small image before the random crop back to its size.
        flip: mirror left and right with probability 1/2.
        cutout: side of the Cutout square in pixels, 0 = off; one square, its centre anywhere in the image, so it may
            stick out (DeVries and Taylor 2017). Filled with 0 after normalization, the mean colour.
        autoaugment: torchvision's policy `imagenet`, `cifar10` or `svhn`; None = off. Applied after crop and flip and
            before Cutout, the order of the AutoAugment paper (section 4).

    Raises:
        ValueError: for a value out of range.
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0
    autoaugment: str | None = None

    def __post_init__(self) -> None:
        if self.crop_padding < 0 or self.cutout < 0:
            raise ValueError(f"crop_padding and cutout must be 0 or more, not {self.crop_padding} and {self.cutout}")
        if self.autoaugment is not None and self.autoaugment not in POLICIES:
            raise ValueError(f"unknown autoaugment policy '{self.autoaugment}', choose one of {', '.join(POLICIES)}")


@dataclass(frozen=True)
class Data:
    """A data set as the training loop sees it.

    Args:
        train, val, test: the loaders; `test` is the official evaluation set, `val` a part of the training set or None.
        num_classes, classes: how many and which, in the order of the labels.
        image_shape: channels, height, width of a batch's images.
        fingerprint: sha256 over what identifies the data; two runs with equal fingerprints saw the same samples under
            the same labels.
        notes: what a report about this data must say.
    """

    name: str
    train: Loader
    val: Loader | None
    test: Loader
    num_classes: int
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    fingerprint: str
    notes: tuple[str, ...]
