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


BATCH_REGULARIZERS: dict[str, Callable[..., Any]] = {"mixup": Mixup}
