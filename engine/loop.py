"""The training loop: one for every network, regularizer, data set and task."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from engine import checkpoint, points
from engine.distributed import Ranks, running_statistics, share_statistics
from engine.evaluation import autocast, evaluate
from engine.guard import Guard, refuse_metrics
from engine.loggers import Curves, Progress
from engine.optim import LearningRate, set_lr
from engine.records import RunFolder
from engine.seeding import mix, seed_device
from engine.signals import Stopped, StopRequest
from engine.state import TrainState
from engine.tasks import Task

# Streams of seeds: what our layers draw from, and what the random layers of a network itself do.
MASKS, OTHERS = 1, 2


class Layers(Protocol):
    """What the loop does with the installed layers (`dropblock.LayerControl`)."""

    def set_progress(self, progress: float) -> None: ...
    def set_seeds(self, seed_of: Callable[[int], int]) -> None: ...
    def take_counts(self) -> dict[str, tuple[int, int]]: ...
    def keep_probs(self, progress: Sequence[float]) -> dict[str, float]: ...
    def expected_drop(self, progress: Sequence[float]) -> dict[str, float]: ...


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
        precision: `float32`, `bfloat16` or `float16` (autocast; the last with a scaled loss).
        seed: of the run; masks draw from (seed, rank, step, micro-batch, layer).
        eval_every: epochs between evaluations.
        log_every, checkpoint_every: steps between points of the curves, between checkpoints (0: every epoch).
        folder: the run folder.
        identity: the plan and the data's fingerprint, stored with every checkpoint.
        ranks, device: where this process stands.
        stop: looked at after every step and every batch of an evaluation.
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

    def __post_init__(self) -> None:
        self._statistics = running_statistics(self.state.model)
        self._guard = Guard(self.state, self._statistics, self.ranks, self.device, self.folder, self.identity)

    def run(self) -> None:
        """Train to the end.

        Raises:
            NonFinite: if a number goes wrong; no checkpoint is touched.
            Stopped: if a signal asked for it; the state is written.
        """
        state, per_epoch = self.state, len(self.data.train)
        total = self.epochs * per_epoch
        self.stop.defer()
        self.bar = Progress(total, state.step, shown=self.progress and self.ranks.is_main)
        with Curves(self.folder.path, state.step, writes=self.ranks.is_main) as self.curves, self.bar:
            while state.epochs_done < self.epochs:
                self._clock = time.perf_counter()
                epoch = state.epochs_done
                first = state.step - epoch * per_epoch  # all, where only the evaluation was left to do
                for batch in self.data.train.epoch(epoch, first) if first < per_epoch else ():
                    self._step(batch, state.step / total)
                    ends_epoch = state.step % per_epoch == 0
                    if state.step % self.log_every == 0 or ends_epoch:
                        self._log()
                    if not ends_epoch:
                        self._stop_if_asked()
                        if self.checkpoint_every and state.step % self.checkpoint_every == 0:
                            self._save()
                self._end_epoch()

    def result(self) -> dict[str, Any]:
        """What came of the run: see `points.result`."""
        progress = self.state.last_progress / len(self.data.train)
        result = points.result(self.state, self.task.headline, self.layers.expected_drop([progress]))
        self._collect_bad_images()
        return {**result, "bad_images": self.state.bad_images}

    def _collect_bad_images(self) -> None:
        """Path and reason of the images that all ranks' loaders left out, added to those of earlier attempts."""
        loaders = [loader for loader in (self.data.train, self.data.val, self.data.test) if loader is not None]
        ours = {path: reason for loader in loaders for path, reason in loader.bad_images.items()}
        for part in self.ranks.gather(ours):
            self.state.bad_images |= part

    def _step(self, batch: Any, progress: float) -> None:
        """One optimizer step."""
        state = self.state
        if not state.model.training:  # asked first: the walk over all modules takes half a millisecond
            self.network.train()
        set_lr(state.optimizer, self.lr.at(state.step))
        # The keep_prob decay of the paper: set before step t from t / T, so the first step drops nothing.
        self.layers.set_progress(progress)
        micro_batches = [batch] if self.accumulate == 1 else batch.split(self.accumulate)
        for i, micro in enumerate(micro_batches):
            # Masks are a function of where in the run they are used: a resumed run draws the same ones.
            self.layers.set_seeds(partial(mix, self.seed, MASKS, self.ranks.rank, state.step, i))
            seed_device(mix(self.seed, OTHERS, self.ranks.rank, state.step, i), self.device)
            with self._without_reduction(i + 1 < len(micro_batches)), autocast(self.device, self.precision):
                loss, sums = self.task.loss(self.network, micro)
                # Micro-batches may differ by a sample; each counts by its size.
                share = micro.size / batch.size
            self._guard.loss(loss, micro, i)
            state.scaler.scale(loss * share).backward()
            state.window = sums if state.window is None else state.window + sums
        self._move_weights(batch)
        share_statistics(self._statistics, self.ranks)
        if state.ema is not None:
            state.ema.update_parameters(state.model)
        state.step += 1
        state.add_progress(progress)
        self.bar.advance((state.step - 1) // len(self.data.train), self.epochs)

    def _move_weights(self, batch: Any) -> None:
        """The gradients, looked at and clipped, become a step of the weights."""
        optimizer, scaler = self.state.optimizer, self.state.scaler  # which does nothing but in float16
        scaler.unscale_(optimizer)
        self._guard.gradients(batch)
        if self.grad_clip is not None:
            nn.utils.clip_grad_norm_(self.state.model.parameters(), self.grad_clip)
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        self._guard.scaled_step(scale)

    def _without_reduction(self, more_to_come: bool) -> Any:
        """Gradients travel between ranks once per optimizer step, with the last micro-batch."""
        if more_to_come and isinstance(self.network, nn.parallel.DistributedDataParallel):
            return self.network.no_sync()
        return torch.enable_grad()

    def _stop_if_asked(self) -> None:
        """Write and raise Stopped if a signal has come, to whichever rank."""
        asked = self.ranks.max(self.stop.received)
        if asked:
            self._save()
            raise Stopped(asked, f"after step {self.state.step}")

    def _log(self) -> None:
        """One point of the curves: the only time a training step looks at numbers on the device."""
        self._guard.look_back()
        state = self.state
        assert state.window is not None
        sums = self.ranks.sum(state.window).cpu()
        metrics = self.task.train_metrics(sums)
        refuse_metrics({f"train/{name}": value for name, value in metrics.items()})
        self._read_clock()
        images = int(sums[-1])
        state.images += images
        self._count_drops()
        # keep_prob is linear in the progress, or constant: its mean is that of the mean progress.
        progress = state.window_progress / state.window_steps
        keep_probs, expected = self.layers.keep_probs([progress]), self.layers.expected_drop([progress])
        values = points.training_point(state, metrics, keep_probs, expected, images / max(state.window_seconds, 1e-9))
        self.curves.add(state.step, state.step / len(self.data.train), values)
        self.bar.show(
            loss=f"{metrics['loss']:.3f}",
            **{self.task.headline: f"{metrics[self.task.headline]:.1f}%"},
            speed=f"{values['time/images_per_s']:.0f} img/s",
        )
        state.end_window()

    def _read_clock(self) -> None:
        """The time since the last look is training time."""
        now = time.perf_counter()
        self.state.add_seconds(now - self._clock)
        self._clock = now

    def _count_drops(self) -> None:
        """Fold the counters of all ranks' layers into the state, where a checkpoint finds them."""
        counts = self.layers.take_counts()
        if counts:
            units = self.ranks.sum(torch.tensor(list(counts.values()))).tolist()
            self.state.add_drops(dict(zip(counts, units, strict=True)))

    def _end_epoch(self) -> None:
        """Evaluate, remember the best on val, write. A signal meanwhile leaves the evaluation for the next attempt."""
        state, epoch = self.state, self.state.epochs_done + 1
        values: dict[str, float] = {}
        if epoch % self.eval_every == 0 or epoch == self.epochs:
            values = self._evaluate()
            self.curves.add(state.step, epoch, values)
            self.bar.write(points.epoch_line(epoch, self.epochs, values))
        if state.end_epoch(values, self.task.headline):
            self._write("best.pt", {"model": state.evaluated.state_dict(), "step": state.step})
        self._clock = time.perf_counter()
        self._save()
        if epoch < self.epochs:
            self._stop_if_asked()

    def _evaluate(self) -> dict[str, float]:
        """The metrics of val, where there is one, and test."""
        values: dict[str, float] = {}
        network = self.state.evaluated.eval()  # `_step` goes back to training mode
        for split_name in ("val", "test"):
            loader = getattr(self.data, split_name)
            if loader is not None:
                look_up = self._between_evaluations
                sums = evaluate(self.task, network, loader, self.ranks, self.device, self.precision, look_up)
                values |= {f"{split_name}/{name}": value for name, value in self.task.metrics(sums).items()}
        refuse_metrics(values)
        return values

    def _between_evaluations(self) -> None:
        self._clock = time.perf_counter()  # evaluation is no training time
        self._stop_if_asked()

    def _save(self) -> None:
        """The state of this moment as `last.pt`, the one before as `previous.pt`."""
        self._guard.look_back()
        self._guard.weights()
        self._read_clock()
        self._count_drops()
        self._collect_bad_images()
        self.curves.flush()
        self._write("last.pt", self.state.state_dict(self.ranks), keep_previous=True)
        self._clock = time.perf_counter()

    def _write(self, name: str, payload: dict[str, Any], keep_previous: bool = False) -> None:
        if self.ranks.is_main:
            checkpoint.save({**payload, **self.identity}, self.folder.checkpoints / name, keep_previous)
        self.ranks.barrier()
