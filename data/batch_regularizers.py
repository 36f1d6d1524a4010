"""Regularizers that change whole training batches, images and targets together: one class each, its options as keyword
arguments.

An instance is called on the device before the network, with a batch and a function of whole numbers that gives 63-bit
seeds; it returns the batch to train on. The seeds are a function of (seed, rank, step, micro-step): a resumed run sees
the same batches. A class may define `install(network)`, called once with the network that is trained: to change feature
maps as well, it hooks the input of the network or the output of a stage there.

All of these mix each image x with another one of the batch, w x + (1 - w) x', and so its target: the share of its own
label is the mean of w over its pixels. They differ in w, and in the place of the network that x is taken from.
"""

from __future__ import annotations

import difflib
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from data.draws import on_device
from data.interface import ClassificationBatch

Weights = NDArray[np.float64]  # w, (B or 1, 1, H or 1, W or 1), in [0, 1]
INPUT = "input"  # of the network, among the places of hidden states
TOGETHER = ("batch", "image")


class Mixing:
    """Images mixed with those of the batch in a random order; a subclass draws the weights.

    The loss is that of both labels, weighted by their shares, which is the loss of the mixed target; so label smoothing
    smooths both, as in timm.

    Args:
        together: what shares one draw of weights: `batch`, as in the papers' code, or `image`.
    """

    def __init__(self, together: str = "batch") -> None:
        if together not in TOGETHER:
            raise ValueError(f"unknown together '{together}', choose one of {', '.join(TOGETHER)}")
        self.together = together

    def weights(self, count: int, height: int, width: int, draws: np.random.RandomState) -> Weights:
        """Weights for `count` images."""
        raise NotImplementedError

    def draw(self, batch: ClassificationBatch, size: Sequence[int], seed_of: Callable[..., int]) -> tuple[Weights, Any]:
        """The weights for maps of this height and width, and the numbers (B,) of the other images."""
        # The streams of RandomState are frozen: another release of numpy draws the same.
        draws = np.random.RandomState(seed_of(0) % 2**32)
        weights = self.weights(batch.size if self.together == "image" else 1, size[0], size[1], draws)
        return weights, on_device(draws.permutation(batch.size), batch.images.device)

    def __call__(self, batch: ClassificationBatch, seed_of: Callable[..., int]) -> ClassificationBatch:
        weights, others = self.draw(batch, batch.images.shape[2:], seed_of)
        if weights.size == 1:
            share = weights.item()
            images = batch.images.mul(share).add_(batch.images[others], alpha=1.0 - share)  # in their memory format
        else:
            images = mixed(batch.images, others, on_device_of(batch, weights))
        return replace(with_targets(batch, weights, others), images=images)


