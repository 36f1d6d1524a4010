"""The runs of one command, one or many. Imports no torch, so a mistake in the first job is reported without it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig

from configs.checking import UserError
from configs.command_line import LAUNCHER, asks_for, split_flags, values_given
from configs.compose import compose_jobs, compose_without_trace
from configs.plan import Plan
from configs.resolve import resolve_composed
from engine import cpu
from engine.files import absent, remove_made
from experiment.display import names_of
from experiment.jobs import Job, run_jobs
from experiment.launchers import check_launcher, launcher_of
from experiment.outcome import CODE_OF, STOPPED_CODES, Outcome, exit_code, report_error
from experiment.shares import at_a_time


@dataclass(frozen=True)
class Command:
    """What the jobs of a command share.

    Args:
        sweep: its directory; None for a single run.
        began: when it was given (`time.time`).
        log: what a run prints goes to log.txt in its directory.
        reported: the errors of its jobs so far.
    """

    sweep: Path | None
    began: float
    log: bool = False
    reported: set[str] = field(default_factory=set)


def run_job(
    command: Command,
    config: DictConfig,
    overrides: list[str],
    number: int = 0,
    in_use: Literal["fail", "later", "wait"] = "fail",
) -> Outcome:
    """One run of a command; never raises, so that a grid goes on.

    Args:
        command: what the job is one of.
        config, overrides: its configuration, and the command line that it was composed of.
        number: its place in the command.
        in_use: what to do if another process trains this run. "fail": report an error; "later": return an outcome with
            `in_use`, so that the caller starts the job again after the others; "wait": wait until that process ends.
    """
    sweep = command.sweep
    run, reason, outcome = None, "", Outcome()
    shown: dict[str, Any] = {}
    try:
        if sweep is not None:
            print(f"\n=== run {number + 1}: {' '.join(overrides)}", flush=True)
        plan, notes = resolve_composed(config, grid=sweep is not None)
        run, shown = plan.run_dir(), {"experiment": plan.experiment, "paper": asdict(plan.paper)}
        for note in notes:
            print(f"note: {note}")
        from experiment.run import run_plan

        summary = run_plan(plan, overrides, command.began, in_use == "wait", command.log)
        shown["last test"] = summary["last"].get(f"test/{summary['headline']}")
    except BaseException as error:
        if in_use == "later" and getattr(error, "in_use", False):
            print(f"{error}; left for the end", flush=True)
            return Outcome(in_use=True)
        code, reason = report_error(error, config.get("fresh") is True, command.reported)
        # An error without `exit_code` may have met this rank only. Were it to begin the next job, it and the others
        # would wait for each other in different jobs.
        maybe_this_rank_only = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not hasattr(error, "exit_code")
        done = getattr(error, "done", False)
        ends_all = maybe_this_rank_only or code in STOPPED_CODES
        outcome = Outcome(code, refused="" if run else reason, ends_all=ends_all, done=done, reason=reason)
    if sweep is not None and run is not None and os.environ.get("RANK", "0") == "0":
        from experiment.sweep import note_run

        note_run(sweep, run, outcome.status, overrides, reason, **shown)
    return outcome


def run_command(arguments: list[str], sweep: Path | None) -> int:
    """Carry out every job of a command; returns its exit code."""
    workers = _workers(arguments, sweep)
    check_launcher(arguments)
    if asks_for("plan", arguments):
        return _show(arguments, sweep is not None)
    if sweep is not None and workers > 1:
        return _run_pool(arguments, sweep, workers)
    here, made = os.getpid(), absent(sweep) if sweep is not None else []
    # Logs of ray itself are hard to find.
    command = Command(sweep, time.time(), log=launcher_of(arguments) == "ray")
    outcomes: list[Outcome] = []
    later: list[tuple[DictConfig, list[str], int]] = []

    def each(config: DictConfig, overrides: list[str], number: int) -> None:
        if os.getpid() != here:  # of a launcher; what becomes of the job is read from the folder of the sweep
            cpu.configure_process()
            refused = run_job(command, config, overrides, number).refused
            if refused:
                raise UserError(refused)
        elif not any(outcome.ends_all for outcome in outcomes):
            outcomes.append(run_job(command, config, overrides, number, "fail" if sweep is None else "later"))
            if outcomes[-1].in_use:
                later.append((config, overrides, number))

    compose_jobs(arguments, sweep, each)
    if shows_configuration(arguments):
        return 0
    for config, overrides, number in later:  # done by now, or waited for, or taken over if the other process died
        if not any(outcome.ends_all for outcome in outcomes):
            outcomes.append(run_job(command, config, overrides, number, "wait"))
    return exit_code(outcomes, False) if sweep is None else _close(sweep, command.began, outcomes, made)


def shows_configuration(arguments: list[str]) -> bool:
    """Whether Hydra prints the composed configuration and starts no job."""
    return any(flag.startswith(("-c", "--cfg")) for flag in split_flags(arguments)[0])


def _show(arguments: list[str], grid: bool) -> int:
    """Print what every job of a command would run; returns the exit code. Writes nothing."""
    jobs: list[Job] = []
    plans: list[Plan] = []
    refused: dict[str, int] = {}  # each reason once
    notes: Counter[str] = Counter()

    def each(config: DictConfig, overrides: list[str], number: int) -> None:
        try:
            plan, found = resolve_composed(config, grid)
        except UserError as error:
            if str(error) not in refused:
                refused[str(error)] = report_error(error)[0]
            return
        notes.update(found)
        plans.append(plan)
        jobs.append(Job(number, overrides, plan.run_dir()))

    compose_without_trace(arguments, grid, each)
    for note, count in notes.items():
        print(f"note: {note}{'' if count == 1 else f' ({count} runs)'}")
    try:
        from experiment.preview import preview, preview_grid

        names = names_of(jobs)
        if len(jobs) > 1:
            print(preview_grid({names[job.number]: plan for job, plan in zip(jobs, plans, strict=True)}))
        elif jobs:
            print(preview(plans[0]))
    except Exception as error:
        return report_error(error)[0]
    return max(refused.values(), default=0)


def _close(sweep: Path, started: float, outcomes: list[Outcome], made: Sequence[Path]) -> int:
    """Print the closing table of a sweep; returns its exit code.

    Args:
        sweep: its folder.
        started: when the command was given.
        outcomes: of its jobs; none where a launcher started them elsewhere.
        made: what was absent of the folder before; it is removed again if no job left a run.
    """
    from experiment.sweep import read_runs, summary_text

    refused = [outcome.refused for outcome in outcomes if outcome.refused]
    runs = read_runs(sweep, since=started)
    empty = bool(made and outcomes) and not any(Path(run["run"]).exists() for run in read_runs(sweep))
    if empty:
        remove_made(made)
    print(f"\n{summary_text(runs, None if empty else sweep, refused)}")
    return exit_code(outcomes or [Outcome(CODE_OF.get(run["status"], 1)) for run in runs], True)


def _workers(arguments: list[str], sweep: Path | None) -> int:
    """How many runs at a time the command asks for.

    Raises:
        UserError: for jobs= where it would have no effect or cannot be combined.
    """
    workers = at_a_time(arguments)
    if workers > 1:
        if sweep is None:
            asked = values_given(arguments)["jobs"]
            raise UserError(f"jobs={asked}: a single run is one job; -m or +sweep= start many")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UserError(f"jobs={workers}: runs on one process each; omit torchrun")
        if any(argument.startswith(LAUNCHER) for argument in arguments):
            raise UserError(f"jobs={workers}: a launcher has a queue of its own; omit one of the two")
        if any(argument.startswith("device=cuda:") for argument in arguments):
            raise UserError(f"jobs={workers}: gives each run a GPU of its own; write device=cuda, without a number")
    return workers


def _run_pool(arguments: list[str], sweep: Path, workers: int) -> int:
    """Carry out a sweep several runs at a time; returns its exit code."""
    started, made = time.time(), absent(sweep)
    jobs: list[Job] = []
    again: list[Job] = []  # jobs whose run an earlier one does
    outcomes: list[Outcome] = []
    on_gpu = True
    notes: Counter[str] = Counter()
    configs: list[DictConfig] = []  # of the jobs that are not refused

    def each(config: DictConfig, overrides: list[str], number: int) -> None:
        nonlocal on_gpu
        try:
            plan, found = resolve_composed(config, grid=True)
        except UserError as error:
            outcomes.append(Outcome(report_error(error)[0], refused=str(error)))
            return
        notes.update(found)
        configs.append(config)
        job = Job(number, overrides, plan.run_dir(), plan.recipe.epochs, plan.experiment)
        on_gpu = on_gpu and plan.runtime.device != "cpu"
        (again if any(job.run == other.run for other in jobs) else jobs).append(job)

    compose_jobs(arguments, sweep, each)
    if shows_configuration(arguments):
        return 0
    if len(configs) == 1:  # this process is there already, a worker would have to start
        outcomes.append(run_job(Command(sweep, started), configs[0], jobs[0].overrides, jobs[0].number, "wait"))
        return _close(sweep, started, outcomes, made)
    for note, count in notes.items():
        print(f"note: {note}{'' if count == 1 else f' ({count} runs)'}")
    if jobs:
        outcomes += run_jobs(jobs + again, workers, sweep, started, on_gpu)
    return _close(sweep, started, outcomes, made)
