"""The training loop: one for every network, regularizer, data set and task."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from engine import checkpoint, summary
from engine.console import metric_text
from engine.distributed import Ranks, running_statistics
from engine.evaluation import evaluate
from engine.guard import Guard, refuse_metrics
from engine.loggers import MetricsWriter, Progress
from engine.optim import LearningRate
from engine.pictures import FixedSamples
from engine.records import RunFolder
from engine.settings import LoopSettings
from engine.signals import Stopped, StopRequest
from engine.state import TrainState
from engine.step import Layers, OptimizerStep
from engine.tasks import Task


@dataclass
class Fit:
    """One training run. `run()` continues from wherever the state stands until the last epoch is done.

    Args:
        task: loss and metrics.
        state: everything that changes.
        network: what is called in training (the model, perhaps wrapped for several ranks or compiled).
        data: loaders `train`, `val` (or None) and `test`; their batches know their size and how to split.
        layers: the installed layers.
        lr: the learning rate of a step.
        settings: how long and how often.
        folder: the run directory.
        identity: what every checkpoint says about its origin: the configuration and the data's fingerprint.
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
    settings: LoopSettings
    folder: RunFolder
    identity: dict[str, Any]
    ranks: Ranks
    device: torch.device
    stop: StopRequest
    progress: bool = True

    def __post_init__(self) -> None:
        self._statistics = running_statistics(self.state.model)
        self._guard = Guard(self.state, self._statistics, self.ranks, self.device, self.folder, self.identity)
        self._step = OptimizerStep(
            *(self.task, self.state, self.network, self.layers, self.lr, self.settings, self.ranks, self.device),
            *(self._guard, self._statistics),
        )
        self._pictures = FixedSamples(self.task, self.settings, self.ranks, self.device)

    @property
    def total_steps(self) -> int:
        return self.settings.epochs * len(self.data.train)

    def run(self) -> None:
        """Train to the end.

        Raises:
            NonFinite: if a loss, gradient, weight or metric is not finite; no checkpoint is touched.
            Stopped: if a signal asked for it; the state is written.
        """
        state, settings, per_epoch = self.state, self.settings, len(self.data.train)
        self.stop.defer()
        self.bar = Progress(self.total_steps, state.step, shown=self.progress and self.ranks.is_main)
        evaluates = state.step == (state.epochs_done + 1) * per_epoch  # a signal came in the evaluation of this epoch
        with MetricsWriter(self.folder.path, state.step, evaluates, self.ranks.is_main) as self.writer, self.bar:
            while state.epochs_done < settings.epochs:
                self._clock = time.perf_counter()
                epoch = state.epochs_done
                done_batches = state.step - epoch * per_epoch  # all of them, if only the evaluation was left to do
                for batch in self.data.train.epoch(epoch, done_batches) if done_batches < per_epoch else ():
                    # The paper sets keep_prob before step t from t / T, so the first step drops nothing.
                    self.step(batch, state.step / self.total_steps)
                    self.bar.advance(epoch, settings.epochs)
                    ends_epoch = state.step % per_epoch == 0
                    if state.step % settings.log_every == 0 or ends_epoch:
                        self._log()
                    if not ends_epoch:
                        self._stop_if_asked()
                        if settings.checkpoint_every and state.step % settings.checkpoint_every == 0:
                            self._save()
                self._end_epoch()

    def result(self) -> dict[str, Any]:
        """The outcome of the run: see `summary.result`."""
        per_epoch, epochs_done = len(self.data.train), self.state.epochs_done
        last_epoch = self._progress((epochs_done - 1) * per_epoch, epochs_done * per_epoch)
        result = summary.result(self.state, self.task, self.layers.expected_drop(last_epoch))
        self._collect_bad_images()
        return {**result, "bad_images": self.state.bad_images}

    def _progress(self, start: int, end: int) -> list[float]:
        """The training progress at which keep_prob was set for each of the steps `start`, ..., `end - 1`."""
        return [step / self.total_steps for step in range(start, end)]

    def _collect_bad_images(self) -> None:
        """Path and reason of the images that all ranks' loaders left out, added to those before a restart."""
        loaders = [loader for loader in (self.data.train, self.data.val, self.data.test) if loader is not None]
        ours = {path: reason for loader in loaders for path, reason in loader.bad_images.items()}
        for part in self.ranks.gather(ours):
            self.state.bad_images |= part

    def step(self, batch: Any, progress: float) -> None:
        """One optimizer step: see `OptimizerStep`."""
        self._step(batch, progress)

    def _stop_if_asked(self) -> None:
        """Write and raise Stopped if a signal has come, to whichever rank."""
        asked = self.ranks.max(self.stop.received)
        if asked:
            self._save()
            raise Stopped(asked, f"after step {self.state.step}")

    def _log(self) -> None:
        """Write a log entry: the only time a training step looks at numbers on the device."""
        self._guard.look_back()
        state, window = self.state, self.state.window
        assert window.sums is not None
        ours = torch.cat([window.sums.cpu(), torch.tensor([window.images], dtype=torch.float64)])
        *sums, images = self.ranks.sum(ours).tolist()
        metrics = self.task.train_metrics(torch.tensor(sums, dtype=torch.float64), int(images))
        refuse_metrics({f"train/{name}": value for name, value in metrics.items()})
        self._read_clock()
        state.images += int(images)
        self._count_drops()
        progress = self._progress(window.start, state.step)
        keep_probs, expected = self.layers.keep_probs(progress), self.layers.expected_drop(progress)
        values = summary.log_entry(state, metrics, keep_probs, expected, images / max(window.seconds, 1e-9))
        self.writer.add(state.step, state.step / len(self.data.train), values)
        # Where training has no headline (average precision), that of the latest evaluation.
        headline = self.task.headline
        shown = metrics.get(headline, state.last.get(f"test/{headline}"))
        self.bar.show(
            loss=f"{metrics['loss']:.3f}",
            **({} if shown is None else {headline: metric_text(headline, shown, places=1)}),
            speed=f"{values['time/images_per_s']:.0f} img/s",
        )
        state.end_window()

    def _read_clock(self) -> None:
        """Count the time since the last call as training time."""
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
        """Evaluate, remember the best on val, write. After a signal meanwhile, a resumed run repeats the evaluation."""
        state, epoch, epochs = self.state, self.state.epochs_done + 1, self.settings.epochs
        values: dict[str, float] = {}
        if epoch % self.settings.eval_every == 0 or epoch == epochs:
            values = self._evaluate()
            self.writer.add(state.step, epoch, values)
            self.bar.write(summary.epoch_line(epoch, epochs, values))
        if state.end_epoch(values, self.task.headline):
            self._write("best.pt", {"model": state.evaluated.state_dict(), "step": state.step})
        self._clock = time.perf_counter()
        self._save()
        if epoch < epochs:
            self._stop_if_asked()

    def _evaluate(self) -> dict[str, float]:
        """The metrics of val, where there is one, and test."""
        values: dict[str, float] = {}
        network = self.state.evaluated.eval()  # `step` goes back to training mode
        for split in ("val", "test"):
            loader = getattr(self.data, split)
            if loader is not None:
                poll, precision = self._before_eval_batch, self.settings.precision
                done = evaluate(self.task, network, loader, self.ranks, self.device, precision, poll)
                values |= {f"{split}/{name}": value for name, value in done.metrics.items()}
        self.state.tables = [asdict(table) for table in done.tables]
        refuse_metrics(values)
        self._pictures.draw(self.writer, self.data.test, network, self.state)
        return values

    def _before_eval_batch(self) -> None:
        """Leave evaluation out of the training time, and stop if a signal has come."""
        self._clock = time.perf_counter()
        self._stop_if_asked()

    def _save(self) -> None:
        """The state of this moment as `last.pt`, the one before as `previous.pt`."""
        self._guard.look_back()
        self._guard.weights()
        self._read_clock()
        self._count_drops()
        self._collect_bad_images()
        self.writer.flush()
        self._write("last.pt", self.state.state_dict(self.ranks), keep_previous=True)
        self._clock = time.perf_counter()

    def _write(self, name: str, payload: dict[str, Any], keep_previous: bool = False) -> None:
        if self.ranks.is_main:
            checkpoint.save({**payload, **self.identity}, self.folder.checkpoints / name, keep_previous)
        self.ranks.barrier()
