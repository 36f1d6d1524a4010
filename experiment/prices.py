"""The answer to `estimate=true`: hours, memory and disk of every run of a command, from some of its real steps.

Nothing is trained to an end, nothing is written. Runs whose steps cost the same are one kind, which is timed once.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from configs.checking import UserError
from configs.evaluation import evaluation_of
from configs.groups import declared
from configs.plan import Plan
from data import Data
from engine import cpu
from engine.console import counted, duration, table
from engine.distributed import Ranks, find_device
from engine.precision import autocast
from engine.run_directory import DONE, RunDirectory
from engine.signals import StopRequest
from experiment.build import build_fit, open_data, refuse_unusable
from experiment.evaluation import images_passed
from experiment.outcome import Job, missing_evaluations, notes_of
from experiment.shares import gpus

TIME_FOR_ALL = 60.0  # seconds of steps, shared by the kinds of runs
SECONDS = 4.0  # at most, for one kind
WARM_UP, MOST_STEPS = 3, 20
PARTS = 16  # of a batch, of which one is tried first
HALF_WAY = 0.5  # of training: a linear schedule drops half as much then, which is its mean
# Keys of a plan that change the cost of no step.
NOT_OF_A_STEP = ("seed", "label_smoothing", "regularizer")
NOT_OF_A_STEP_IN_RECIPE = (
    "name", "epochs", "eval_every", "eval_batch_size", "lr", "lr_schedule", "lr_decay", "decay_epochs",
    "warmup_epochs", "milestones", "momentum", "weight_decay",
)  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """The cost of one kind of run, measured on one device.

    Args:
        step: seconds of an optimizer step, its batch at hand.
        loading: seconds until the next batch is made.
        overlap: batches are made beside the steps (worker processes, steps on a GPU), not between them.
        evaluation: seconds of a forward pass for each image.
        steps_per_epoch, eval_images, batch: the sizes of the run.
        test_images: those of `eval_images` that are test's.
        memory: peak in bytes, of the device, or on a CPU of the process.
        last, best: bytes of those checkpoints; best 0 without val.
        start: seconds before the first step: the data set opened, the network built.
        saving: seconds of the checkpoints of an epoch, the disk's own time aside.
    """

    step: float
    loading: float
    overlap: bool
    evaluation: float
    steps_per_epoch: int
    eval_images: int
    batch: int
    memory: int
    last: int
    best: int
    start: float = 0.0
    saving: float = 0.0
    test_images: int = 0

    @property
    def step_and_batch(self) -> float:
        """Seconds between one step and the next."""
        return max(self.step, self.loading) if self.overlap else self.step + self.loading

    @property
    def image(self) -> float:
        """Seconds to read and evaluate an image."""
        loading = self.loading / self.batch
        return max(self.evaluation, loading) if self.overlap else self.evaluation + loading

    @property
    def disk(self) -> int:
        """Bytes of a run directory with all three checkpoints."""
        return 2 * self.last + self.best

    def seconds(self, epochs: int, eval_every: int, done: float = 0.0) -> float:
        """Seconds to start, train, evaluate and save, when a share of it is done."""
        evaluations = -(-epochs // eval_every)
        epoch = self.steps_per_epoch * self.step_and_batch + self.saving
        whole = epochs * epoch + evaluations * self.eval_images * self.image
        return whole * (1.0 - done) + (self.start if done < 1.0 else 0.0)


def price_jobs(jobs: Sequence[Job], workers: int = 1) -> int:
    """Print what every job of a command would cost; returns the exit code.

    Args:
        jobs: those of the command, in order.
        workers: runs at a time on this machine.

    Raises:
        UserError: if no job can be timed, all for one reason.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("estimate=true: prices a run on one device; omit torchrun")

    # Runs whose steps cost the same are one kind.
    plans: dict[str, Plan] = {}  # by directory: equal plans meet there
    kinds: dict[str, Plan] = {}  # one plan of each
    for plan in (job.plan for job in jobs if job.plan is not None):
        plans.setdefault(str(plan.run_dir()), plan)
        kinds.setdefault(cost_class(plan), plan)

    # Open the data of every kind first: data that are missing stop all runs, and are not worth a minute of timing.
    reasons = Counter(job.refused for job in jobs if job.refused)
    problems: dict[str, list[str]] = {}  # reason -> variants
    opened: dict[str, tuple[Data, float]] = {}  # with the seconds it took; by what of a plan the data depend on
    with cpu.shared_by(workers):
        for kind, plan in list(kinds.items()):
            begun = time.perf_counter()
            try:
                if data_key(plan) not in opened:
                    data = open_data(at_tiny_rate(plan), find_device(plan.runtime.device), Ranks())
                    refuse_unusable(data, Ranks())
                    opened[data_key(plan)] = data, time.perf_counter() - begun
            except (ValueError, FileNotFoundError, RuntimeError) as error:
                problems.setdefault(" ".join(str(error).split())[:300], []).append(kinds.pop(kind).variant)
        if not kinds and len({*reasons, *problems}) == 1:
            raise UserError(next(iter({*reasons, *problems})))
        for reason, count in reasons.items():
            print(f"refused: {reason} ({counted(count, 'job')})", flush=True)

        # Time some steps of each kind.
        costs: dict[str, Cost] = {}
        seconds = min(SECONDS, TIME_FOR_ALL / max(1, len(kinds)))
        began = time.perf_counter()
        for number, (kind, plan) in enumerate(kinds.items(), start=1):
            where = f"{plan.data.name}, {plan.model.name}"
            spent, left = time.perf_counter() - began, len(kinds) - number + 1
            first = f"some {duration(2 * seconds * left)} for all, more for large networks"
            ahead = f"about {duration(spent / (number - 1) * left)} to go" if number > 1 else first
            print(f"timing {number} of {len(kinds)}: {plan.variant} on {where}; {ahead}", flush=True)
            try:
                costs[kind] = cost_of(plan, *opened[data_key(plan)], seconds)
            except (ValueError, FileNotFoundError, RuntimeError) as error:
                memory = type(error).__name__ == "OutOfMemoryError"
                hint = "; recipe.accumulate=2 halves what is held at once" if memory else ""
                problems.setdefault(f"{' '.join(str(error).split())[:300]}{hint}", []).append(plan.variant)

        # The tables, and below them what a user should know before the start.
        meetings = Counter(str(job.run) for job in jobs if job.plan is not None)
        lines = [f"{count} jobs meet in {place} and run once" for place, count in meetings.items() if count > 1]
        lines += notes_of(jobs)
        lines += [f"cannot be run: {', '.join(variants)}: {reason}" for reason, variants in problems.items()]
        answer = answer_text(plans, {kind: (kinds[kind], cost) for kind, cost in costs.items()}, workers)
    complete = not (reasons or problems)
    print("\n" + "\n\n".join(filter(None, [answer, "\n".join(f"note: {line}" for line in lines)])))
    print(f"\nnothing was trained{'; omit estimate=true to start' if complete else ''}")
    return 0 if complete else 2


