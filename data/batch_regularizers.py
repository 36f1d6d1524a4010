"""Regularizers that change whole training batches, images and targets together: one class each, its options as keyword
arguments.

An instance is called on the device before the network, with a batch and a function of whole numbers that gives 63-bit
seeds; it returns the batch to train on. The seeds are a function of (seed, rank, step, micro-step): a resumed run sees
the same batches. A class may define `install(network)`, called once with the network that is trained: to change feature
maps as well, it hooks the input of the network or the output of a stage there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from data.interface import ClassificationBatch


class Mixup:
    """mixup (Zhang et al. 2018): each image and its target mixed with those of another image of the batch.

    The share of the image itself is drawn from Beta(alpha, alpha), once for the batch; the others are the batch in a
    random order. The loss is that of both labels, weighted by their shares, which is the loss of the mixed target; so
    label smoothing smooths both, as in timm.

    Args:
        alpha: above 0; small ones mix little, 1 is the uniform distribution.
    """

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def __call__(self, batch: ClassificationBatch, seed_of: Callable[..., int]) -> ClassificationBatch:
        # The streams of RandomState are frozen: another release of numpy draws the same.
        draws = np.random.RandomState(seed_of(0) % 2**32)
        share = float(draws.beta(self.alpha, self.alpha))
        others = torch.from_numpy(draws.permutation(batch.size)).to(batch.images.device)
        images = batch.images.mul(share).add_(batch.images[others], alpha=1.0 - share)  # in their memory format
        return replace(batch, images=images, other_labels=batch.labels[others], share=share)


class CutMix:
    """CutMix (Yun et al. 2019): a box of each image replaced by the same box of another image of the batch.

    The box has the batch's share of Beta(alpha, alpha) outside it, its centre anywhere, so that it may stick out: the
    share of the label is that of the pixels that were kept. The others are the batch in a random order.

    Args:
        alpha: above 0; 1 is the uniform distribution.
        probability: share of the batches that are changed.
    """

    def __init__(self, alpha: float, probability: float) -> None:
        self.alpha, self.probability = alpha, probability

    def __call__(self, batch: ClassificationBatch, seed_of: Callable[..., int]) -> ClassificationBatch:
        draws = np.random.RandomState(seed_of(0) % 2**32)
        if draws.random_sample() >= self.probability:
            return batch
        height, width = batch.images.shape[2:]
        rows, columns = self.box(height, width, draws)
        others = torch.from_numpy(draws.permutation(batch.size)).to(batch.images.device)
        images = batch.images.clone()  # in their memory format
        images[:, :, rows, columns] = batch.images[:, :, rows, columns][others]
        pasted = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
        return replace(batch, images=images, other_labels=batch.labels[others], share=1.0 - pasted)

    def box(self, height: int, width: int, draws: np.random.RandomState) -> tuple[slice, slice]:
        """Rows and columns of one box, as the authors' code has it: sides cut to whole pixels, halves as well."""
        cut = float((1.0 - draws.beta(self.alpha, self.alpha)) ** 0.5)
        sides = []
        for size in (height, width):
            center, half = int(draws.randint(size)), int(size * cut) // 2
            sides.append(slice(max(0, center - half), min(size, center + half)))
        return sides[0], sides[1]


class MixupCutMix:
    """mixup or CutMix, one of the two for each batch, as many recipes since DeiT (Touvron et al. 2021) have it.

    Args:
        mixup_alpha, cutmix_alpha: see `Mixup` and `CutMix`.
        switch: probability of a batch to get CutMix.
    """

    def __init__(self, mixup_alpha: float, cutmix_alpha: float, switch: float) -> None:
        self.mixup, self.cutmix, self.switch = Mixup(mixup_alpha), CutMix(cutmix_alpha, 1.0), switch

    def __call__(self, batch: ClassificationBatch, seed_of: Callable[..., int]) -> ClassificationBatch:
        # A seed of its own, so that the choice says nothing about the draws of what is chosen.
        cut = np.random.RandomState(seed_of(1) % 2**32).random_sample() < self.switch
        return (self.cutmix if cut else self.mixup)(batch, seed_of)


BATCH_REGULARIZERS: dict[str, Callable[..., Any]] = {
    "cutmix": CutMix,
    "mixup": Mixup,
    "mixup_cutmix": MixupCutMix,
}
