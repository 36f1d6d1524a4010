"""What a run will cost, from some of its real steps: nothing is trained to an end, nothing is written."""

from __future__ import annotations

import io
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from configs.plan import Plan
from data import Data
from engine.distributed import Ranks, find_device
from engine.evaluation import autocast
from engine.loop import Fit
from engine.records import RunFolder
from engine.signals import StopRequest
from experiment.build import build_fit, open_data

WARM_UP, MOST_STEPS = 3, 20
SECONDS = 4.0  # of steps that count, for each kind of run; less where there are many kinds
HALF_WAY = 0.5  # of training: a linear schedule drops half as much then, which is its mean
# On a CPU a batch of more is timed by a part of it: the step of a thousand photographs would take minutes and 100 GB.
PIXELS = 3_000_000
NOT_OF_A_STEP = (  # what of a plan changes no step's cost
    *("epochs", "eval_every", "eval_batch_size", "lr", "lr_schedule", "lr_decay", "decay_epochs", "warmup_epochs"),
    *("milestones", "momentum", "weight_decay", "name"),
)


@dataclass(frozen=True)
class Cost:
    """Measured on one device.

    Args:
        step: seconds of an optimizer step, its batch at hand.
        loading: seconds until the next batch is made.
        overlap: batches are made beside the steps (worker processes, steps on a GPU), not between them.
        evaluation: seconds per image of a forward pass.
        steps_per_epoch, train_images, eval_images: of the data set.
        batch, timed_batch: images of a step, and of the steps that were timed.
        memory: peak in bytes; of the device, or on a CPU of the process.
        last, best: bytes of those checkpoints; best 0 without val.
    """

    step: float
    loading: float
    overlap: bool
    evaluation: float
    steps_per_epoch: int
    train_images: int
    eval_images: int
    batch: int
    timed_batch: int
    memory: int
    last: int
    best: int

    @property
    def step_and_batch(self) -> float:
        """Seconds between one step and the next."""
        return max(self.step, self.loading) if self.overlap else self.step + self.loading

    @property
    def images_per_s(self) -> float:
        return self.batch / self.step_and_batch

    @property
    def disk(self) -> int:
        """Bytes of a run folder when all three checkpoints stand."""
        return 2 * self.last + self.best

    def seconds(self, epochs: int, eval_every: int, done: float = 0.0) -> float:
        """Of training and evaluating, of what is left when a share of it is done."""
        evaluations = -(-epochs // eval_every)
        loading = self.loading / self.batch
        image = max(self.evaluation, loading) if self.overlap else self.evaluation + loading
        whole = epochs * self.steps_per_epoch * self.step_and_batch + evaluations * self.eval_images * image
        return whole * (1.0 - done)


def cost_class(plan: Plan) -> str:
    """Equal for plans whose steps cost the same: everything of a plan but its length, its rates and its seed."""
    identity = plan.identity()
    recipe = {key: value for key, value in identity["recipe"].items() if key not in NOT_OF_A_STEP}
    kept = {key: value for key, value in identity.items() if key not in ("seed", "label_smoothing", "regularizer")}
    return json.dumps({**kept, "recipe": recipe}, sort_keys=True)


def timed_batch(plan: Plan, on_cpu: bool) -> int:
    """Images of the batch that is timed in the place of the plan's."""
    batch = plan.recipe.batch_size
    most = max(2, PIXELS // plan.data.image_size**2) if on_cpu else batch
    part = min(batch, most)
    return max(plan.recipe.accumulate, part - part % plan.recipe.accumulate)


class Timing:
    """Times some steps of plans; data sets that are opened once serve all plans that read the same.

    Args:
        seconds: to spend on each part of a plan: steps, loading, evaluation.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self.opened: dict[str, Data] = {}

    def cost(self, plan: Plan) -> Cost:
        """What the run of a plan costs.

        Raises:
            ValueError, FileNotFoundError: if the plan cannot be run.
        """
        device = find_device(plan.runtime.device)
        # Weights that hardly move cannot diverge, however often they see the same batch; nor can a constant rate,
        # though more steps may be timed than the run has.
        batch_size = timed_batch(plan, device.type == "cpu")
        recipe = replace(plan.recipe, batch_size=batch_size, lr=1e-6, lr_schedule="constant")
        timed = replace(plan, recipe=recipe)
        key = repr((timed.data, recipe.augment, recipe.batch_size, timed.cutout, timed.autoaugment, timed.runtime))
        if key not in self.opened:
            self.opened[key] = open_data(timed, device, Ranks())
        fit, _ = build_fit(timed, self.opened[key], RunFolder(plan.run_dir()), device, Ranks(), StopRequest())
        return measure(fit, plan.recipe.batch_size, self.seconds)


def measure(fit: Fit, batch_size: int, seconds: float = SECONDS) -> Cost:
    """Time the parts of a run: making batches, steps on one of them, a forward pass.

    Args:
        fit: with its own loader, perhaps of smaller batches; its state is invalid afterwards.
        batch_size: of the plan; all times are scaled to it.
        seconds: to spend on each part.

    Raises:
        ValueError: if the plan's batch is larger than the training set.
    """
    reset_peak(fit.device)
    batch, loading = _time_loading(fit.data.train, seconds / 2, fit.device)
    step = _time(lambda: fit.step(batch, HALF_WAY), seconds, fit.device)
    network, evaluator = fit.state.evaluated.eval(), fit.task.evaluator(fit.data.test)
    with torch.no_grad(), autocast(fit.device, fit.settings.precision):
        forward = _time(lambda: evaluator.update(network, batch), seconds / 4, fit.device)
    memory = peak(fit.device)
    # After a step, whose state belongs to a checkpoint: momentum, averages.
    last = _size({**fit.state.state_dict(), **fit.identity})
    best = _size({"model": fit.state.evaluated.state_dict(), **fit.identity}) if fit.data.val else 0
    timed, train_images = batch.size, fit.data.train.num_samples
    if batch_size > train_images:
        raise ValueError(f"batch_size {batch_size} is larger than the {train_images} training samples")
    scale = batch_size / timed
    return Cost(
        step=step * scale,
        loading=loading * scale,
        overlap=fit.device.type == "cuda" and getattr(fit.data.train, "workers", 0) > 0,
        evaluation=forward / timed,
        steps_per_epoch=train_images // batch_size,
        train_images=train_images,
        eval_images=fit.data.test.num_samples + (fit.data.val.num_samples if fit.data.val else 0),
        batch=batch_size,
        timed_batch=timed,
        memory=memory,
        last=last,
        best=best,
    )


def _time(run: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Median seconds of a call: a few that do not count, then up to 20 or until the time is spent."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    for number in range(WARM_UP + MOST_STEPS):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        taken.append(time.perf_counter() - start)
        if number == WARM_UP - 1:
            end = max(end, time.perf_counter() + seconds / 2)
        if time.perf_counter() > end and number:
            break
    counted = sorted(taken[WARM_UP:] or taken[1:])
    return counted[len(counted) // 2]


def _time_loading(loader: Any, seconds: float, device: torch.device) -> tuple[Any, float]:
    """A batch, and the seconds from one to the next when nothing else is done meanwhile.

    Worker processes bring their first batches all at the same time, and so on in waves: what is counted begins with
    one and ends at the same place of another wave, so that no queue filled before it is taken for speed.
    """
    workers = getattr(loader, "workers", 0)
    batches: Iterator[Any] = loader.epoch(0)
    batch = next(batches)
    _wait(device)
    start = time.perf_counter()
    count = 0
    for batch in batches:  # noqa: B007 - the last one is handed back
        count += 1
        whole_waves = count % max(1, workers) == 0
        if whole_waves and (count >= MOST_STEPS or time.perf_counter() - start > seconds):
            break
    _wait(device)
    spent = time.perf_counter() - start
    if hasattr(batches, "close"):
        batches.close()  # ends the workers
    return batch, spent / max(1, count)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Let the largest use of memory be counted from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux alone; elsewhere the peak is that of the whole process
            Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """The largest use of memory in bytes: of the device, or of this process without its loader workers."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _size(payload: dict[str, Any]) -> int:
    """Bytes of a checkpoint."""
    file = io.BytesIO()
    torch.save(payload, file)
    return file.tell()
