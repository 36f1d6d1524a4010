"""Everything that changes while a network trains, in one object."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from engine.distributed import Ranks

ALONE = Ranks()
# What of the state is plain numbers and dictionaries of them.
PLAIN = (
    *("step", "epochs_done", "best", "peak", "last", "seconds", "images", "skipped", "skipped_in_a_row"),
    *("window_steps", "window_progress", "window_seconds", "epoch_progress", "last_progress"),
    *("window_drops", "epoch_drops", "last_drops", "environments", "bad_images"),
)


class TrainState:
    """Model, optimizer, averaged model, and where in the run they are. Equal on all ranks, but for `window` and the
    generators.

    Args:
        model: the unwrapped network, on its device.
        optimizer: over its parameters.
        ema_decay: keep an exponential moving average of the weights and BatchNorm statistics.
        precision: of training; `float16` scales the loss.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        ema_decay: float | None = None,
        precision: str = "float32",
    ) -> None:
        self.model, self.optimizer = model, optimizer
        device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
        self.ema: AveragedModel | None = None
        if ema_decay is not None:
            self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema_decay), use_buffers=True)
        self.step = 0  # optimizer steps done
        self.epochs_done = 0  # epochs whose end (evaluation, best) is behind us
        self.skipped = 0  # steps whose gradients overflowed in float16 and were not taken
        self.skipped_in_a_row = 0
        self.window: Tensor | None = (
            None  # sums of the task over this rank's samples since the last point of the curves
        )
        self.best: dict[str, float] | None = None  # best metric on val, and its epoch
        self.peak: dict[str, float] | None = None  # best metric on test, and its epoch: shown, chooses nothing
        self.last: dict[str, float] = {}  # metrics of the latest evaluation
        self.seconds = 0.0  # training time, restarts added up
        self.images = 0  # training images seen in that time
        self.window_steps = 0
        self.window_seconds = 0.0
        self.window_progress = 0.0  # sums over the steps of the window, of the current and of the last whole epoch
        self.epoch_progress = 0.0
        self.last_progress = 0.0
        # Units [kept, seen] per group: of the window, of the current epoch, of the last whole epoch.
        self.window_drops: dict[str, list[int]] = {}
        self.epoch_drops: dict[str, list[int]] = {}
        self.last_drops: dict[str, list[int]] = {}
        self.environments: list[dict[str, Any]] = []  # of the attempts that this state has been through
        self.bad_images: dict[str, str] = {}  # path and reason of the images that were left out

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and exported: the average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def started_in(self, environment: dict[str, Any]) -> None:
        """An attempt begins, in the same environment as the last one or in another."""
        aside = {"date": "", "from_step": self.step}
        if not self.environments or {**self.environments[-1], **aside} != {**environment, **aside}:
            self.environments.append({**environment, "from_step": self.step})

    def add_drops(self, units: dict[str, tuple[int, int]]) -> None:
        """Units (kept, seen) per group, over all ranks, that were met since the last call."""
        for group, (kept, seen) in units.items():
            for drops in (self.window_drops, self.epoch_drops):
                before = drops.get(group, [0, 0])
                drops[group] = [before[0] + kept, before[1] + seen]

    def add_progress(self, progress: float) -> None:
        """A step was done at this share of the training; keep_prob follows from it."""
        self.window_steps += 1
        self.window_progress += progress
        self.epoch_progress += progress

    def add_seconds(self, seconds: float) -> None:
        """Training took this long."""
        self.seconds += seconds
        self.window_seconds += seconds

    def end_window(self) -> None:
        """Start counting for the next point of the curves."""
        self.window, self.window_steps, self.window_progress, self.window_drops = None, 0, 0.0, {}
        self.window_seconds = 0.0

    def end_epoch(self, values: dict[str, float], headline: str) -> bool:
        """An epoch is over, with these metrics if it was evaluated.

        Returns:
            whether they are the best so far on val. Of equals the first is kept.
        """
        self.epochs_done += 1
        self.last_drops, self.epoch_drops = self.epoch_drops, {}
        self.last_progress, self.epoch_progress = self.epoch_progress, 0.0
        if not values:
            return False
        self.last = {"epoch": self.epochs_done, **values}
        test, val = f"test/{headline}", f"val/{headline}"
        if self.peak is None or values[test] > self.peak[test]:
            self.peak = dict(self.last)
        better = val in values and (self.best is None or values[val] > self.best[val])
        if better:
            self.best = dict(self.last)
        return better

    def state_dict(self, ranks: Ranks = ALONE) -> dict[str, Any]:
        """Tensors and plain types only, so that it loads with `weights_only=True`. All ranks take part."""
        windows = ranks.gather(None if self.window is None else self.window.cpu())
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None
            if self.ema is None
            else {"module": self.ema.module.state_dict(), "n_averaged": self.ema.n_averaged},
            "scaler": self.scaler.state_dict(),
            "windows": windows,
            "rng": rng_state(),
            **{name: getattr(self, name) for name in PLAIN},
        }

    def load_state_dict(self, state: dict[str, Any], ranks: Ranks = ALONE) -> None:
        """The inverse of `state_dict`, on the device of this model, by any number of ranks.

        Raises:
            ValueError: if the state is not of this model and optimizer; one line.
        """
        try:
            self._load(state, ranks)
        except (KeyError, IndexError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"it does not fit this network and optimizer ({type(error).__name__}: {reason})"
            ) from error

    def _load(self, state: dict[str, Any], ranks: Ranks) -> None:
        device = next(self.model.parameters()).device
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"]["module"])
            self.ema.n_averaged.copy_(state["ema"]["n_averaged"])
        self.scaler.load_state_dict(state["scaler"])
        self.window = share_of(state["windows"], ranks)
        if self.window is not None:
            self.window = self.window.to(device)
        for name in PLAIN:
            setattr(self, name, state[name])
        set_rng_state(state["rng"])


def share_of(windows: list[Tensor | None], ranks: Ranks) -> Tensor | None:
    """This rank's part of the sums that all ranks saved: its own, or all of them on rank 0 if the ranks changed."""
    if len(windows) == ranks.world_size or windows[0] is None:
        return windows[ranks.rank % len(windows)]
    total = torch.stack([window for window in windows if window is not None]).sum(0)
    return total if ranks.is_main else torch.zeros_like(total)


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
