"""The answer to `estimate=true`: hours, memory and disk of every run of a command. Trains nothing.

Imports no torch before the jobs are resolved: a typo is refused without it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from configs.checking import UserError
from configs.compose import compose_without_trace
from configs.plan import Plan
from configs.resolve import resolve_composed
from engine import cpu
from engine.console import counted, duration, table
from experiment.shares import at_a_time, gpus, threads_of

if TYPE_CHECKING:
    from engine.records import RunFolder
    from experiment.cost import Cost, Timing

DEVICES = (1, 8, 64)
TIME_FOR_ALL = 60.0  # seconds of steps, shared by the kinds of runs


@dataclass(frozen=True)
class Job:
    """A run that a command asks for; `plan` None: it was refused, for this reason."""

    overrides: list[str]
    plan: Plan | None = None
    notes: list[str] = field(default_factory=list)
    refused: str = ""


@dataclass(frozen=True)
class Priced:
    """A run directory, what has been done there, and what the rest costs."""

    folder: RunFolder
    status: str
    done: float  # share of its steps
    kind: int
    seconds: float


def price_command(arguments: Sequence[str], sweep: Path | None) -> int:
    """Print what every job of a command would cost; returns the exit code."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("estimate=true: prices a run on one device; omit torchrun")
    workers = at_a_time(arguments)
    if sweep is not None and workers > 1:  # timed with the share of the cores that each will have
        os.environ.setdefault("OMP_NUM_THREADS", threads_of(workers))
    jobs: list[Job] = []
    compose_without_trace(
        arguments,
        sweep is not None,
        lambda config, overrides, _: jobs.append(_job(config, overrides, sweep is not None)),
    )
    if sweep is None and jobs and jobs[0].refused:
        raise UserError(jobs[0].refused)
    at_once = workers if sweep is not None else 1
    with cpu.shared_by(at_once):
        answer, complete = price(jobs, lambda line: print(line, flush=True), at_once)
    print(f"\n{answer}\n\nnothing was trained{'; omit estimate=true to start' if complete else ''}")
    return 0 if complete else 2


def _job(config: DictConfig, overrides: list[str], grid: bool) -> Job:
    try:
        plan, notes = resolve_composed(config, grid)
    except UserError as error:
        return Job(overrides, refused=str(error))
    return Job(overrides, plan, notes)


def price(jobs: Sequence[Job], tell: Callable[[str], None], workers: int = 1) -> tuple[str, bool]:
    """Time every kind of run among the jobs and add up.

    Args:
        jobs: what the command asks for, in order.
        tell: shows a line of progress.
        workers: runs at a time on this machine.

    Returns:
        the answer, and whether every job could be priced.
    """
    from experiment.cost import SECONDS, Timing, cost_class

    plans: dict[str, Plan] = {}  # by directory: equal plans meet there
    kinds: dict[str, Plan] = {}  # by what a step costs, one plan of each
    for plan in (job.plan for job in jobs if job.plan is not None):
        plans.setdefault(str(plan.run_dir()), plan)
        kinds.setdefault(cost_class(plan), plan)
    timing = Timing(min(SECONDS, TIME_FOR_ALL / max(1, len(kinds))))
    _refuse_all(jobs, (timing.problem(plan) for plan in kinds.values()))
    refused = Counter(job.refused for job in jobs if job.refused)
    for reason, count in refused.items():
        tell(f"refused: {reason} ({counted(count, 'job')})")
    costs, problems = _timed(kinds, timing, tell)
    numbers = {kind: number for number, kind in enumerate(kinds, start=1)}
    priced = [
        _priced(plan, numbers[kind], costs[kind]) for plan in plans.values() if (kind := cost_class(plan)) in costs
    ]
    rows = {numbers[kind]: (kinds[kind], cost) for kind, cost in costs.items()}
    parts = [_kinds(rows), _runs(priced), _sums(priced, rows, workers)] if priced else []
    notes = _notes(jobs, priced, problems)
    text = "\n\n".join([*parts, "\n".join(f"note: {note}" for note in notes)]).strip()
    return text, not (problems or refused)


def _timed(
    kinds: dict[str, Plan], timing: Timing, tell: Callable[[str], None]
) -> tuple[dict[str, Cost], dict[str, list[str]]]:
    """The cost of each kind, and the variants of those that cannot be run by their reason."""
    costs: dict[str, Cost] = {}
    problems: dict[str, list[str]] = {}
    for number, (kind, plan) in enumerate(kinds.items(), start=1):
        tell(f"timing {number} of {len(kinds)}: {plan.variant} on {plan.data.name}, {plan.model.name}")
        try:
            costs[kind] = timing.cost(plan)
        except (ValueError, FileNotFoundError, RuntimeError) as error:
            memory = type(error).__name__ == "OutOfMemoryError"
            hint = "; recipe.accumulate=2 halves what is held at once" if memory else ""
            problems.setdefault(f"{' '.join(str(error).split())[:300]}{hint}", []).append(plan.variant)
    return costs, problems


