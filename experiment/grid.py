"""One run or many of one command. Imports no torch: a mistake in the first job is refused before that."""

from __future__ import annotations

import os
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from configs.checking import UserError
from configs.compose import compose_jobs
from configs.resolve import resolve_composed
from engine import cpu
from experiment.jobs import Job, run_jobs
from experiment.launchers import check_launcher, launcher_of
from experiment.outcome import CODE_OF, STOPPED_CODES, Outcome, exit_code, report_error
from experiment.shares import at_a_time


def run_job(
    config: DictConfig,
    overrides: list[str],
    sweep: Path | None,
    number: int,
    began: float,
    later: bool,
    wait: bool = False,
    log: bool = False,
) -> Outcome:
    """One run of this command, which began at that time, or one of many; never raises, so that a grid goes on.

    A run that another process has is looked at again `later`, or waited for, or reported as not done. With `log` what
    the run prints goes to its log.txt.
    """
    run, reason, outcome = None, "", Outcome()
    shown: dict[str, Any] = {}
    try:
        if sweep is not None:
            print(f"\n=== run {number + 1}: {' '.join(overrides)}", flush=True)
        plan, notes = resolve_composed(config, grid=sweep is not None)
        if sweep is not None and plan.runtime.run_dir:
            raise UserError("run_dir: all runs of a grid would share this folder; leave it out")
        run, shown = plan.run_dir(), {"experiment": plan.experiment, "paper": asdict(plan.paper)}
        for note in notes:
            print(f"note: {note}")
        if config.plan:
            from experiment.preview import preview

            print(preview(plan))
            return outcome
        from experiment.run import run_plan

        summary = run_plan(plan, overrides, began, wait, log)
        shown["last test"] = summary["last"].get(f"test/{summary['headline']}")
    except BaseException as error:
        if later and getattr(error, "in_use", False):
            print(f"{error}; left for the end", flush=True)
            return Outcome(in_use=True)
        code, reason = report_error(error, config.get("fresh") is True)
        # Ranks that do not all know of a failure would wait for each other in different jobs.
        alone = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not hasattr(error, "exit_code")
        done = getattr(error, "done", False)
        outcome = Outcome(
            code, refused="" if run else reason, ends_all=alone or code in STOPPED_CODES, done=done, reason=reason[:200]
        )
    if sweep is not None and run is not None and os.environ.get("RANK", "0") == "0":
        from experiment.sweep import note_run

        note_run(sweep, run, outcome.status, overrides, reason, **shown)
    return outcome


def run_command(arguments: list[str], sweep: Path | None) -> int:
    """Carry out every job of a command; returns its exit code."""
    workers = _workers(arguments, sweep)
    check_launcher(arguments)
    if sweep is not None and workers > 1:
        return _run_pool(arguments, sweep, workers)
    started, here, launcher = time.time(), os.getpid(), launcher_of(arguments)
    outcomes: list[Outcome] = []
    later: list[tuple[DictConfig, list[str], int]] = []

    def each(config: DictConfig, overrides: list[str], number: int) -> None:
        if os.getpid() != here:  # of a launcher; what becomes of the job is read from the folder of the sweep
            cpu.configure_process()
            log = launcher == "ray"  # whose own logs are hard to find
            refused = run_job(config, overrides, sweep, number, started, later=False, log=log).refused
            if refused:
                raise UserError(refused)
        elif not any(outcome.ends_all for outcome in outcomes):
            outcomes.append(run_job(config, overrides, sweep, number, started, later=sweep is not None))
            if outcomes[-1].in_use:
                later.append((config, overrides, number))

    compose_jobs(arguments, sweep, each)
    for config, overrides, number in later:  # done by now, or waited for, or taken over if the other process died
        if not any(outcome.ends_all for outcome in outcomes):
            outcomes.append(run_job(config, overrides, sweep, number, started, later=False, wait=True))
    return exit_code(outcomes, False) if sweep is None else _close(sweep, started, outcomes)


def _close(sweep: Path, started: float, outcomes: list[Outcome]) -> int:
    """Print the closing table of a sweep; returns its exit code."""
    from experiment.sweep import read_runs, summary_text

    refused = [outcome.refused for outcome in outcomes if outcome.refused]
    runs = read_runs(sweep, since=started)
    print(f"\n{summary_text(runs, sweep, refused)}")
    return exit_code(outcomes or [Outcome(CODE_OF.get(run["status"], 1)) for run in runs], True)


def _workers(arguments: list[str], sweep: Path | None) -> int:
    """How many runs at a time the command asks for.

    Raises:
        UserError: for jobs= where it would have no effect or cannot be combined.
    """
    workers = at_a_time(arguments)
    if workers > 1:
        if sweep is None:
            raise UserError(f"jobs={workers}: a single run is one job; -m or +sweep= start many")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UserError(f"jobs={workers}: runs on one process each; omit torchrun")
        if any(argument.startswith(("hydra/launcher", "hydra.launcher")) for argument in arguments):
            raise UserError(f"jobs={workers}: a launcher has a queue of its own; omit one of the two")
    return 1 if "plan=true" in arguments else workers  # nothing runs


def _run_pool(arguments: list[str], sweep: Path, workers: int) -> int:
    """Carry out a sweep several runs at a time; returns its exit code."""
    started = time.time()
    jobs: list[Job] = []
    again: list[Job] = []  # jobs whose run an earlier one does
    outcomes: list[Outcome] = []
    on_gpu = True
    notes: Counter[str] = Counter()

    def each(config: DictConfig, overrides: list[str], number: int) -> None:
        nonlocal on_gpu
        try:
            plan, remarks = resolve_composed(config, grid=True)
            if plan.runtime.run_dir:
                raise UserError("run_dir: all runs of a grid would share this folder; leave it out")
        except UserError as error:
            outcomes.append(Outcome(report_error(error)[0], refused=str(error)))
            return
        notes.update(remarks)
        job = Job(number, overrides, plan.run_dir(), plan.recipe.epochs)
        on_gpu = on_gpu and plan.runtime.device != "cpu"
        (again if any(job.run == other.run for other in jobs) else jobs).append(job)

    compose_jobs(arguments, sweep, each)
    for note, count in notes.items():
        print(f"note: {note}{'' if count == 1 else f' ({count} runs)'}")
    outcomes += run_jobs(jobs + again, workers, sweep, started, on_gpu)
    return _close(sweep, started, outcomes)
