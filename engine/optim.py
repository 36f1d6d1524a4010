"""The optimizer's parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


def build_sgd(
    model: nn.Module, *, lr: float, momentum: float, nesterov: bool, weight_decay: float
) -> torch.optim.Optimizer:
    """SGD with weight decay on all but normalization layers, the classifier's bias included (as the released code)."""
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    plain = {id(p) for m in model.modules() if isinstance(m, norms) for p in m.parameters(recurse=False)}
    decayed = [p for p in model.parameters() if id(p) not in plain]
    exempt = [p for p in model.parameters() if id(p) in plain]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0}]
    nesterov = nesterov and momentum > 0
    return torch.optim.SGD([g for g in groups if g["params"]], lr=lr, momentum=momentum, nesterov=nesterov)


@dataclass(frozen=True)
class LearningRate:
    """Learning rate before optimizer step t of T: linear warm-up from 0, then the schedule.

    Args:
        peak: the rate after warm-up.
        schedule: `cosine` to 0 at the end, `step` (times `decay` at each milestone), or `constant`.
        total_steps, steps_per_epoch: length of the run.
        warmup_epochs: length of the warm-up; may be a fraction.
        milestones: epochs at which `step` decays.
    """

    peak: float
    schedule: str
    total_steps: int
    steps_per_epoch: int
    warmup_epochs: float = 0.0
    milestones: Sequence[float] = ()
    decay: float = 0.1

    def at(self, step: int) -> float:
        warmup = self.warmup_epochs * self.steps_per_epoch
        if step < warmup:
            return self.peak * (step + 1) / (warmup + 1)
        if self.schedule == "step":
            return self.peak * self.decay ** bisect.bisect_right(sorted(self.milestones), step / self.steps_per_epoch)
        if self.schedule == "cosine":
            done = (step - warmup) / max(1.0, self.total_steps - warmup)
            return self.peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        if self.schedule == "constant":
            return self.peak
        raise ValueError(f"unknown lr_schedule '{self.schedule}', choose one of cosine, step, constant")


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
