"""One run or many of one command. Imports no torch: a mistake in the first job is refused before that."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from configs.checking import UserError, check
from configs.compose import compose_jobs
from configs.resolve import resolve
from configs.schema import Config
from engine import cpu
from experiment.outcome import CODE_OF, STOPPED_CODES, Outcome, exit_code, report_error


def run_job(
    config: DictConfig,
    overrides: list[str],
    sweep: Path | None,
    number: int,
    began: float,
    later: bool,
    wait: bool = False,
) -> Outcome:
    """One run of this command, which began at that time, or one of many; never raises, so that a grid goes on.

    A run that another process has is looked at again `later`, or waited for, or told as not done.
    """
    run, reason, outcome = None, "", Outcome()
    shown: dict[str, Any] = {}
    try:
        if sweep is not None:
            print(f"\n=== run {number + 1}: {' '.join(overrides)}", flush=True)
        plan, remarks = resolve(check(config, Config), grid=sweep is not None)
        if sweep is not None and plan.runtime.run_dir:
            raise UserError("run_dir: all runs of a grid would share this folder; leave it out")
        run, shown = plan.run_dir(), {"experiment": plan.experiment, "paper": asdict(plan.paper)}
        for remark in remarks:
            print(f"note: {remark}")
        from experiment.run import run_plan

        summary = run_plan(plan, overrides, began, wait)
        shown["last test"] = summary["last"].get(f"test/{summary['headline']}")
    except BaseException as error:
        if later and getattr(error, "in_use", False):
            print(f"{error}; left for the end", flush=True)
            return Outcome(in_use=True)
        code, reason = report_error(error, config.get("fresh") is True)
        # Ranks that do not all know of a failure would wait for each other in different jobs.
        alone = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not hasattr(error, "exit_code")
        done = getattr(error, "done", False)
        outcome = Outcome(code, refused="" if run else reason, ends_all=alone or code in STOPPED_CODES, done=done)
    if sweep is not None and run is not None and os.environ.get("RANK", "0") == "0":
        from experiment.sweep import note_run

        note_run(sweep, run, outcome.status, overrides, reason, **shown)
    return outcome


def run_command(arguments: list[str], sweep: Path | None) -> int:
    """Carry out every job of a command; returns its exit code."""
    started, here = time.time(), os.getpid()
    outcomes: list[Outcome] = []
    later: list[tuple[DictConfig, list[str], int]] = []

    def each(config: DictConfig, overrides: list[str], number: int) -> None:
        if os.getpid() != here:  # of a launcher; what becomes of the job is read from the folder of the sweep
            cpu.settle()
            refused = run_job(config, overrides, sweep, number, started, later=False).refused
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
    if sweep is not None:
        from experiment.sweep import read_runs, summary_text

        refused = [outcome.refused for outcome in outcomes if outcome.refused]
        runs = read_runs(sweep, since=started)
        print(f"\n{summary_text(runs, sweep, refused)}")
        outcomes = outcomes or [Outcome(CODE_OF.get(run["status"], 1)) for run in runs]
    return exit_code(outcomes, sweep is not None)
