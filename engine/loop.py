"""The training loop: one for every network, regularizer, data set and task."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from configs.schema import RecipeConfig, RunOptions
from engine import checkpoint
from engine.console import columns, epoch_line, metric_text
from engine.distributed import Ranks, running_statistics, share_statistics
from engine.evaluation import evaluate
from engine.guard import MAX_SKIPS_IN_A_ROW, Guard, NonFinite, all_finite, refuse_metrics
from engine.loggers import MetricsWriter, Progress
from engine.optim import LearningRate
from engine.precision import autocast
from engine.run_directory import RunDirectory
from engine.seeding import mix, mixer, seed_device
from engine.signals import Stopped, StopRequest
from engine.state import TrainState, Window, dropped
from engine.tasks import Task, metrics_record

# Streams of seeds: what our layers draw from, what the random layers of a network itself do, and batch regularizers.
MASKS, OTHERS, MIXES = 1, 2, 3
TIMES_DRAWN = 8  # evaluations of a run that leave pictures, about

# A batch of the task, on the device, and a function of whole numbers that gives 63-bit seeds -> the batch to train on.
BatchTransform = Callable[[Any, Callable[..., int]], Any]


class Layers(Protocol):
    """The installed layers as the loop sees them (`dropblock.LayerControl`)."""

    def set_progress(self, progress: float) -> None: ...
    def set_seeds(self, seed_of: Callable[[int], int]) -> None: ...
    def take_counts(self) -> dict[str, tuple[int, int]]: ...
    def keep_probs(self, progress: Sequence[float]) -> dict[str, float]: ...
    def expected_drop(self, progress: Sequence[float]) -> dict[str, float]: ...
    def draws_once_a_batch(self) -> bool: ...


@dataclass
class Fit:
    """One training run. `run()` continues from wherever the state stands until the last epoch is done.

    Args:
        task: loss and metrics.
        state: everything that changes.
        network: called in training: the model, perhaps wrapped for several ranks or compiled.
        data: loaders `train`, `val` (or None) and `test`; their batches know their size and how to split.
        layers: the installed layers.
        recipe, options: how long, how, and how often something is written.
        seed: masks draw from (seed, rank, step, micro-batch, layer).
        directory, identity: the run directory, and what every checkpoint says of its origin: the configuration and the
            data's fingerprint.
        ranks, device: where this process stands.
        stop: looked at after every step and every batch of an evaluation.
        batch_regularizers: change images and targets together, before the network sees them.
    """

    task: Task
    state: TrainState
    network: nn.Module
    data: Any
    layers: Layers
    recipe: RecipeConfig
    options: RunOptions
    seed: int
    directory: RunDirectory
    identity: dict[str, Any]
    ranks: Ranks
    device: torch.device
    stop: StopRequest
    batch_regularizers: Sequence[BatchTransform] = ()

    def __post_init__(self) -> None:
        self.lr = LearningRate(self.recipe, len(self.data.train))
        self.total_steps = self.recipe.epochs * len(self.data.train)
        self.statistics = running_statistics(self.state.model)
        self.guard = Guard(self.state, self.ranks, self.device, self.directory, self.identity)
        self._clock: float | None = None  # up to which training time is counted; None: outside of training
        self._samples: Any = None  # of the test split, drawn again and again

    def run(self) -> None:
        """Train to the end.

        Raises:
            NonFinite: if a loss, gradient, weight or metric is not finite; no checkpoint is touched.
            Stopped: if a signal asked for it; the state is written.
        """
        state, options, epochs, per_epoch = self.state, self.options, self.recipe.epochs, len(self.data.train)
        self.stop.defer()  # from here on there is a state worth writing before a signal ends the run
        self.bar = Progress(self.total_steps, state.step, shown=options.progress and self.ranks.is_main)
        # A signal may have come in the evaluation of an epoch whose steps are all done.
        evaluates = state.step == (state.epochs_done + 1) * per_epoch
        with MetricsWriter(self.directory.path, state.step, evaluates, self.ranks.is_main) as self.writer, self.bar:
            while state.epochs_done < epochs:
                # A resumed run goes on behind the last batch of its epoch.
                self._clock = time.perf_counter()
                epoch = state.epochs_done
                done_batches = state.step - epoch * per_epoch
                # Where none is left the run was stopped in the evaluation of this epoch, and only that is repeated.
                batches = self.data.train.epoch(epoch, done_batches) if done_batches < per_epoch else ()
                for batch in batches:
                    # The paper sets keep_prob before step t from t / T, so the first step drops nothing.
                    self.step(batch, state.step / self.total_steps)
                    self.bar.advance(epoch, epochs)

                    # After the last step of an epoch its end comes first, with a checkpoint of its own.
                    ends_epoch = state.step % per_epoch == 0
                    if state.step % options.log_every == 0 or ends_epoch:
                        self._log()
                    if not ends_epoch:
                        self._stop_if_asked()
                        if options.checkpoint_every and state.step % options.checkpoint_every == 0:
                            self._save()
                self._end_epoch()

    def step(self, batch: Any, progress: float) -> None:
        """One optimizer step on a batch, over any number of micro-batches and ranks.

        Args:
            batch: the task's, on the device.
            progress: share of training that is done, in [0, 1]; keep_prob follows from it.
        """
        state, recipe, rank, step = self.state, self.recipe, self.ranks.rank, self.state.step
        network: Any = self.network
        optimizer, scaler, lr = state.optimizer, state.scaler, self.lr.at(step)  # the scaler acts in float16 alone
        if batch.size < recipe.accumulate:
            raise ValueError(
                f"recipe.accumulate={recipe.accumulate}: the {batch.size} samples that a rank has of a batch make no "
                "so many micro-batches"
            )

        # Everything that is a function of the step: mode, learning rate, keep_prob.
        if not state.model.training:  # asked first: the walk over all modules takes half a millisecond
            network.train()
        for group in optimizer.param_groups:
            group["lr"] = lr
        self.layers.set_progress(progress)

        # Accumulate the gradients of the micro-batches.
        micro_batches = [batch] if recipe.accumulate == 1 else batch.split(recipe.accumulate)
        weight, images, previous = torch.zeros((), dtype=torch.float64, device=self.device), 0, None
        for i, micro in enumerate(micro_batches):
            # Draws are a function of where in the run they are used: a resumed run draws the same ones.
            for number, regularizer in enumerate(self.batch_regularizers):
                micro = regularizer(micro, partial(mix, self.seed, MIXES, rank, step, i, number))
            self.layers.set_seeds(mixer(self.seed, MASKS, rank, step, i))
            seed_device(mix(self.seed, OTHERS, rank, step, i), self.device)

            # Gradients travel between ranks once per optimizer step, with the last micro-batch.
            more = i + 1 < len(micro_batches) and isinstance(network, nn.parallel.DistributedDataParallel)
            with network.no_sync() if more else nullcontext(), autocast(self.device, recipe.precision):
                loss, own_weight, sums = self.task.loss(network, micro)
            self.guard.loss(loss, micro, i)

            # The loss of a step is one mean over its micro-batches and ranks, each counted by its weight (images,
            # labelled pixels, positive anchors). The total weight is known only with the last micro-batch; until then
            # it is extrapolated, and the gradients so far are rescaled to each new value. DDP averages over the ranks:
            # so the total is divided by their number.
            if len(micro_batches) > 1 or self.ranks.world_size > 1:
                weight, images = weight + own_weight, images + micro.size
                if i + 1 < len(micro_batches):
                    divisor = self.task.normalizer(weight * batch.size / images)
                else:
                    divisor = self.task.normalizer(self.ranks.sum(weight)) / self.ranks.world_size
                if previous is not None:
                    gradients = [p.grad for p in self.guard.parameters if p.grad is not None]
                    torch._foreach_mul_(gradients, (previous / divisor).to(gradients[0].dtype))
                loss, previous = loss * (self.task.normalizer(own_weight) / divisor), divisor
            scaler.scale(loss).backward()
            state.window.add(sums, micro.size)

        # Check and clip the gradients, without the scale of float16.
        scaler.unscale_(optimizer)
        self.guard.gradients(batch)
        if recipe.grad_clip is not None:
            nn.utils.clip_grad_norm_(state.model.parameters(), recipe.grad_clip)

        # Move the weights; the scaler refuses to where gradients have overflowed, and lowers its scale.
        scale = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if scaler.is_enabled():
            skipped = scaler.get_scale() < scale
            state.skipped += skipped
            state.skipped_in_a_row = state.skipped_in_a_row + 1 if skipped else 0
            if state.skipped_in_a_row > MAX_SKIPS_IN_A_ROW:
                raise NonFinite(f"gradients overflow in {state.skipped_in_a_row} steps in a row, to step {step}")

        # All ranks hold the same running statistics at any moment; the averaged model follows weights and statistics.
        share_statistics(self.statistics, self.ranks)
        state.update_average()
        state.step += 1

    def _settle(self) -> None:
        """Bring checks, clock and drop counters up to this step: the only time training looks at the device."""
        state = self.state
        self.guard.look_back()

        # Training time: evaluations and checkpoints are not in it.
        if self._clock is not None:
            now = time.perf_counter()
            state.seconds += now - self._clock
            state.window.seconds += now - self._clock
            self._clock = now

        # Units that the layers have kept and seen, over all ranks, for the log entry and for the epoch.
        counts = self.layers.take_counts()
        if counts:
            units = self.ranks.sum(torch.tensor(list(counts.values()))).tolist()
            for group, (kept, seen) in zip(counts, units, strict=True):
                for drops in (state.window.drops, state.epoch_drops):
                    before = drops.get(group, [0, 0])
                    drops[group] = [before[0] + kept, before[1] + seen]

    def _log(self) -> None:
        """Write a log entry of the steps since the last one."""
        self._settle()
        state, window, task = self.state, self.state.window, self.task

        # The task's sums over all ranks, in one transfer.
        assert window.sums is not None
        ours = torch.cat([window.sums.cpu(), torch.tensor([window.images], dtype=torch.float64)])
        *sums, images = self.ranks.sum(ours).tolist()
        metrics = task.train_metrics(torch.tensor(sums, dtype=torch.float64), int(images))
        state.images += int(images)

        # Target and measured drop: means over the steps of the window, whose keep_prob changes with every step.
        progress = self._progress(window.start, state.step)
        values = {f"train/{name}": value for name, value in metrics.items()}
        refuse_metrics(values)
        values["lr"] = state.optimizer.param_groups[0]["lr"]
        values |= self.layers.keep_probs(progress)
        for group, share in self.layers.expected_drop(progress).items():
            values[f"drop/measured/{group}"] = dropped(window.drops[group])
            values[f"drop/expected/{group}"] = share
        values["time/images_per_s"] = images / max(window.seconds, 1e-9)
        self.writer.add(state.step, state.step / len(self.data.train), values)

        # Where training has no headline (average precision), the bar shows that of the latest evaluation.
        headline = metrics.get(task.headline, state.last.get(f"test/{task.headline}"))
        unit = task.metrics[task.headline].unit
        shown = [f"loss {metrics['loss']:.3f}"]
        if headline is not None and task.headline != "loss":
            shown.append(f"{task.headline} {metric_text(headline, unit, places=1)}")
        self.bar.show(*shown, f"{values['time/images_per_s']:.0f} img/s")
        state.window = Window(start=state.step)

    def _progress(self, start: int, end: int) -> list[float]:
        """Training progress at each of the steps `start`, ..., `end - 1`, from which their keep_prob followed."""
        return [step / self.total_steps for step in range(start, end)]

    def _stop_if_asked(self) -> None:
        """Write and raise Stopped if a signal has come, to whichever rank."""
        asked = self.ranks.max(self.stop.received)
        if asked:
            self._save()
            raise Stopped(asked, f"after step {self.state.step}")

    def _save(self) -> None:
        """Write the state of this moment as `last.pt`; the one before becomes `previous.pt`."""
        self._settle()
        self._collect_bad_images()
        self.writer.flush()  # no checkpoint is ahead of its metrics
        self._write("last.pt", self.state.state_dict(self.ranks), keep_previous=True)
        self._clock = time.perf_counter()  # writing is no training

    def _write(self, name: str, payload: dict[str, Any], keep_previous: bool = False) -> None:
        if not all_finite([*self.state.model.parameters(), *self.statistics]):
            raise NonFinite(f"a weight or a running statistic is not finite after step {self.state.step}")
        if self.ranks.is_main:
            checkpoint.save({**payload, **self.identity}, self.directory.checkpoints / name, keep_previous)
        self.ranks.barrier()

    def _collect_bad_images(self) -> None:
        """Add path and reason of the images that all ranks' loaders left out to those before a restart."""
        loaders = [loader for loader in (self.data.train, self.data.val, self.data.test) if loader is not None]
        ours = {path: reason for loader in loaders for path, reason in loader.bad_images.items()}
        for part in self.ranks.gather(ours):
            self.state.bad_images |= part

    def _end_epoch(self) -> None:
        """Evaluate, remember the best on val, write. After a signal meanwhile, a resumed run repeats the evaluation."""
        state, task, epoch, epochs = self.state, self.task, self.state.epochs_done + 1, self.recipe.epochs
        self._clock = None  # evaluating is no training
        values: dict[str, float] = {}
        if epoch % self.recipe.eval_every == 0 or epoch == epochs:
            values = self._evaluate()
            self.writer.add(state.step, epoch, values)

        # The weights that are evaluated, averaged ones where there are any: best.pt is for use, not for a resume.
        is_best = state.end_epoch(values, task.headline, task.metrics[task.headline].higher_is_better)
        if values:
            units = {name: metric.unit for name, metric in task.metrics.items()}
            self.bar.write(epoch_line(epoch, epochs, values, units, task.headline, state.best, columns()))
        if is_best:
            self._write("best.pt", {"model": state.evaluated.state_dict(), "step": state.step})

        # Only now is the epoch over. A run whose last epoch is over is done, whatever signal has come.
        self._save()
        if epoch < epochs:
            self._stop_if_asked()

    def _evaluate(self) -> dict[str, float]:
        """The metrics of val, where there is one, and test; pictures of test, where the task draws some."""
        network, values = self.state.evaluated.eval(), dict[str, float]()  # `step` goes back to training mode
        ranks, device, precision = self.ranks, self.device, self.recipe.precision
        self.bar.evaluating()
        for split in ("val", "test"):
            loader = getattr(self.data, split)
            if loader is not None:
                done = evaluate(self.task, network, loader, ranks, device, precision, self._stop_if_asked)
                values |= {f"{split}/{name}": value for name, value in done.metrics.items()}
                if split == "test":
                    self.state.tables = [asdict(table) for table in done.tables]
        refuse_metrics(values)
        if self.task.num_pictures and self.ranks.is_main:
            self._draw(network)
        return values

    @torch.no_grad()
    def _draw(self, network: nn.Module) -> None:
        """Show on TensorBoard what the network makes of the same few test samples, some eight times a run."""
        # A multiple of the epochs between two evaluations, and always the last epoch.
        epoch, epochs, every = self.state.epochs_done + 1, self.recipe.epochs, self.recipe.eval_every
        every *= max(1, epochs // TIMES_DRAWN // every)
        if epoch % every and epoch != epochs:
            return

        # Copies: the loader may use the memory of its batch again.
        if self._samples is None:
            batch = next(self.data.test.epoch(0))
            few = batch.split(-(-batch.size // self.task.num_pictures))[0]
            self._samples = type(few)(**{name: part.clone() for name, part in few.plain().items()})
        with autocast(self.device, self.recipe.precision):
            self.writer.add_images(self.state.step, "test/pictures", self.task.pictures(network, self._samples))

    def _drop(self, measured: float, expected: float) -> dict[str, Any]:
        """The drop of a group in the last epoch; `off` where a layer cannot be dropping what it declares."""
        # The coarsest layers draw once an image, or once a batch: six standard deviations of that, and a point.
        draws = len(self.data.train) if self.layers.draws_once_a_batch() else self.data.train.num_samples
        off = abs(measured - expected) > 0.01 + 6.0 * (expected * (1.0 - expected) / draws) ** 0.5
        return {"measured": measured, "expected": expected, **({"off": True} if off else {})}

    def result(self) -> dict[str, Any]:
        """Results of the run, each number under the name of the split it comes from.

        `last`: the last epoch (the headline). `best`: the epoch chosen on val, None without one. `peak`: the best of
        all epochs on test, the paper's convention, which chooses nothing.
        """
        state, task, per_epoch = self.state, self.task, len(self.data.train)
        last_epoch = self._progress((state.epochs_done - 1) * per_epoch, state.epochs_done * per_epoch)
        expected = self.layers.expected_drop(last_epoch)
        self._collect_bad_images()
        return {
            "last": state.last,
            "best": state.best,
            "peak": state.peak,
            "task": task.name,
            "headline": task.headline,
            **metrics_record(task.metrics),
            "tables": state.tables,
            "drop_last_epoch": {
                group: self._drop(dropped(state.last_drops[group]), share) for group, share in expected.items()
            },
            "steps": state.step,
            "skipped_steps": state.skipped,
            "train_seconds": state.seconds,
            "images_per_s": state.images / max(state.seconds, 1e-9),
            "bad_images": state.bad_images,
        }
