"""What a network makes of the same few test samples over a run, for the metrics writer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from engine.distributed import Ranks
from engine.loggers import MetricsWriter
from engine.precision import autocast
from engine.settings import LoopSettings
from engine.state import TrainState
from engine.tasks import Task

TIMES_DRAWN = 8  # evaluations of a run that leave pictures, about


class FixedSamples:
    """The first test samples, kept from the first time that they are drawn.

    Args:
        task: draws; none are kept where it draws nothing.
        settings: epochs, evaluations, precision.
        ranks, device: only the main rank draws.
    """

    def __init__(self, task: Task, settings: LoopSettings, ranks: Ranks, device: torch.device) -> None:
        self.task, self.settings, self.ranks, self.device = task, settings, ranks, device
        self.samples: Any = None

    @torch.no_grad()
    def draw(self, writer: MetricsWriter, loader: Any, network: nn.Module, state: TrainState) -> None:
        """Write the pictures of the epoch that ends, if it is one that leaves some.

        Args:
            loader: of the test split.
            network: in evaluation mode.
        """
        epoch, epochs, every = state.epochs_done + 1, self.settings.epochs, self.settings.eval_every
        every *= max(1, epochs // TIMES_DRAWN // every)
        if not self.task.num_pictures or not self.ranks.is_main or (epoch % every and epoch != epochs):
            return
        if self.samples is None:
            batch = next(loader.epoch(0))
            few = batch.split(-(-batch.size // self.task.num_pictures))[0]
            self.samples = type(few)(**{name: part.clone() for name, part in few.plain().items()})
        with autocast(self.device, self.settings.precision):
            writer.add_images(state.step, "test/pictures", self.task.pictures(network, self.samples))
