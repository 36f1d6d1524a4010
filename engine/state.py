"""Everything that changes while a network trains, in one object."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

# What of the state is plain numbers and dictionaries of them.
PLAIN = (
    *("step", "best", "peak", "last", "seconds", "images"),
    *("window_steps", "window_keep_prob", "epoch_keep_prob", "last_keep_prob"),
    *("window_drops", "epoch_drops", "last_drops"),
)


class TrainState:
    """Model, optimizer, averaged model, and where in the run they are.

    Args:
        model: the unwrapped network, on its device.
        optimizer: over its parameters.
        ema_decay: keep an exponential moving average of the weights and BatchNorm statistics.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, ema_decay: float | None = None) -> None:
        self.model, self.optimizer = model, optimizer
        self.ema: AveragedModel | None = None
        if ema_decay is not None:
            self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay), use_buffers=True)
        self.step = 0  # optimizer steps done
        self.window: Tensor | None = None  # sums of the task since the last point of the curves
        self.best: dict[str, float] | None = None  # best metric on val, and its epoch
        self.peak: dict[str, float] | None = None  # best metric on test, and its epoch: shown, chooses nothing
        self.last: dict[str, float] = {}  # metrics of the latest evaluation
        self.seconds = 0.0  # training time, restarts added up
        self.images = 0  # training images seen in that time
        self.window_steps = 0
        self.window_keep_prob = 0.0  # sums over the steps of the window, of the current and of the last whole epoch
        self.epoch_keep_prob = 0.0
        self.last_keep_prob = 0.0
        # Units [kept, seen] per group: of the window, of the current epoch, of the last whole epoch.
        self.window_drops: dict[str, list[int]] = {}
        self.epoch_drops: dict[str, list[int]] = {}
        self.last_drops: dict[str, list[int]] = {}

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and exported: the average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def end_window(self) -> None:
        """Start counting for the next point of the curves."""
        self.window, self.window_steps, self.window_keep_prob, self.window_drops = None, 0, 0.0, {}

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain types only, so that it loads with `weights_only=True`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None
            if self.ema is None
            else {"module": self.ema.module.state_dict(), "n_averaged": self.ema.n_averaged},
            "window": self.window,
            "rng": rng_state(),
            **{name: getattr(self, name) for name in PLAIN},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, on the device of this model."""
        device = next(self.model.parameters()).device
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"]["module"])
            self.ema.n_averaged.copy_(state["ema"]["n_averaged"])
        self.window = None if state["window"] is None else state["window"].to(device)
        for name in PLAIN:
            setattr(self, name, state[name])
        set_rng_state(state["rng"])


def rng_state() -> dict[str, Any]:
    """The global generators as plain types. Draws are counted (`engine.seeding`); this is the cross-check."""
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [str(name), [int(k) for k in keys], int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if len(state["cuda"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0) and state["cuda"]:
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])
