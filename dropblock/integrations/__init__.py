"""Layers in a network that another library's trainer trains: what the callbacks of this folder share.

Each callback's module imports its library: `dropblock.integrations.lightning`, `dropblock.integrations.transformers`.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dropblock.control import LayerControl
from dropblock.foreign import declare_sites, install_into
from dropblock.functional import BLOCK_SIZE, KEEP_PROB
from dropblock.layers import DropBlock2d, installed_layers
from dropblock.places import Place
from dropblock.schedule import KeepProbSchedule
from dropblock.sites import Site
from dropblock.suggestion import suggest


def in_groups_3_and_4(site: Site) -> bool:
    """The paper's best on ImageNet."""
    return site.group in (3, 4)


class TrainedLayers:
    """DropBlock in the network of a trainer: installed, scheduled by the trainer's steps, measured.

    A network that has layers keeps them, of whatever kind, and they are scheduled. A mask is a function of
    `torch.initial_seed()`, rank, step and batch, so a resumed run goes on with the masks it would have had, and ranks
    differ.

    Args:
        example: an input of the network like those of training, (1, channels, height, width).
        keep_prob: target of the last group, in [0, 1].
        block_size: side of the dropped squares, see `DropBlock2d`.
        network: module path of the network within the module that is trained, "" if it is that module itself.
        places: None takes those that are known or that the network declares, otherwise what `suggest` finds.
        sites: site -> True for those that get a layer.
        schedule: further arguments of `KeepProbSchedule`, such as `schedule="linear"` or `group_divisor=4`.
    """

    def __init__(
        self,
        example: Tensor,
        keep_prob: float = KEEP_PROB,
        block_size: int = BLOCK_SIZE,
        *,
        network: str = "",
        places: Sequence[Place] | None = None,
        sites: Callable[[Site], bool] = in_groups_3_and_4,
        **schedule: Any,
    ) -> None:
        self.example, self.keep_prob, self.block_size, self.schedule = example, keep_prob, block_size, schedule
        self.network, self.places, self.sites = network, places, sites
        self.trained: nn.Module | None = None
        self.layers: LayerControl  # whose `table` says where the layers are

    def install(self, trained: nn.Module) -> None:
        """Put the layers into the network, once; before it is wrapped or compiled."""
        if self.trained is trained:
            return
        network = trained.get_submodule(self.network)
        example = self.example.to(next(network.parameters()))
        if installed_layers(network):
            given = {"block_size": self.block_size != BLOCK_SIZE, "places": self.places is not None}
            given["sites"] = self.sites is not in_groups_3_and_4
            if ignored := [name for name, changed in given.items() if changed]:
                warnings.warn(
                    f"the network's own layers are kept, without {' and '.join(ignored)} of the callback",
                    stacklevel=2,
                )
        else:
            places = self.places
            if places is None:
                try:
                    declare_sites(network)
                except ValueError:
                    places = suggest(network, example)
            install_into(network, lambda site: DropBlock2d(block_size=self.block_size), places, self.sites)
        schedule = KeepProbSchedule(network, self.keep_prob, **self.schedule)
        self.layers = LayerControl(network, example, {"dropblock": schedule})
        self.trained, self.seed = trained, torch.initial_seed()

        # Seeds and counters are each rank's own: DistributedDataParallel is not to send those of the first to all.
        layers = [f"{path}." for path, module in trained.named_modules() if module in self.layers.layers]
        ours = [name for name, _ in trained.named_buffers() if name.startswith(tuple(layers))]
        ignored = getattr(trained, "_ddp_params_and_buffers_to_ignore", [])
        nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(trained, [*ignored, *ours])

    def before_batch(self, step: int, steps: float, rank: int, batch: int) -> None:
        """Set keep_prob and the seeds of the masks.

        Args:
            step: optimizer steps done.
            steps: those of the whole run.
            rank: number of this process.
            batch: number of the batch within the epoch, or within the step.
        """
        if not 0 < steps < math.inf:
            raise ValueError("the schedule needs the length of the run: give the trainer max_steps or max_epochs")
        self.layers.set_progress(min(step / steps, 1.0))
        where = f"{self.seed} {rank} {step} {batch}"
        self.layers.set_seeds(lambda layer: random.Random(f"{where} {layer}").getrandbits(62))

    def values(self) -> dict[str, float]:
        """keep_prob, and the asked, expected and measured drop of every group since the last call."""
        found = {"keep_prob/target": self.layers.schedules["dropblock"].now}
        for row in self.layers.drops():
            shares = {"asked": row.asked, "expected": row.expected, "measured": row.measured}
            found |= {f"drop/{name}/{row.group}": share for name, share in shares.items() if share is not None}
        return found