def mixed(x: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    """(B, C, H, W) maps times their weights, plus those of the others times the rest; in the memory format of x."""
    return torch.lerp(x, x[others], (1.0 - weights).to(x.dtype))


def on_device_of(batch: ClassificationBatch, values: Weights) -> Tensor:
    return on_device(values.astype(np.float32), batch.images.device)


def with_targets(batch: ClassificationBatch, weights: Weights, others: Tensor) -> ClassificationBatch:
    """The batch with the targets that belong to these weights; its images stay."""
    shares = weights.mean((1, 2, 3))
    share = shares.item() if len(weights) == 1 else on_device_of(batch, shares)
    return replace(batch, other_labels=batch.labels[others], share=share)


class Mixup(Mixing):
    """mixup (Zhang et al. 2018): the same weight for all pixels, drawn from Beta(alpha, alpha).

    Args:
        alpha: above 0; small ones mix little, 1 is the uniform distribution.
        together: see `Mixing`.
    """

    def __init__(self, alpha: float, together: str = "batch") -> None:
        super().__init__(together)
        self.alpha = alpha

    def weights(self, count: int, height: int, width: int, draws: np.random.RandomState) -> Weights:
        return draws.beta(self.alpha, self.alpha, (count, 1, 1, 1))


class CutMix(Mixing):
    """CutMix (Yun et al. 2019): weight 0 in a box, which the other image fills, and 1 outside.

    The box has the share of Beta(alpha, alpha) outside it, its centre anywhere, so that it may stick out: the share of
    the label is that of the pixels that were kept.

    Args:
        alpha: above 0; 1 is the uniform distribution.
        probability: share of the batches that are changed; of the images, where these draw for themselves.
        together: see `Mixing`.
    """

    def __init__(self, alpha: float, probability: float, together: str = "batch") -> None:
        super().__init__(together)
        self.alpha, self.probability = alpha, probability

    def weights(self, count: int, height: int, width: int, draws: np.random.RandomState) -> Weights:
        weights = np.ones((count, 1, height, width))
        for own in weights:
            if draws.random_sample() < self.probability:
                rows, columns = self.box(height, width, draws)
                own[:, rows, columns] = 0.0
        return weights

    def box(self, height: int, width: int, draws: np.random.RandomState) -> tuple[slice, slice]:
        """Rows and columns of one box, as the authors' code has it: sides cut to whole pixels, halves as well."""
        cut = float((1.0 - draws.beta(self.alpha, self.alpha)) ** 0.5)
        sides = []
        for size in (height, width):
            center, half = int(draws.randint(size)), int(size * cut) // 2
            sides.append(slice(max(0, center - half), min(size, center + half)))
        return sides[0], sides[1]


class MixupCutMix(Mixing):
    """mixup or CutMix, one of the two for each batch, as many recipes since DeiT (Touvron et al. 2021) have it.

    Args:
        mixup_alpha, cutmix_alpha: see `Mixup` and `CutMix`.
        switch: probability of a batch to get CutMix; of an image, where these draw for themselves.
        together: see `Mixing`.
    """

    def __init__(self, mixup_alpha: float, cutmix_alpha: float, switch: float, together: str = "batch") -> None:
        super().__init__(together)
        self.switch = switch
        self.mixup, self.cutmix = Mixup(mixup_alpha, together), CutMix(cutmix_alpha, 1.0, together)

    def draw(self, batch: ClassificationBatch, size: Sequence[int], seed_of: Callable[..., int]) -> tuple[Weights, Any]:
        # A seed of its own, so that the choice says nothing about the draws of what is chosen.
        cut = np.random.RandomState(seed_of(1) % 2**32).random_sample(batch.size) < self.switch
        if self.together == "batch":
            return (self.cutmix if cut[0] else self.mixup).draw(batch, size, seed_of)
        weights, others = self.mixup.draw(batch, size, seed_of)
        boxes, _ = self.cutmix.draw(batch, size, partial(seed_of, 2))
        return np.where(cut[:, None, None, None], boxes, weights), others


class Hidden:
    """A hidden state of the network mixed instead of the images; its place is drawn for each batch.

    Whole states are mixed, before anything else reads them, and not at the sites of layers: those lie on the branches
    of a block, and would leave the other branch as it is.

    Args:
        mixing: the weights.
        places: `input`, the images themselves, or paths of modules of the network, whose output is mixed: (B, C, H, W)
            maps. One that is listed twice is drawn twice as often.

    Raises:
        ValueError: for no list of places; or, once a network is there, a place that it does not have.
    """

    def __init__(self, mixing: Mixing, places: Sequence[str]) -> None:
        if isinstance(places, str) or not places:
            raise ValueError(f"places={places}: name one or more, such as [{INPUT}, layer1]")
        self.mixing, self.places = mixing, list(places)

    def install(self, network: nn.Module) -> None:
        # The hooks below hold this object: the network itself would hold itself, and stay after its run.
        self.network: Callable[[], Any] = weakref.ref(network)
        self.place = INPUT
        self.sizes: dict[torch.Size, dict[str, torch.Size]] = {}  # of images -> of maps, by place
        modules = dict(network.named_modules())
        for place in dict.fromkeys(self.places):  # one hook each: two would mix twice
            if place != INPUT and place not in modules:
                near = difflib.get_close_matches(place, modules) or [name for name, _ in network.named_children()]
                raise ValueError(f"places: {type(network).__name__} has no module '{place}'; near: {', '.join(near)}")
            if place != INPUT:
                modules[place].register_forward_hook(partial(self._mix, place))

    def __call__(self, batch: ClassificationBatch, seed_of: Callable[..., int]) -> ClassificationBatch:
        sizes = self._sizes(batch.images)
        self.place = self.places[np.random.RandomState(seed_of(1) % 2**32).randint(len(self.places))]
        if self.place == INPUT:
            return self.mixing(batch, seed_of)
        weights, self.others = self.mixing.draw(batch, sizes[self.place], seed_of)
        self.weights = on_device_of(batch, weights)
        return with_targets(batch, weights, self.others)

    def _mix(self, place: str, module: nn.Module, inputs: Any, maps: Tensor) -> Tensor:
        """The hook of a place. What is mixed stays until the next batch: a checkpointed block is computed again."""
        return mixed(maps, self.others, self.weights) if module.training and place == self.place else maps

    def _sizes(self, images: Tensor) -> dict[str, torch.Size]:
        """Height and width of the maps at each place, which the weights are drawn for: one image shows them."""
        if images.shape[1:] not in self.sizes:
            seen: dict[str, list[Any]] = {place: [] for place in self.places if place != INPUT}
            network = self.network()
            hooks = [
                network.get_submodule(place).register_forward_hook(lambda *call, own=own: own.append(call[2]))
                for place, own in seen.items()
            ]
            training = network.training
            with torch.no_grad():
                network.eval()(images[:1])
            network.train(training)
            for hook in hooks:
                hook.remove()
            for place, maps in seen.items():
                if len(maps) != 1 or not isinstance(maps[0], Tensor) or maps[0].ndim != 4:
                    raise ValueError(f"places: '{place}' does not give feature maps, once for a batch")
            self.sizes[images.shape[1:]] = {place: maps[0].shape[2:] for place, maps in seen.items()}
        return self.sizes[images.shape[1:]]


class ManifoldMixup(Hidden):
    """Manifold mixup (Verma et al. 2019): mixup of a hidden state; see `Mixup` and `Hidden`."""

    def __init__(self, alpha: float, places: Sequence[str], together: str = "batch") -> None:
        super().__init__(Mixup(alpha, together), places)


class FeatureCutMix(Hidden):
    """Feature CutMix (Yun et al. 2019, section 4.1.1): CutMix of a hidden state, the box drawn on its map.

    See `CutMix` and `Hidden`.
    """

    def __init__(self, alpha: float, probability: float, places: Sequence[str], together: str = "batch") -> None:
        super().__init__(CutMix(alpha, probability, together), places)


BATCH_REGULARIZERS: dict[str, Callable[..., Any]] = {
    "cutmix": CutMix,
    "feature_cutmix": FeatureCutMix,
    "manifold_mixup": ManifoldMixup,
    "mixup": Mixup,
    "mixup_cutmix": MixupCutMix,
}