def cost_class(plan: Plan) -> str:
    """Equal for plans whose steps cost the same: all of a plan but its length, its rates, its seed, what is tuned."""
    identity = plan.identity()
    knobs = {of.tune.knob for of in map(declared, plan.regularizer) if of.tune is not None}
    for part in (identity["layer"], *identity["companions"], *(of["options"] for of in identity.get("methods", []))):
        for knob in knobs & {*(part or ())}:
            part.pop(knob)
    for knob in knobs:
        identity.pop(knob, None)  # of the three that have a key of their own
    recipe = {key: value for key, value in identity["recipe"].items() if key not in NOT_OF_A_STEP_IN_RECIPE}
    kept = {key: value for key, value in identity.items() if key not in NOT_OF_A_STEP}
    return json.dumps({**kept, "recipe": recipe}, sort_keys=True)


def data_key(plan: Plan) -> str:
    """Equal for plans that can share one opened data set: `cost_class` without the network and its layer."""
    kept = {key: value for key, value in json.loads(cost_class(plan)).items() if key not in ("model", "layer")}
    return json.dumps({**kept, "companions": [], "root": str(plan.data.root), "runtime": repr(plan.runtime)})


def at_tiny_rate(plan: Plan) -> Plan:
    """The plan at a rate so low that its weights cannot diverge, however often they see the same batch."""
    return replace(plan, recipe=replace(plan.recipe, lr=1e-6, lr_schedule="constant"))


