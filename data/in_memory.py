"""Classification data sets that are one uint8 tensor: `fake`, digits, Fashion-MNIST, CIFAR."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from data.augment import Normalize
from data.cifar import cifar10, cifar100
from data.fashion import fashion_mnist
from data.fingerprint import fingerprint
from data.interface import Data
from data.options import Augment, Cut, Loading, Reading, Source
from data.small import Request, Small, digits, fake
from data.splits import Batches, Indices
from data.tensors import TensorLoader

READERS: dict[str, Callable[[Request], Small]] = {
    "digits": digits,
    "fashion_mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fake": fake,
}
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def open_in_memory(name: str, source: Source, cut: Cut, augment: Augment, reading: Reading, loading: Loading) -> Data:
    """Open one of `READERS`; see `data.build.build_data`."""
    augment.refuse(f"is for segmentation and detection, not for {name}", "scale_min", "scale_max", "photometric")
    source.require_known(name)
    found = READERS[name](Request(source.folder, reading.image_size, source.download))
    images, labels = found.train_images, found.train_labels
    train, val = cut(labels)
    if found.mean and found.std:
        statistics = found.mean, found.std
    else:  # also for a run on a subset, so that such runs see the same pixels
        statistics = channel_statistics(images[np.setdiff1d(np.arange(len(images)), val)])
    normalize = Normalize(*statistics, images.shape[3], loading.device)

    def loader(part: Tensor, part_labels: Indices, batches: Batches) -> TensorLoader:
        return TensorLoader(
            part, torch.from_numpy(part_labels), batches, normalize, augment, loading.device, loading.channels_last
        )

    return Data(
        name=name,
        task="classification",
        train=loader(images[train], labels[train], loading.training(len(train))),
        val=loader(images[val], labels[val], loading.evaluation(len(val))) if len(val) else None,
        test=loader(found.test_images, found.test_labels, loading.evaluation(len(found.test_labels))),
        classes=found.classes,
        image_shape=(images.shape[1], images.shape[2], images.shape[3]),
        fingerprint=fingerprint(name, found.classes, train, val, labels, found.test_labels, images, found.test_images),
        notes=found.notes + cut.notes,
    )


def channel_statistics(images: Tensor) -> Statistics:
    """Mean and standard deviation of each channel, of values in [0, 1], exactly, from counts of the 256 levels.

    A channel without variation gets a standard deviation of one level, as one divides by it.

    Args:
        images: (N, C, ...) uint8.
    """
    level = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        share = torch.bincount(images[:, channel].flatten(), minlength=256).double() / images[:, channel].numel()
        mean = float((share * level).sum())
        means.append(mean)
        stds.append(max(float((share * (level - mean) ** 2).sum().sqrt()), 1 / 255))
    return tuple(means), tuple(stds)
