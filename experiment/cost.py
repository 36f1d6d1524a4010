"""What a run will cost, from some of its real steps: nothing is trained to an end, nothing is written."""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from configs.plan import Plan
from data import Data
from engine.distributed import Ranks, find_device
from engine.loop import Fit
from engine.precision import autocast
from engine.records import RunFolder
from engine.signals import StopRequest
from experiment.build import build_fit, open_data
from experiment.stopwatch import peak, reset_peak, time_loading, time_of

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
        start: seconds before the first step: the data set opened, the network built.
        saving: seconds of the checkpoints of an epoch, the disk's own time aside.
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
    start: float = 0.0
    saving: float = 0.0

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
        """Of a start, training, evaluating and saving, of what is left when a share of it is done."""
        evaluations = -(-epochs // eval_every)
        loading = self.loading / self.batch
        image = max(self.evaluation, loading) if self.overlap else self.evaluation + loading
        epoch = self.steps_per_epoch * self.step_and_batch + self.saving
        whole = epochs * epoch + evaluations * self.eval_images * image
        return whole * (1.0 - done) + (self.start if done < 1.0 else 0.0)


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
        self.opened: dict[str, tuple[Data, float] | str] = {}  # with the seconds it took, or why it could not be

    def problem(self, plan: Plan) -> str:
        """Why the data of a plan cannot be opened, in one line; "" where they can."""
        try:
            opened = self._open(_timed(plan), find_device(plan.runtime.device))
        except (ValueError, FileNotFoundError, RuntimeError) as error:  # of the device
            return " ".join(str(error).split())
        return opened if isinstance(opened, str) else ""

    def cost(self, plan: Plan) -> Cost:
        """What the run of a plan costs.

        Raises:
            ValueError, FileNotFoundError: if the plan cannot be run.
        """
        device, timed = find_device(plan.runtime.device), _timed(plan)
        opened = self._open(timed, device)
        if isinstance(opened, str):
            raise ValueError(opened)
        data, seconds = opened
        begun = time.perf_counter()
        fit, _ = build_fit(timed, data, RunFolder(plan.run_dir()), device, Ranks(), StopRequest())
        start = seconds + time.perf_counter() - begun
        return replace(measure(fit, plan.recipe.batch_size, self.seconds), start=start)

    def _open(self, timed: Plan, device: torch.device) -> tuple[Data, float] | str:
        recipe = timed.recipe
        key = repr((timed.data, recipe.augment, recipe.batch_size, timed.cutout, timed.autoaugment, timed.runtime))
        if key not in self.opened:
            begun = time.perf_counter()
            try:
                self.opened[key] = open_data(timed, device, Ranks()), time.perf_counter() - begun
            except (ValueError, FileNotFoundError, RuntimeError) as error:
                self.opened[key] = " ".join(str(error).split())
        return self.opened[key]


def _timed(plan: Plan) -> Plan:
    """What is timed in the place of a plan.

    Weights that hardly move cannot diverge, however often they see the same batch; nor can a constant rate, though more
    steps may be timed than the run has.
    """
    batch_size = timed_batch(plan, find_device(plan.runtime.device).type == "cpu")
    return replace(plan, recipe=replace(plan.recipe, batch_size=batch_size, lr=1e-6, lr_schedule="constant"))


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
    batch, loading = time_loading(fit.data.train, seconds / 2, fit.device)
    step = time_of(lambda: fit.step(batch, HALF_WAY), seconds, fit.device)
    network, evaluator = fit.state.evaluated.eval(), fit.task.evaluator(fit.data.test)
    with torch.no_grad(), autocast(fit.device, fit.recipe.precision):
        forward = time_of(lambda: evaluator.update(network, batch), seconds / 4, fit.device)
    memory = peak(fit.device)
    # After a step, whose state belongs to a checkpoint: momentum, averages.
    begun = time.perf_counter()
    last = _size({**fit.state.state_dict(), **fit.identity})
    best = _size({"model": fit.state.evaluated.state_dict(), **fit.identity}) if fit.data.val else 0
    saving = time.perf_counter() - begun
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
        saving=saving,
    )


def _size(payload: dict[str, Any]) -> int:
    """Bytes of a checkpoint."""
    file = io.BytesIO()
    torch.save(payload, file)
    return file.tell()
