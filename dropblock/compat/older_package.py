"""`DropBlock2D`, `DropBlock3D` and `LinearScheduler` of the distribution `dropblock` on PyPI (0.3.0).

All channels of a sample share a mask, as there. The rate is the one asked for: that package takes p / block_size^2 for
gamma with seeds everywhere, which drops 7 % for 10 % on 14x14 maps with block 7. Its three-axis class is a subclass of
its two-axis class; here they are sisters.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from dropblock import layers
from dropblock.arguments import check_maps
from dropblock.compat.shared_mask import drawn_mask, drop_rate, masked


class _DropBlock(layers._DropBlock):
    drop_prob = drop_rate

    def __init__(self, drop_prob: float, block_size: int) -> None:
        super().__init__(drop_prob=drop_prob, block_size=block_size)

    def drop(self, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        check_maps(type(self).__name__, x, self.axes)
        mask, kept = drawn_mask(x, self.keep_prob, self.block_size, seed, shared=True)
        return masked(x, mask), kept

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob}, block_size={self.block_size}"


class DropBlock2D(_DropBlock):
    """Drop blocks of (N, C, H, W) maps, the same in all channels; `drop_prob` is the share to drop, in [0, 1]."""

    axes = 2


class DropBlock3D(_DropBlock):
    """Drop blocks of (N, C, D, H, W) volumes, the same in all channels; `drop_prob` is the share to drop, in [0, 1]."""

    axes = 3


class LinearScheduler(nn.Module):
    """A layer whose `drop_prob` goes from start_value to stop_value in nr_steps equal steps; call `step()` for each.

    The first `step()` sets start_value; before it the layer has its own rate. After the last one the rate stays.
    `KeepProbSchedule` does the same for all layers of a network, by share of the training.
    """

    def __init__(self, dropblock: nn.Module, start_value: float, stop_value: float, nr_steps: int) -> None:
        super().__init__()
        self.dropblock: Any = dropblock
        self.i = 0
        values = torch.linspace(start_value, stop_value, int(nr_steps), dtype=torch.float64)
        self.drop_values: list[float] = values.tolist()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.dropblock(x)
        return y

    def step(self) -> None:
        """Set the next rate."""
        if self.i < len(self.drop_values):
            self.dropblock.drop_prob = self.drop_values[self.i]
        self.i += 1


def warn_of_namesake() -> None:
    """A warning if the older distribution is installed beside this one: both write into the same folder."""
    try:
        version = importlib.metadata.version("dropblock")
    except importlib.metadata.PackageNotFoundError:
        return
    warnings.warn(
        f"the distribution dropblock {version} is installed too and shares this import name: "
        "`pip uninstall dropblock`, then install this one again",
        stacklevel=3,
    )