def cost_of(plan: Plan, data: Data, opening: float, seconds: float) -> Cost:
    """Time the parts of a run: making batches, steps on one of them, a forward pass, a checkpoint.

    Args:
        plan: a run of the kind.
        data: its data set.
        opening: seconds that opening it took.
        seconds: to spend on the steps; the other parts get a share of it.

    Raises:
        ValueError, FileNotFoundError: if the plan cannot be run.
    """
    device, begun = find_device(plan.runtime.device), time.perf_counter()
    fit, _ = build_fit(at_tiny_rate(plan), data, RunDirectory(plan.run_dir()), device, Ranks(), StopRequest())
    start = opening + time.perf_counter() - begun

    # The largest use of memory is counted from here on: of the device, or of this process without its loader workers.
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux alone; elsewhere the peak is that of the whole process
            Path("/proc/self/clear_refs").write_text("5")
    batch, loading = time_loading(fit.data.train, seconds / 2, device)
    # A part of a batch says how long a step will take, before one is waited for. Of its two steps the first warms up.
    part = batch.split(max(1, min(PARTS, batch.size // (2 * plan.recipe.accumulate))))[0]
    for _ in range(2):
        begun = time.perf_counter()
        fit.step(part, HALF_WAY)
        wait(device)
    ahead = (time.perf_counter() - begun) * batch.size / part.size
    if ahead > seconds:
        whole = f"timing this kind about {duration(3 * ahead)}"  # two steps, and passes without a gradient
        print(f"  a step of {counted(batch.size, 'image')} takes about {duration(ahead)}, {whole}", flush=True)
    step = time_of(lambda: fit.step(batch, HALF_WAY), seconds, device)
    network, evaluator = fit.state.evaluated.eval(), fit.task.evaluator(fit.data.test)
    with torch.no_grad(), autocast(device, plan.recipe.precision):
        forward = time_of(lambda: evaluator.update(network, batch), seconds / 4, device)
    unit = 1 if sys.platform == "darwin" else 1024
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    memory = torch.cuda.max_memory_allocated(device) if on_gpu else host

    # last.pt and best.pt, the latter only with val. After a step: what it leaves, such as momentum and averages,
    # belongs to a checkpoint.
    begun, sizes = time.perf_counter(), []
    for payload in (fit.state.state_dict(), {"model": network.state_dict()} if fit.data.val else None):
        file = io.BytesIO()
        if payload is not None:
            torch.save({**payload, **fit.identity}, file)
        sizes.append(file.tell())
    saving = time.perf_counter() - begun
    return Cost(
        step=step,
        loading=loading,
        overlap=on_gpu and getattr(fit.data.train, "workers", 0) > 0,
        evaluation=forward / batch.size,
        steps_per_epoch=len(fit.data.train),
        eval_images=fit.data.test.num_samples + (fit.data.val.num_samples if fit.data.val else 0),
        batch=batch.size,
        memory=memory,
        last=sizes[0],
        best=sizes[1],
        start=start,
        saving=saving,
        test_images=fit.data.test.num_samples,
    )


def time_of(run: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Median seconds of a call: a few that do not count, then up to 20 or until the time is spent."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    for number in range(WARM_UP + MOST_STEPS):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        taken.append(time.perf_counter() - start)
        if number == WARM_UP - 1:
            end = max(end, time.perf_counter() + seconds / 2)
        if time.perf_counter() > end and number:
            break
    counting = sorted(taken[WARM_UP:] or taken[1:])
    return counting[len(counting) // 2]


def time_loading(loader: Any, seconds: float, device: torch.device) -> tuple[Any, float]:
    """A batch, and the seconds from one to the next when nothing else is done meanwhile.

    Worker processes bring their first batches all at the same time, and so on in waves: what is counted begins with
    one and ends at the same place of another wave, so that a queue filled before it is not mistaken for speed.
    """
    workers = getattr(loader, "workers", 0)
    batches: Iterator[Any] = loader.epoch(0)
    batch = next(batches)
    wait(device)
    start, count = time.perf_counter(), 0
    for batch in batches:  # noqa: B007 - the last one is handed back
        count += 1
        whole_waves = count % max(1, workers) == 0
        if whole_waves and (count >= MOST_STEPS or time.perf_counter() - start > seconds):
            break
    wait(device)
    spent = time.perf_counter() - start
    if hasattr(batches, "close"):
        batches.close()  # ends the workers
    return batch, spent / max(1, count)


def wait(device: torch.device) -> None:
    """Block until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def answer_text(plans: dict[str, Plan], kinds: dict[str, tuple[Plan, Cost]], workers: int) -> str:
    """Three tables: a row for each kind, a row for each run with what is left of it, and the sums.

    Args:
        plans: by run directory.
        kinds: those that could be timed, a plan and the cost of each.
        workers: runs at a time on this machine.
    """
    if not kinds:
        return ""

    # A row for each kind: what was timed.
    headers = ("kind", "network", "variant", "images/s", "step, ms", "its batch, ms", "memory, GB", "disk a run, MB")
    rows: list[tuple[object, ...]] = [
        (
            number,
            f"{plan.data.name} {plan.model.name}",
            plan.variant,
            f"{cost.batch / cost.step_and_batch:.0f}",
            f"{1000 * cost.step:.1f}",
            f"{1000 * cost.loading:.1f}",
            f"{cost.memory / 1e9:.2f}",
            f"{cost.disk / 1e6:.1f}",
        )
        for number, (plan, cost) in enumerate(kinds.values(), start=1)
    ]
    parts = [table(headers, rows)]
    if any(cost.overlap for _, cost in kinds.values()):
        parts[0] += "\nbatches are made beside the steps: the slower of the two counts"

    # A row for each run: of one that was begun, the steps in its metrics are done.
    numbers = {kind: number for number, kind in enumerate(kinds, start=1)}
    rows, left, disk, count = [], [], 0, 0
    of_pilots: list[float] = []
    of_evaluations = 0.0
    for place, plan in plans.items():
        kind = cost_class(plan)
        if kind not in kinds:
            continue
        cost, folder = kinds[kind][1], RunDirectory(Path(place))
        status = "" if plan.runtime.fresh else folder.status().get("status", "")
        done = 1.0 if status == DONE else 0.0
        if status and status != DONE:
            steps = max((line["step"] for line in folder.metrics()), default=0)
            done = min(1.0, steps / (plan.recipe.epochs * cost.steps_per_epoch))
        evaluating = cost.image * sum(
            images_passed(plan, evaluation_of(text), cost.test_images, cost.eval_images - cost.test_images)
            for text in (
                plan.runtime.evaluations if plan.runtime.fresh and not plan.pilot else missing_evaluations(plan)
            )
        )
        of_evaluations += evaluating
        seconds = cost.seconds(plan.recipe.epochs, plan.recipe.eval_every, done) + evaluating
        rows.append((numbers[kind], status or "new", f"{100 * done:.0f}%", duration(seconds), place))
        count += 1
        if seconds > 0:
            left.append(seconds)
            of_pilots += [seconds] if plan.pilot else []
            disk += 0 if status == DONE else cost.disk
    parts.append(table(("kind", "status", "done", "time left", "run"), rows))

    # The sums; with jobs=N no command ends before its longest run.
    counts = f"{len(left)} of {count} runs are not done; without the start of Python and the disk's time"
    rows = [("all together", duration(sum(left)), counts)]
    if of_pilots:
        rows.append(("of these, pilots", duration(sum(of_pilots)), f"{counted(len(of_pilots), 'run')} that tune= adds"))
    if of_evaluations:
        rows.append(("of these, evaluations", duration(of_evaluations), "of the finished runs, as evaluations= asks"))
    if workers > 1:
        devices = len(gpus()) if any(plan.runtime.device != "cpu" for plan, _ in kinds.values()) else 0
        places = min(workers, devices) if devices else workers
        at_once = max([sum(left) / places, *left])
        of = f"{places} runs at a time here, {'a GPU' if devices else counted(cpu.cores_of_a_rank(), 'core')} each"
        rows.append((f"jobs={workers}", duration(at_once), of))
    rows += [
        ("disk", f"{disk / 1e9:.2f} GB", "last, previous and best checkpoint of each"),
        ("memory", f"{max(cost.memory for _, cost in kinds.values()) / 1e9:.2f} GB", "the largest, at its peak"),
    ]
    return "\n\n".join([*parts, table(("price", "value", "of"), rows)])
