"""Everything that changes while a network trains, in one object."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from configs.schema import RecipeConfig
from engine.distributed import Ranks
from engine.optim import build_optimizer

ALONE = Ranks()
FORMAT = 2  # of the dictionary that a checkpoint holds; `_upgraded` reads earlier ones
# The fields that are plain numbers, lists and dictionaries; a checkpoint holds them under the same names.
PLAIN = (
    "step", "epochs_done", "best", "peak", "last", "tables", "seconds", "images", "skipped", "skipped_in_a_row",
    "epoch_drops", "last_drops", "environments", "bad_images",
)  # fmt: skip


@dataclass
class Window:
    """Counters since the last log entry.

    Args:
        start: the step it begins with.
        seconds: training time.
        drops: units [kept, seen] per group, over all ranks.
        sums, images: the task's sums and their number, over this rank's samples.
    """

    start: int = 0
    seconds: float = 0.0
    drops: dict[str, list[int]] = field(default_factory=dict)
    sums: Tensor | None = None
    images: int = 0

    def add(self, sums: Tensor, images: int) -> None:
        self.sums = sums if self.sums is None else self.sums + sums
        self.images += images


class TrainState:
    """Model, optimizer, averaged model, and where in the run they are. Equal on all ranks but for `window`.

    Args:
        model: the unwrapped network, on its device.
        recipe: optimizer, precision (float16 scales the loss), and the exponential moving average of weights and
            BatchNorm statistics.
    """

    def __init__(self, model: nn.Module, recipe: RecipeConfig) -> None:
        self.model, self.optimizer = model, build_optimizer(recipe, model)
        device = next(model.parameters()).device
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
        self.ema: AveragedModel | None = None
        if recipe.ema_decay is not None:
            self.ema = AveragedModel(model, use_buffers=True)
            moving = list(zip(moving_tensors(self.ema.module), moving_tensors(model), strict=True))
            self._averaged = [pair for pair in moving if pair[0].is_floating_point()]
            self._copied = [pair for pair in moving if not pair[0].is_floating_point()]  # counters: a mean is of no use
        self.ema_decay, self.ema_warmup = recipe.ema_decay, recipe.ema_warmup
        self.step = 0  # optimizer steps done
        self.epochs_done = 0  # epochs whose end (evaluation, best) is behind us
        self.skipped = 0  # steps whose gradients overflowed in float16 and were not taken
        self.skipped_in_a_row = 0
        self.window = Window()
        self.best: dict[str, float] | None = None  # best metric on val, and its epoch
        self.peak: dict[str, float] | None = None  # best metric on test, and its epoch: shown, chooses nothing
        self.last: dict[str, float] = {}  # metrics of the latest evaluation
        self.tables: list[dict[str, Any]] = []  # finer results of the latest evaluation on test
        self.seconds = 0.0  # training time, restarts added up
        self.images = 0  # training images seen in that time
        # Units [kept, seen] per group, of the current epoch and of the last whole epoch.
        self.epoch_drops: dict[str, list[int]] = {}
        self.last_drops: dict[str, list[int]] = {}
        self.environments: list[dict[str, Any]] = []  # every environment that this run was started in
        self.bad_images: dict[str, str] = {}  # path and reason of the images that were left out

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the averaged model, where there is one, a step towards weights and statistics; the first step copies.

        With warm-up the decay after t steps is min(decay, (1 + t) / (10 + t)), as TensorFlow's `num_updates`. torch's
        `update_parameters` would send its counter to the device, and wait, at every step.
        """
        if self.ema is None or self.ema_decay is None:
            return
        steps = self.step + 1
        decay = min(self.ema_decay, (1 + steps) / (10 + steps)) if self.ema_warmup else self.ema_decay
        copied = self._copied
        if self.ema.n_averaged == 0:
            copied = self._averaged + self._copied
        else:
            averages, values = zip(*self._averaged, strict=True)
            torch._foreach_lerp_(averages, values, 1 - decay)
        if copied:
            averages, values = zip(*copied, strict=True)
            torch._foreach_copy_(averages, values)
        self.ema.n_averaged += 1  # on the CPU

    @property
    def evaluated(self) -> nn.Module:
        """The network that is evaluated and exported: the average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def started_in(self, environment: dict[str, Any]) -> None:
        """Note the environment of a start, if it is another than that of the last start."""
        aside = {"date": "", "from_step": self.step}
        if not self.environments or {**self.environments[-1], **aside} != {**environment, **aside}:
            self.environments.append({**environment, "from_step": self.step})

    def end_epoch(self, values: dict[str, float], headline: str, higher_is_better: bool = True) -> bool:
        """Count an epoch that is over, with its metrics if it was evaluated.

        Args:
            values: metrics of val and test by name; {} where it was not evaluated.
            headline, higher_is_better: the metric that chooses, and its direction.

        Returns:
            True if they are the best so far on val. Of equals the first is kept.
        """
        self.epochs_done += 1
        self.last_drops, self.epoch_drops = self.epoch_drops, {}
        if not values:
            return False

        # Test is looked at for the record alone (`peak`, the paper's convention); val chooses (`best`).
        self.last = {"epoch": self.epochs_done, **values}
        test, val = f"test/{headline}", f"val/{headline}"
        sign = 1 if higher_is_better else -1
        if self.peak is None or sign * values[test] > sign * self.peak[test]:
            self.peak = dict(self.last)
        better = val in values and (self.best is None or sign * values[val] > sign * self.best[val])
        if better:
            self.best = dict(self.last)
        return better

    def state_dict(self, ranks: Ranks = ALONE) -> dict[str, Any]:
        """Tensors and plain types only, so that it loads with `weights_only=True`. All ranks take part."""
        # All but the window is equal on all ranks; of it each rank has its own sums.
        window = self.window
        sums = ranks.gather({"sums": None if window.sums is None else window.sums.cpu(), "images": window.images})
        average = self.ema and {"module": self.ema.module.state_dict(), "n_averaged": self.ema.n_averaged}
        return {
            "format": FORMAT,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": average,
            "scaler": self.scaler.state_dict(),
            "window": {"start": window.start, "seconds": window.seconds, "drops": window.drops, "ranks": sums},
            **{name: getattr(self, name) for name in PLAIN},
        }

    def load_state_dict(self, state: dict[str, Any], ranks: Ranks = ALONE) -> None:
        """The inverse of `state_dict`, on the device of this model, by any number of ranks.

        A field that the state does not have yet keeps the value of a new run.

        Raises:
            ValueError: if the state is not of this model and optimizer, or of a later version; one line.
        """
        try:
            state = _upgraded(state)
            device = next(self.model.parameters()).device
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema is not None:
                self.ema.module.load_state_dict(state["ema"]["module"])
                self.ema.n_averaged.copy_(state["ema"]["n_averaged"])
            self.scaler.load_state_dict(state["scaler"])
            window = state["window"]
            sums, images = share_of(window["ranks"], ranks)
            sums = None if sums is None else sums.to(device)
            self.window = Window(window["start"], window["seconds"], dict(window["drops"]), sums, images)
            for name in PLAIN:
                setattr(self, name, state.get(name, getattr(self, name)))
        except (KeyError, IndexError, TypeError, AttributeError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"it does not fit this network and optimizer ({type(error).__name__}: {reason})"
            ) from error


def moving_tensors(model: nn.Module) -> list[Tensor]:
    """Parameters, and the buffers of a state dict: all that training moves."""
    persistent = model.state_dict(keep_vars=True)
    return [*model.parameters(), *(buffer for name, buffer in model.named_buffers() if name in persistent)]


def share_of(parts: list[dict[str, Any]], ranks: Ranks) -> tuple[Tensor | None, int]:
    """This rank's share of the sums that all ranks saved: its own, or all on rank 0 if their number changed."""
    # As many ranks as there were: each goes on with its own.
    if len(parts) == ranks.world_size:
        part = parts[ranks.rank]
        return part["sums"], part["images"]
    sums = [part["sums"] for part in parts if part["sums"] is not None]
    if not sums:
        return None, 0
    total = torch.stack(sums).sum(0)
    if not ranks.is_main:
        return torch.zeros_like(total), 0
    return total, sum(part["images"] for part in parts)


def _upgraded(state: dict[str, Any]) -> dict[str, Any]:
    """A state as this version writes it. Format 1 had no number; the images stood last in the sums of a window."""
    if state.get("format", 1) == 1:
        parts = [
            {"sums": None, "images": 0} if sums is None else {"sums": sums[:-1], "images": int(sums[-1])}
            for sums in state["windows"]
        ]
        start = state["step"] - state["window_steps"]
        counted = {"start": start, "seconds": state["window_seconds"], "drops": state["window_drops"]}
        return {**state, "format": FORMAT, "window": {**counted, "ranks": parts}}
    if state["format"] > FORMAT:
        raise ValueError(f"written by a later version: format {state['format']}, this one reads up to {FORMAT}")
    return state


def dropped(kept_and_seen: list[int]) -> float:
    """Share of the units that were dropped."""
    kept, seen = kept_and_seen
    return 1.0 - kept / seen if seen else 0.0
