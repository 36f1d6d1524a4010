"""A network, a regularizer and a schedule of your own, in a small sweep with its report.

    python examples/own_parts.py [--epochs 8] [--seeds 3]

Nothing in the packages is changed. Start the script twice at once and the two share the runs.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dropblock import DropBlock2d, Site, apply_mask, drop_block_counted
from experiment import plan_of, register_layer, register_model, register_schedule, run_sweep


class SmallNet(nn.Module):
    """Three stages of a convolution each. A `Site` is where a layer may sit: group, branch, what precedes it."""

    def __init__(self, num_classes: int, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.stages, channels = nn.Sequential(), in_channels
        for group in (2, 3, 4):
            wider = width * 2 ** (group - 2)
            stage = [nn.Conv2d(channels, wider, 3, 2, 1, bias=False), nn.BatchNorm2d(wider), nn.ReLU()]
            self.stages.append(nn.Sequential(*stage, Site(group, "conv", "activation")))
            channels = wider
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stages(x).mean((2, 3)))


class SharedDropBlock(DropBlock2d):
    """DropBlock with one mask for all channels of a sample; the paper found it worse than one for each channel."""

    def drop(self, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        """The output, and how many units of `x` it keeps; a function of the seed alone, so that a run can resume."""
        one_channel = torch.ones_like(x[:, :1])
        mask, _ = drop_block_counted(one_channel, keep_prob=self.keep_prob, block_size=self.block_size, seed=seed)
        return apply_mask(x, (mask != 0).expand_as(x))  # scaled in float32 whatever x is, and 0 where x is NaN


def slow_start(progress: float) -> float:
    """Share of the drop rate at this share of the run."""
    return 1.0 - math.cos(math.pi * progress / 2)


def main(*overrides: str, epochs: int = 8, seeds: int = 3) -> Path:
    """Train everything; returns the directory of the sweep."""
    register_model("small_net", SmallNet)
    label = "DropBlock, shared mask"
    register_layer("shared_dropblock", SharedDropBlock, keep_prob=0.9, block_size=3, group_divisor=4.0, label=label)
    register_schedule("slow_start", slow_start)

    plans = [
        plan_of("model=small_net", f"epochs={epochs}", f"seed={seed + 1}", "progress=false", *rows, *overrides)
        for seed in range(seeds)
        for rows in (
            ["regularizer=none"],
            ["regularizer=dropblock", "block_size=3", "skip=false"],
            ["regularizer=shared_dropblock"],
            ["regularizer=shared_dropblock", "schedule=slow_start"],
        )
    ]
    return run_sweep(plans, "own_parts")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    sweep = main(epochs=given.epochs, seeds=given.seeds)

    from scripts.report import main as report

    sys.exit(report([str(sweep)]))
