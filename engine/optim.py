"""The optimizer's parameter groups, and the learning rate as a function of the step."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from configs.schema import LR_SCHEDULES, OPTIMIZERS, RecipeConfig


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on all but normalization layers, the classifier's bias included (as the released code)."""
    # By the kind of module, not by the number of axes: biases of convolutions and classifier are decayed.
    norms = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    plain = {id(p) for m in model.modules() if isinstance(m, norms) for p in m.parameters(recurse=False)}
    decayed = [p for p in model.parameters() if id(p) not in plain]
    exempt = [p for p in model.parameters() if id(p) in plain]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(recipe: RecipeConfig, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of a recipe; weight decay spares normalization layers.

    `sgd`; `adamw` with decoupled weight decay, `momentum` being its beta1, beta2 0.999; `rmsprop` as the AmoebaNet code
    configures it (decay 0.9, epsilon 1).

    Raises:
        ValueError: for an unknown name.
    """
    groups, momentum = decay_groups(model, recipe.weight_decay), recipe.momentum
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=momentum, nesterov=recipe.nesterov and momentum > 0)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=(momentum, 0.999))
    if recipe.optimizer == "rmsprop":
        return RMSpropTF(groups, lr=recipe.lr, momentum=momentum)
    raise ValueError(f"unknown optimizer '{recipe.optimizer}', choose one of {', '.join(OPTIMIZERS)}")


class RMSpropTF(torch.optim.Optimizer):
    """RMSProp as TensorFlow computes it, which is not torch's: epsilon stands inside the root, the mean of squares
    starts at 1, and the learning rate enters the momentum buffer. With an epsilon of 1 the two differ by far.

        mean <- decay mean + (1 - decay) g^2,   buffer <- momentum buffer + lr g / sqrt(mean + epsilon)
    """

    def __init__(self, params: Any, lr: float, momentum: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": 0.9, "epsilon": 1.0, "weight_decay": 0.0})

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
    """Learning rate before optimizer step t of T: linear warm-up to the recipe's rate, then its schedule.

    `cosine` to 0 at the end; `step`, times `lr_decay` at each milestone; `exponential`, times `lr_decay` every
    `decay_epochs`; `halving`, times `lr_decay` whenever the remaining epochs have halved (FractalNet); `constant`.
    """

    recipe: RecipeConfig
    steps_per_epoch: int

    def at(self, step: int) -> float:
        """Learning rate of optimizer step `step`, 0 ... T - 1.

        Raises:
            ValueError: for an unknown schedule.
        """
        recipe, total_steps = self.recipe, self.recipe.epochs * self.steps_per_epoch

        # Warm-up. From 0 it counts one step ahead, so that no step is idle.
        warmup, first = recipe.warmup_epochs * self.steps_per_epoch, recipe.warmup_from * recipe.lr
        if step < warmup:
            if not first:
                return recipe.lr * (step + 1) / (warmup + 1)
            return first + (recipe.lr - first) * step / warmup

        # The schedule. Only the cosine starts when the warm-up ends; epochs are counted from the first step.
        epoch = step / self.steps_per_epoch
        if recipe.lr_schedule == "cosine":
            done = (step - warmup) / max(1.0, total_steps - warmup)
            return recipe.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        if recipe.lr_schedule == "step":
            decays = bisect.bisect_right(sorted(recipe.milestones), epoch)
        elif recipe.lr_schedule == "exponential":
            decays = math.floor(epoch / recipe.decay_epochs)
        elif recipe.lr_schedule == "halving":
            decays = math.floor(math.log2(total_steps / (total_steps - step)))
        elif recipe.lr_schedule == "constant":
            decays = 0
        else:
            raise ValueError(f"unknown lr_schedule '{recipe.lr_schedule}', choose one of {', '.join(LR_SCHEDULES)}")
        return recipe.lr * recipe.lr_decay**decays
