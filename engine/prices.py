"""The answer to `estimate=true`: every run of a command with its price, the sums, and what to think twice about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import OutOfMemoryError as MemoryExhausted

from engine.console import duration, table
from engine.estimate import SECONDS, Cost, cost_class, finish, measure
from engine.loop import Fit
from engine.records import DONE, RunFolder

DEVICES = (1, 8, 64)
TIME_FOR_ALL = 60.0  # seconds of steps, shared by the kinds of runs


@dataclass(frozen=True)
class Job:
    """A run that a command asks for; `plan` None: it was refused, for this reason."""

    words: list[str]
    plan: Any = None
    remarks: list[str] = field(default_factory=list)
    refused: str = ""


@dataclass(frozen=True)
class Priced:
    """A run folder, what has been done there, and what the rest costs."""

    folder: RunFolder
    status: str
    done: float  # share of its steps
    kind: int
    seconds: float


def price(jobs: Sequence[Job], assemble: Callable[[Any], Fit], tell: Callable[[str], None]) -> tuple[str, bool]:
    """Time every kind of run among the jobs and add up.

    Args:
        jobs: what the command asks for, in order.
        assemble: a plan to its run, ready for the first step.
        tell: shows a line of progress.

    Returns:
        the answer, and whether every job could be priced.
    """
    plans: dict[str, Any] = {}  # by folder: equal plans meet there
    meetings = Counter(str(job.plan.run_dir()) for job in jobs if job.plan is not None)
    for job in jobs:
        if job.plan is not None:
            plans.setdefault(str(job.plan.run_dir()), job.plan)
    classes = list(dict.fromkeys(cost_class(plan) for plan in plans.values()))
    costs: dict[str, Cost] = {}
    problems = [f"refused: {' '.join(job.words)}: {job.refused}" for job in jobs if job.refused]
    for number, name in enumerate(classes, start=1):
        first = next(plan for plan in plans.values() if cost_class(plan) == name)
        tell(f"timing {number} of {len(classes)}: {first.variant} on {first.data.name}, {first.model.name}")
        try:
            costs[name] = measure(assemble(first), first.recipe.batch_size, min(SECONDS, TIME_FOR_ALL / len(classes)))
        except (ValueError, FileNotFoundError, RuntimeError) as error:
            hint = "; recipe.accumulate=2 halves what is held at once" if isinstance(error, MemoryExhausted) else ""
            problems.append(f"cannot be run: {first.variant}: {' '.join(str(error).split())[:300]}{hint}")
    priced = [
        _priced(plan, classes.index(cost_class(plan)) + 1, costs[cost_class(plan)])
        for plan in plans.values()
        if cost_class(plan) in costs
    ]
    parts = [_kinds(plans, classes, costs), _runs(priced), _sums(priced, classes, costs)] if priced else []
    notes = [f"{count} jobs meet in {place} and run once" for place, count in meetings.items() if count > 1]
    notes += [f"already done: {run.folder.path}" for run in priced if run.status == DONE]
    notes += _remarks(jobs)
    return "\n\n".join([*parts, "\n".join(f"note: {note}" for note in [*notes, *problems])]).strip(), not problems


def _priced(plan: Any, kind: int, cost: Cost) -> Priced:
    """Where the run stands and what is left of it."""
    folder = RunFolder(plan.run_dir())
    status = "" if plan.runtime.fresh else folder.status().get("status", "")
    done = 1.0 if status == DONE else 0.0
    if status and status != DONE:
        steps = max((line["step"] for line in folder.metrics()), default=0)
        done = min(1.0, steps / (plan.recipe.epochs * cost.steps_per_epoch))
    return Priced(folder, status, done, kind, cost.seconds(plan.recipe.epochs, plan.recipe.eval_every, done))


def _kinds(plans: dict[str, Any], classes: list[str], costs: dict[str, Cost]) -> str:
    rows = []
    for number, name in enumerate(classes, start=1):
        if name not in costs:
            continue
        cost = costs[name]
        plan = next(plan for plan in plans.values() if cost_class(plan) == name)
        rows.append(
            (
                number,
                f"{plan.data.name} {plan.model.name}",
                plan.variant,
                f"{cost.images_per_s:.0f}",
                f"{1000 * cost.step:.1f}",
                f"{1000 * cost.loading:.1f}",
                f"{cost.memory / 1e9:.2f}",
                f"{cost.disk / 1e6:.1f}",
            )
        )
    headers = ("kind", "network", "variant", "images/s", "step, ms", "its batch, ms", "memory, GB", "disk a run, MB")
    lines = [table(headers, rows)]
    parts = {cost.timed_batch: cost.batch for cost in costs.values() if cost.timed_batch < cost.batch}
    lines += [
        f"timed on batches of {part}, scaled to {whole}; memory is that of {part}" for part, whole in parts.items()
    ]
    if any(cost.overlap for cost in costs.values()):
        lines.append("batches are made beside the steps: the slower of the two counts")
    return "\n".join(lines)


def _runs(priced: list[Priced]) -> str:
    rows = [
        (run.kind, run.status or "new", f"{100 * run.done:.0f}%", duration(run.seconds), run.folder.path)
        for run in priced
    ]
    return table(("kind", "status", "done", "time left", "run"), rows)


def _sums(priced: list[Priced], classes: list[str], costs: dict[str, Cost]) -> str:
    open_runs = [run for run in priced if run.status != DONE]
    seconds = [run.seconds for run in open_runs]
    disk = sum(costs[classes[run.kind - 1]].disk for run in open_runs)
    rows = [("all together", duration(sum(seconds)), f"{len(open_runs)} of {len(priced)} runs are not done")]
    rows += [
        (f"on {n} device{'s' if n > 1 else ''}", duration(finish(seconds, n)), "whole runs, one a device (arithmetic)")
        for n in DEVICES
    ]
    rows += [
        ("disk", f"{disk / 1e9:.2f} GB", "last, previous and best checkpoint of each"),
        ("memory", f"{max(cost.memory for cost in costs.values()) / 1e9:.2f} GB", "the largest, at its peak"),
    ]
    return table(("price", "value", "of"), rows)


def _remarks(jobs: Sequence[Job]) -> list[str]:
    counts = Counter(remark for job in jobs for remark in job.remarks)
    return [remark if count == 1 else f"{remark} ({count} jobs)" for remark, count in counts.items()]
