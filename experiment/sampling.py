"""Monte Carlo over the masks of a finished network: the mean of its predictions, and how much they disagree.

Gal and Ghahramani (2016, arXiv 1506.02142) with dropout, Deepshikha et al. (2021, arXiv 2108.03614) with DropBlock. The
layers drop as in training at their full rate, everything else is in evaluation mode, BatchNorm included. The mask of an
image is drawn from (seed, sample, image), so the result does not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dropblock import DropLayer, LayerControl
from engine.seeding import mix
from engine.tasks import Evaluator, Table, Task
from engine.tasks.classification import BINS, binned, calibration_error
from engine.tasks.segmentation import IGNORE, subsampled

SAMPLES = 4  # stream of seeds, beside those of engine/loop.py
SCORES = ("max_softmax", "entropy", "mutual_information")  # of an image: how sure the network is, and how unsure


class Sampling:
    """Stands in for a task in one pass over a split: its metrics of the mean of some predictions for each image.

    Args:
        task: classification or segmentation.
        layers: those of the network, to be drawn anew for each sample; None: one prediction, of the network as it is.
        samples: how many predictions are averaged.
        seed: decides the masks.
        bar: advanced after every forward pass.
    """

    def __init__(
        self, task: Task, layers: LayerControl | None = None, samples: int = 1, seed: int = 0, bar: Any = None
    ) -> None:
        self.task, self.layers, self.samples, self.seed = task, layers, samples, seed
        self.bar = tqdm(disable=True) if bar is None else bar
        self.seen: SampledEvaluator  # of the last pass

    def evaluator(self, loader: Any) -> SampledEvaluator:
        self.seen = SampledEvaluator(self, self.task.evaluator(loader))
        return self.seen

    def mean_prediction(self, network: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """The mean of the predicted probabilities, (B, K, ...) float64, and the mean of their entropies, (B, ...)."""
        mean: Any = 0.0
        entropies: Any = 0.0
        for sample in range(self.samples):
            if self.layers is not None:
                self.layers.set_image_seeds(partial(mix, self.seed, SAMPLES, sample), batch.indices)
            logs = network(batch.images).double().log_softmax(1)
            mean = mean + logs.exp() / self.samples
            entropies = entropies - (logs.exp() * logs).sum(1) / self.samples
            self.bar.update()
        return mean, entropies


class SampledEvaluator:
    """The task's own evaluator of the mean prediction; entropy and mutual information in nats, of each image.

    entropy: H(mean p), how unsure the mean is. mutual_information: H(mean p) - mean H(p), the part of it that the
    masks disagree about (Houlsby et al. 2011, arXiv 1112.5745; Gal 2016). Of a segmentation they are means over the
    labelled pixels, at the stride of the logits as the loss is, and so is its calibration error.
    """

    def __init__(self, sampling: Sampling, inner: Evaluator) -> None:
        self.sampling, self.inner = sampling, inner
        self.scores = torch.zeros(0, len(SCORES), dtype=torch.float64)  # of every image; of a segmentation its mean
        self.sums = torch.zeros(len(SCORES), dtype=torch.float64)  # over labelled images or pixels
        self.bins = torch.zeros(3, BINS, dtype=torch.float64)

    def update(self, network: nn.Module, batch: Any) -> None:
        mean, entropies = self.sampling.mean_prediction(network, batch)
        logs = mean.clamp(min=torch.finfo(torch.float32).tiny).log()
        self.inner.update(lambda _: logs, batch)  # type: ignore[arg-type] # softmax(log p) is p
        entropy = -(mean * logs).sum(1)
        confidence, predicted = mean.max(1)
        scores = torch.stack([confidence, entropy, (entropy - entropies).clamp(min=0)], dim=-1)

        # One prediction an image, or one at every position of the logits, of which those with a label count.
        if hasattr(batch, "masks"):
            labels = subsampled(batch.masks, logs)
            counted = labels != IGNORE
        else:
            labels = batch.labels
            counted = torch.ones_like(labels, dtype=torch.bool)
        self.sums += scores[counted].sum(0).cpu()
        self.bins += binned(confidence[counted], (predicted == labels)[counted]).cpu()
        self.scores = torch.cat([self.scores, scores.view(len(scores), -1, len(SCORES)).mean(1).cpu()])

    def state(self) -> Any:
        return self.inner.state(), self.scores, self.sums, self.bins

    def merge(self, states: list[Any]) -> None:
        inner, scores, sums, bins = zip(*states, strict=True)
        self.inner.merge(list(inner))
        self.scores, self.sums, self.bins = torch.cat(scores), torch.stack(sums).sum(0), torch.stack(bins).sum(0)

    def metrics(self) -> dict[str, float]:
        """The task's, the calibration error if it is none of these, entropy and mutual information."""
        means = dict(zip(SCORES, (self.sums / self.bins[0].sum()).tolist(), strict=True))
        unsure = {name: means[name] for name in SCORES[1:]}
        return {"ece": calibration_error(self.bins), **self.inner.metrics(), **unsure}

    def tables(self) -> list[Table]:
        return self.inner.tables()


@contextmanager
def remembered(network: nn.Module) -> Iterator[None]:
    """Meanwhile, compute the part of a network that lies before its layers once a batch, not once a sample.

    A part of several modules without a layer, such as the first groups of a ResNet, is a function of its input: given
    the same again, it returns what it returned before.
    """

    def random(module: nn.Module) -> bool:
        return any(isinstance(inner, DropLayer) for inner in module.modules())

    parts = [part for module in network.modules() if random(module) for part in module.children() if not random(part)]
    parts = [part for part in parts if sum(any(True for _ in m.parameters(recurse=False)) for m in part.modules()) > 1]
    parts = [*dict.fromkeys(parts)]  # a module may be the part of several
    for part in parts:
        part.forward = Remembered(part.forward)
    try:
        yield
    finally:  # else the part would hold itself, and its last maps
        for part in parts:
            del part.forward


class Remembered:
    """A function that knows its last value, where one tensor goes in and one comes out."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.known: tuple[Tensor, Tensor, tuple[int, int]] | None = None

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        if len(inputs) != 1 or options or not isinstance(inputs[0], Tensor):
            return self.function(*inputs, **options)
        x = inputs[0]
        if self.known is not None:
            before, y, versions = self.known
            untouched = (before._version, y._version) == versions  # nothing was done to them in place
            if untouched and before.shape == x.shape and torch.equal(before, x):
                return y
        y = self.function(x)
        self.known = (x, y, (x._version, y._version)) if isinstance(y, Tensor) else None
        return y
