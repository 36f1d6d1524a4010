"""One optimizer step, over any number of micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.distributed import Ranks, share_statistics
from engine.guard import Guard
from engine.optim import LearningRate, set_lr
from engine.precision import autocast
from engine.seeding import mix, seed_device
from engine.settings import LoopSettings
from engine.state import TrainState
from engine.tasks import Task

# Streams of seeds: what our layers draw from, and what the random layers of a network itself do.
MASKS, OTHERS = 1, 2


class Layers(Protocol):
    """What the loop does with the installed layers (`dropblock.LayerControl`)."""

    def set_progress(self, progress: float) -> None: ...
    def set_seeds(self, seed_of: Callable[[int], int]) -> None: ...
    def take_counts(self) -> dict[str, tuple[int, int]]: ...
    def keep_probs(self, progress: Sequence[float]) -> dict[str, float]: ...
    def expected_drop(self, progress: Sequence[float]) -> dict[str, float]: ...


@dataclass
class OptimizerStep:
    """Forward, backward and the move of the weights; see `engine.loop.Fit` for what it takes.

    Args:
        guard: looks at loss and gradients.
        statistics: the running statistics of the network, which ranks share.
    """

    task: Task
    state: TrainState
    network: nn.Module
    layers: Layers
    lr: LearningRate
    settings: LoopSettings
    ranks: Ranks
    device: torch.device
    guard: Guard
    statistics: list[Tensor]

    def __call__(self, batch: Any, progress: float) -> None:
        """One optimizer step on a batch.

        Args:
            batch: of the task, on the device.
            progress: share of training that is done, in [0, 1]: keep_prob follows from it.
        """
        state, settings, rank = self.state, self.settings, self.ranks.rank
        if batch.size < settings.accumulate:
            raise ValueError(
                f"recipe.accumulate={settings.accumulate}: the {batch.size} samples that a rank has of a batch make no "
                "so many micro-batches"
            )
        if not state.model.training:  # asked first: the walk over all modules takes half a millisecond
            self.network.train()
        set_lr(state.optimizer, self.lr.at(state.step))
        self.layers.set_progress(progress)
        micro_batches = [batch] if settings.accumulate == 1 else batch.split(settings.accumulate)
        for i, micro in enumerate(micro_batches):
            # Masks are a function of where in the run they are used: a resumed run draws the same ones.
            self.layers.set_seeds(partial(mix, settings.seed, MASKS, rank, state.step, i))
            seed_device(mix(settings.seed, OTHERS, rank, state.step, i), self.device)
            with self._without_reduction(i + 1 < len(micro_batches)), autocast(self.device, settings.precision):
                loss, sums = self.task.loss(self.network, micro)
                # Micro-batches may differ by a sample; each counts by its size.
                share = micro.size / batch.size
            self.guard.loss(loss, micro, i)
            state.scaler.scale(loss * share).backward()
            state.window.add(sums, micro.size)
        self._move_weights(batch)
        share_statistics(self.statistics, self.ranks)
        if state.ema is not None:
            state.ema.update_parameters(state.model)
        state.step += 1

    def _move_weights(self, batch: Any) -> None:
        """Check and clip the gradients, and step."""
        optimizer, scaler = self.state.optimizer, self.state.scaler  # which does nothing but in float16
        scaler.unscale_(optimizer)
        self.guard.gradients(batch)
        if self.settings.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.state.model.parameters(), self.settings.grad_clip)
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        self.guard.scaled_step(scale)

    def _without_reduction(self, more_to_come: bool) -> Any:
        """Gradients travel between ranks once per optimizer step, with the last micro-batch."""
        if more_to_come and isinstance(self.network, nn.parallel.DistributedDataParallel):
            return self.network.no_sync()
        return nullcontext()
