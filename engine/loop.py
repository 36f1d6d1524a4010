"""The training loop: one for every network, regularizer, data set and task."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine import checkpoint
from engine.distributed import Ranks
from engine.evaluation import autocast, evaluate
from engine.loggers import Curves, Progress
from engine.optim import LearningRate, set_lr
from engine.records import RunFolder
from engine.seeding import mix
from engine.signals import StopRequest
from engine.state import TrainState
from engine.tasks import Task

MASKS = 1  # the stream of seeds that the layers draw from


class Layers(Protocol):
    """What the loop does with the installed layers (`dropblock.LayerControl`)."""

    def set_progress(self, progress: float) -> float: ...
    def set_seeds(self, seed_of: Callable[[int], int]) -> None: ...
    def take_counts(self) -> dict[str, tuple[int, int]]: ...
    def expected_drop(self, keep_prob: float) -> dict[str, float]: ...


class NonFinite(RuntimeError):
    """The loss is no longer a number."""


class Stopped(Exception):
    """A signal asked the run to stop; everything is written and the run can be resumed.

    `exit_code` is what the process should end with.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass
class Fit:
    """One training run. `run()` goes on from wherever the state stands until the last epoch is done.

    Args:
        task: loss and metrics.
        state: everything that changes.
        network: what is called in training (the model, perhaps wrapped for several ranks or compiled).
        data: loaders `train`, `val` (or None) and `test`.
        layers: the installed layers.
        lr: the learning rate of a step.
        epochs: length of the run.
        accumulate: micro-batches per optimizer step.
        grad_clip: largest norm of all gradients together, None for no limit.
        precision: `float32` or `bfloat16` (autocast).
        seed: of the run; masks draw from (seed, rank, step, micro-batch, layer).
        eval_every: epochs between evaluations.
        log_every, checkpoint_every: steps between points of the curves, between checkpoints (0: every epoch).
        folder: the run folder.
        identity: the plan and the data's fingerprint, stored with every checkpoint.
        ranks, device: where this process stands.
        stop: looked at after every step.
        progress: show a progress bar.
    """

    task: Task
    state: TrainState
    network: nn.Module
    data: Any
    layers: Layers
    lr: LearningRate
    epochs: int
    accumulate: int
    grad_clip: float | None
    precision: str
    seed: int
    eval_every: int
    log_every: int
    checkpoint_every: int
    folder: RunFolder
    identity: dict[str, Any]
    ranks: Ranks
    device: torch.device
    stop: StopRequest
    progress: bool = True

    def run(self) -> None:
        """Train to the end.

        Raises:
            NonFinite: if the loss is no longer a number; no checkpoint is touched.
            Stopped: if a signal asked for it; the state is written.
        """
        state, per_epoch = self.state, len(self.data.train)
        total = self.epochs * per_epoch
        self.curves = Curves(self.folder.path, state.step) if self.ranks.is_main else None
        self.bar = Progress(total, state.step, shown=self.progress and self.ranks.is_main)
        try:
            while state.step < total:
                epoch, first = divmod(state.step, per_epoch)
                self._clock = time.perf_counter()
                for batch in self.data.train.epoch(epoch, first):
                    self._step(batch, state.step / total)
                    ends_epoch = state.step % per_epoch == 0
                    if state.step % self.log_every == 0 or ends_epoch:
                        self._log(epoch)
                    if ends_epoch:
                        self._end_epoch(epoch)
                    stopping = self.ranks.any(self.stop.received is not None)
                    if ends_epoch or stopping or (self.checkpoint_every and state.step % self.checkpoint_every == 0):
                        self._save()
                    if stopping and state.step < total:
                        name = self.stop.received.name if self.stop.received else "a signal to another rank"
                        raise Stopped(f"stopped by {name} after step {state.step}", self.stop.exit_code)
        finally:
            self.bar.close()
            if self.curves is not None:
                self.curves.close()

    def result(self) -> dict[str, Any]:
        """What came of the run, each number under the name of the split it comes from.

        `last`: the last epoch (the headline). `best`: the epoch chosen on val, None without one. `peak`: the maximum
        over the epochs on test, the paper's convention, which chooses nothing.
        """
        state = self.state
        keep_prob = state.last_keep_prob / len(self.data.train)
        expected = self.layers.expected_drop(keep_prob)
        return {
            "last": state.last,
            "best": state.best,
            "peak": state.peak,
            "headline": self.task.headline,
            "drop_last_epoch": {
                group: {"measured": dropped(state.last_drops[group]), "expected": share}
                for group, share in expected.items()
            },
            "steps": state.step,
            "train_seconds": state.seconds,
            "images_per_s": state.images / max(state.seconds, 1e-9),
        }

    def _step(self, batch: Any, progress: float) -> None:
        """One optimizer step."""
        state = self.state
        self.network.train()
        set_lr(state.optimizer, self.lr.at(state.step))
        # The keep_prob decay of the paper: set before step t from t / T, so the first step drops nothing.
        keep_prob = self.layers.set_progress(progress)
        micro_batches = [batch] if self.accumulate == 1 else split(batch, self.accumulate)
        for i, micro in enumerate(micro_batches):
            # Masks are a function of where in the run they are used: a resumed run draws the same ones.
            self.layers.set_seeds(partial(mix, self.seed, MASKS, self.ranks.rank, state.step, i))
            with self._without_reduction(i + 1 < len(micro_batches)), autocast(self.device, self.precision):
                loss, sums = self.task.loss(self.network, micro)
                # Micro-batches may differ by a sample; each counts by its size.
                share = len(micro.labels) / len(batch.labels)
            self._refuse_non_finite(loss, micro)
            (loss * share).backward()
            state.window = sums if state.window is None else state.window + sums
        if self.grad_clip is not None:
            nn.utils.clip_grad_norm_(state.model.parameters(), self.grad_clip)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        if state.ema is not None:
            state.ema.update_parameters(state.model)
        state.step += 1
        state.window_steps += 1
        state.window_keep_prob += keep_prob
        state.epoch_keep_prob += keep_prob
        self.bar.advance((state.step - 1) // len(self.data.train), self.epochs)

    def _without_reduction(self, more_to_come: bool) -> Any:
        """Gradients travel between ranks once per optimizer step, with the last micro-batch."""
        if more_to_come and isinstance(self.network, nn.parallel.DistributedDataParallel):
            return self.network.no_sync()
        return torch.enable_grad()

    def _refuse_non_finite(self, loss: Tensor, batch: Any) -> None:
        """Stop before a loss that is no number reaches the weights. On a GPU, where looking would wait for the device,
        the sums are looked at with every point of the curves instead, and before every checkpoint."""
        if self.device.type == "cpu" and self.ranks.any(not bool(torch.isfinite(loss))):
            raise NonFinite(self._what_went_wrong(f"samples {batch.indices.tolist()}"))

    def _what_went_wrong(self, where: str) -> str:
        lr = self.state.optimizer.param_groups[0]["lr"]
        return f"the loss is not finite at step {self.state.step} (lr {lr:.4g}; {where})"

    def _log(self, epoch: int) -> None:
        """One point of the curves: the only time a training step looks at numbers on the device."""
        state = self.state
        assert state.window is not None
        metrics = self.task.train_metrics(self.ranks.sum(state.window).cpu())
        if not metrics["loss"] == metrics["loss"] or metrics["loss"] in (float("inf"), float("-inf")):
            raise NonFinite(self._what_went_wrong(f"within the last {state.window_steps} steps"))
        now = time.perf_counter()
        elapsed, self._clock = now - self._clock, now
        images = int(self.ranks.sum(state.window)[-1].item())
        state.seconds += elapsed
        state.images += images
        self._count_drops()
        keep_prob = state.window_keep_prob / state.window_steps
        values = {f"train/{name}": value for name, value in metrics.items()}
        values["lr"] = state.optimizer.param_groups[0]["lr"]
        expected = self.layers.expected_drop(keep_prob)
        if expected:
            values["keep_prob/target"] = keep_prob
        for group, share in expected.items():
            values[f"drop/measured/{group}"] = dropped(state.window_drops[group])
            values[f"drop/expected/{group}"] = share
        values["time/images_per_s"] = images / max(elapsed, 1e-9)
        if self.curves is not None:
            self.curves.add(state.step, state.step / len(self.data.train), values)
        self.bar.show(
            loss=f"{metrics['loss']:.3f}",
            **{self.task.headline: f"{metrics[self.task.headline]:.1f}%"},
            speed=f"{values['time/images_per_s']:.0f} img/s",
        )
        state.end_window()

    def _count_drops(self) -> None:
        """Fold the counters of the layers into the state, where a checkpoint finds them."""
        for group, (kept, seen) in self.layers.take_counts().items():
            for drops in (self.state.window_drops, self.state.epoch_drops):
                before = drops.get(group, [0, 0])
                drops[group] = [before[0] + kept, before[1] + seen]

    def _end_epoch(self, epoch: int) -> None:
        """Evaluate, remember the best on val, show the peak on test."""
        state = self.state
        state.last_drops, state.epoch_drops = state.epoch_drops, {}
        state.last_keep_prob, state.epoch_keep_prob = state.epoch_keep_prob, 0.0
        if (epoch + 1) % self.eval_every and epoch + 1 < self.epochs:
            return
        share_statistics(state.model, self.ranks)
        state.evaluated.eval()  # `_step` goes back to training mode
        values: dict[str, float] = {}
        headline = self.task.headline
        for split_name in ("val", "test"):
            loader = getattr(self.data, split_name)
            if loader is not None:
                sums = evaluate(self.task, state.evaluated, loader, self.ranks, self.device, self.precision)
                values |= {f"{split_name}/{name}": value for name, value in self.task.metrics(sums).items()}
        state.last = {"epoch": epoch + 1, **values}
        if state.peak is None or values[f"test/{headline}"] > state.peak[f"test/{headline}"]:
            state.peak = dict(state.last)
        better = f"val/{headline}" in values and (
            state.best is None or values[f"val/{headline}"] > state.best[f"val/{headline}"]
        )
        if better:
            state.best = dict(state.last)
            self._write("best.pt", {"model": state.evaluated.state_dict(), "step": state.step})
        if self.curves is not None:
            self.curves.add(state.step, epoch + 1, values)
        told = "  ".join(
            f"{name} {value:.4f}" if "loss" in name else f"{name} {value:.2f}%" for name, value in values.items()
        )
        self.bar.write(f"epoch {epoch + 1:>3}/{self.epochs}  {told}")
        self._clock = time.perf_counter()

    def _save(self) -> None:
        """The state of this moment as `last.pt`, the one before as `previous.pt`."""
        now = time.perf_counter()
        self.state.seconds += now - self._clock
        self._count_drops()
        if self.curves is not None:
            self.curves.flush()
        share_statistics(self.state.model, self.ranks)
        self._write("last.pt", self.state.state_dict(), keep_previous=True)
        self._clock = time.perf_counter()

    def _write(self, name: str, payload: dict[str, Any], keep_previous: bool = False) -> None:
        if self.ranks.is_main:
            checkpoint.save({**payload, **self.identity}, self.folder.checkpoints / name, keep_previous)
        self.ranks.barrier()


def dropped(kept_and_seen: list[int]) -> float:
    """The share of units that were dropped."""
    kept, seen = kept_and_seen
    return 1.0 - kept / seen if seen else 0.0


def split(batch: Any, parts: int) -> list[Any]:
    """A batch in micro-batches of nearly equal size."""
    return [type(batch)(*fields) for fields in zip(*(tensor.tensor_split(parts) for tensor in batch), strict=True)]


def share_statistics(model: nn.Module, ranks: Ranks) -> None:
    """Running statistics differ between ranks; what is saved and evaluated everywhere is their mean."""
    if ranks.world_size > 1:
        for name, buffer in model.named_buffers():
            if name in model.state_dict() and buffer.is_floating_point():
                buffer.copy_(ranks.sum(buffer) / ranks.world_size)
