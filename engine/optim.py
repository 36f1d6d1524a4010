"""The optimizer's parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

OPTIMIZERS = ("sgd", "adamw", "rmsprop")
LR_SCHEDULES = ("cosine", "step", "exponential", "halving", "constant")


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on all but normalization layers, the classifier's bias included (as the released code)."""
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    plain = {id(p) for m in model.modules() if isinstance(m, norms) for p in m.parameters(recurse=False)}
    decayed = [p for p in model.parameters() if id(p) not in plain]
    exempt = [p for p in model.parameters() if id(p) in plain]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    name: str, model: nn.Module, *, lr: float, momentum: float, nesterov: bool, weight_decay: float
) -> torch.optim.Optimizer:
    """The optimizer of a recipe.

    Args:
        name: `sgd`; `adamw` (decoupled weight decay; `momentum` is its beta1, beta2 is 0.999); `rmsprop` as the
            AmoebaNet code configures it (decay 0.9, epsilon 1).
        model: whose parameters it moves; weight decay spares normalization layers.

    Raises:
        ValueError: for an unknown name.
    """
    groups = decay_groups(model, weight_decay)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov and momentum > 0)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999))
    if name == "rmsprop":
        return RMSpropTF(groups, lr=lr, momentum=momentum)
    raise ValueError(f"unknown optimizer '{name}', choose one of {', '.join(OPTIMIZERS)}")


class RMSpropTF(torch.optim.Optimizer):
    """RMSProp as TensorFlow computes it, which is not torch's: epsilon stands inside the root, the mean of squares
    starts at 1, and the learning rate enters the momentum buffer. With an epsilon of 1 the two differ by far.

        mean <- decay mean + (1 - decay) g^2,   buffer <- momentum buffer + lr g / sqrt(mean + epsilon)
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.9, decay: float = 0.9, epsilon: float = 1.0) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "decay": decay, "epsilon": epsilon, "weight_decay": 0.0}
        )

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["mean"], state["buffer"] = torch.ones_like(p), torch.zeros_like(p)
                gradient = p.grad.add(p, alpha=group["weight_decay"])
                state["mean"].lerp_(gradient.square(), 1 - group["decay"])
                update = gradient.div_((state["mean"] + group["epsilon"]).sqrt_())
                state["buffer"].mul_(group["momentum"]).add_(update, alpha=group["lr"])
                p.sub_(state["buffer"])


@dataclass(frozen=True)
class LearningRate:
    """Learning rate before optimizer step t of T: linear warm-up, then the schedule.

    Args:
        peak: the rate after warm-up.
        schedule: `cosine` to 0 at the end; `step`, times `decay` at each milestone; `exponential`, times `decay`
            every `decay_epochs`; `halving`, times `decay` whenever the remaining epochs have halved; `constant`.
        total_steps, steps_per_epoch: length of the run.
        warmup_epochs: length of the warm-up; may be a fraction.
        warmup_from: the rate of the first step. From 0 the warm-up counts one step ahead, so that no step is idle.
        milestones: epochs at which `step` decays.
    """

    peak: float
    schedule: str
    total_steps: int
    steps_per_epoch: int
    warmup_epochs: float = 0.0
    warmup_from: float = 0.0
    milestones: Sequence[float] = ()
    decay: float = 0.1
    decay_epochs: float = 1.0

    def at(self, step: int) -> float:
        """The learning rate of optimizer step `step`, 0 ... total_steps - 1.

        Raises:
            ValueError: for an unknown schedule.
        """
        warmup = self.warmup_epochs * self.steps_per_epoch
        if step < warmup:
            if not self.warmup_from:
                return self.peak * (step + 1) / (warmup + 1)
            return self.warmup_from + (self.peak - self.warmup_from) * step / warmup
        if self.schedule == "step":
            return self.peak * self.decay ** bisect.bisect_right(sorted(self.milestones), step / self.steps_per_epoch)
        if self.schedule == "cosine":
            done = (step - warmup) / max(1.0, self.total_steps - warmup)
            return self.peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        if self.schedule == "exponential":
            return self.peak * self.decay ** math.floor(step / self.steps_per_epoch / self.decay_epochs)
        if self.schedule == "halving":
            return self.peak * self.decay ** math.floor(math.log2(self.total_steps / (self.total_steps - step)))
        if self.schedule == "constant":
            return self.peak
        raise ValueError(f"unknown lr_schedule '{self.schedule}', choose one of {', '.join(LR_SCHEDULES)}")


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