def _notes(jobs: Sequence[Job], priced: Sequence[Priced], problems: dict[str, list[str]]) -> list[str]:
    """What stands below the tables: runs that need no time, notes of the jobs, what cannot be run."""
    meetings = Counter(str(job.plan.run_dir()) for job in jobs if job.plan is not None)
    notes = [f"{count} jobs meet in {place} and run once" for place, count in meetings.items() if count > 1]
    notes += [f"already done: {run.folder.path}" for run in priced if run.status == "DONE"]
    notes += [
        note if count == 1 else f"{note} ({count} jobs)"
        for note, count in Counter(note for job in jobs for note in job.notes).items()
    ]
    return [*notes, *(f"cannot be run: {', '.join(variants)}: {reason}" for reason, variants in problems.items())]


def _refuse_all(jobs: Sequence[Job], problems: Iterable[str]) -> None:
    """Raise UserError if no job can be timed, all for one reason; `problems` are looked at until one is ""."""
    reasons = {job.refused for job in jobs if job.refused}
    for problem in problems:
        reasons.add(problem)
        if not problem or len(reasons) > 1:
            return
    if len(reasons) == 1:
        raise UserError(reasons.pop())


def _priced(plan: Plan, kind: int, cost: Cost) -> Priced:
    """Where the run stands and what is left of it."""
    from engine.records import DONE, RunFolder

    folder = RunFolder(plan.run_dir())
    status = "" if plan.runtime.fresh else folder.status().get("status", "")
    done = 1.0 if status == DONE else 0.0
    if status and status != DONE:
        steps = max((line["step"] for line in folder.metrics()), default=0)
        done = min(1.0, steps / (plan.recipe.epochs * cost.steps_per_epoch))
    return Priced(folder, status, done, kind, cost.seconds(plan.recipe.epochs, plan.recipe.eval_every, done))


def _kinds(rows: dict[int, tuple[Plan, Cost]]) -> str:
    cells = [
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
        for number, (plan, cost) in rows.items()
    ]
    headers = ("kind", "network", "variant", "images/s", "step, ms", "its batch, ms", "memory, GB", "disk a run, MB")
    lines, costs = [table(headers, cells)], [cost for _, cost in rows.values()]
    parts = {cost.timed_batch: cost.batch for cost in costs if cost.timed_batch < cost.batch}
    lines += [
        f"timed on batches of {part}, scaled to {whole}; memory is that of {part}" for part, whole in parts.items()
    ]
    if any(cost.overlap for cost in costs):
        lines.append("batches are made beside the steps: the slower of the two counts")
    return "\n".join(lines)


def _runs(priced: list[Priced]) -> str:
    rows = [
        (run.kind, run.status or "new", f"{100 * run.done:.0f}%", duration(run.seconds), run.folder.path)
        for run in priced
    ]
    return table(("kind", "status", "done", "time left", "run"), rows)


def _sums(priced: list[Priced], kinds: dict[int, tuple[Plan, Cost]], workers: int) -> str:
    left = [run for run in priced if run.status != "DONE"]
    seconds = [run.seconds for run in left]
    disk = sum(kinds[run.kind][1].disk for run in left)
    memory = max(cost.memory for _, cost in kinds.values())
    counts = f"{len(left)} of {len(priced)} runs are not done; without the start of Python and the disk's time"
    rows = [("all together", duration(sum(seconds)), counts)]
    if workers > 1:
        devices = len(gpus()) if any(plan.runtime.device != "cpu" for plan, _ in kinds.values()) else 0
        places = min(workers, devices) if devices else workers
        cores = counted(cpu.cores_of_a_rank(), "core")
        of = f"{places} runs at a time here, {'a GPU' if devices else cores} each"
        rows.append((f"jobs={workers}", duration(finish(seconds, places)), of))
    rows += [
        (f"on {n} device{'s' if n > 1 else ''}", duration(finish(seconds, n)), "whole runs, one a device (arithmetic)")
        for n in DEVICES
    ]
    rows += [
        ("disk", f"{disk / 1e9:.2f} GB", "last, previous and best checkpoint of each"),
        ("memory", f"{memory / 1e9:.2f} GB", "the largest, at its peak"),
    ]
    return table(("price", "value", "of"), rows)


def finish(seconds: Sequence[float], devices: int) -> float:
    """Time until whole runs, one a device, are all done: the longest first, each to the device that is free first."""
    free = [0.0] * devices
    for run in sorted(seconds, reverse=True):
        free[free.index(min(free))] += run
    return max(free)
