"""One job of a command carried out, in this process or in a worker of `jobs=N`.

`python -m experiment.job LOG` is a worker, started by `experiment.pool`. Each line of its standard input is a job, each
of its standard output an outcome. What it prints otherwise goes to LOG, and during a run to the run's own log.txt.
Imports no torch before the first run.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from configs.plan import plan_from
from engine import cpu
from engine.signals import interrupt_held
from experiment.outcome import STOPPED_CODES, Job, Outcome, is_done, report_error
from experiment.sweep import note_run


def run_job(
    job: Job,
    began: float,
    sweep: Path | None = None,
    in_use: Literal["fail", "later", "wait"] = "fail",
    log: bool = False,
    reported: set[str] | None = None,
    place: str = "",
) -> Outcome:
    """Train the plan of a job; never raises, so that a grid goes on.

    Args:
        job: the run, not a refused one; its overrides go into the record.
        began: time of the command (`time.time`).
        sweep: directory of the sweep, where the outcome is noted; None for a single run.
        in_use: behaviour if another process trains this run. "fail": report an error; "later": return an outcome with
            `in_use`, so that the caller starts the job again after the others; "wait": wait until that process ends.
        log: print to log.txt in the run directory.
        reported: errors of the command so far, see `report_error`.
        place: which run of how many of the sweep this is, "3 of 9".
    """
    assert job.plan is not None
    plan, outcome = job.plan, Outcome()
    summary: dict[str, Any] | None = None
    try:
        if sweep is not None:
            named = " ".join(job.overrides) or plan.run_dir()
            print(f"\n=== {'pilot' if plan.pilot else 'run'} {place}: {named}", flush=True)
        with interrupt_held():
            from experiment.run import run_plan
        summary = run_plan(plan, job.overrides, began, in_use == "wait", log)

    # Everything that can end a run, a signal included, becomes an outcome.
    except BaseException as error:
        if in_use == "later" and getattr(error, "in_use", False):
            print(f"{error}; left for the end", flush=True)
            return Outcome(in_use=True)
        code, reason = report_error(error, plan.runtime.fresh, reported)
        # An error without `exit_code` may have met this rank alone. If it began the next job, all ranks would wait for
        # each other in different jobs.
        maybe_this_rank_only = int(os.environ.get("WORLD_SIZE", 1)) > 1 and not hasattr(error, "exit_code")
        ends_all = maybe_this_rank_only or code in STOPPED_CODES
        # A signal may come while a run that another process has finished meanwhile is looked at: it stays DONE.
        done = getattr(error, "done", False) or (code in STOPPED_CODES and is_done(plan))
        outcome = Outcome(code, ends_all=ends_all, done=done, reason="" if done else reason)

    # One note a run, by the main rank, for the closing table and for the report.
    if sweep is not None and os.environ.get("RANK", "0") == "0":
        note_run(sweep, job, outcome, summary)
    return outcome


def work(log: Path) -> None:
    """Run jobs until the parent closes the pipe, or a signal asks to stop."""
    answers = os.fdopen(os.dup(1), "w")
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    cpu.configure_process(alone=False)
    for line in sys.stdin:
        given = json.loads(line)
        # The parent has composed and resolved the plan; a worker needs no Hydra.
        plan = plan_from(given["plan"]).made_by(given["overrides"], given["notes"])
        job = Job(given["number"], given["overrides"], plan)
        in_use: Literal["later", "wait"] = "wait" if given["wait"] else "later"
        outcome = run_job(job, given["began"], Path(given["sweep"]), in_use, log=True, place=given["place"])
        answers.write(json.dumps(asdict(outcome)) + "\n")
        answers.flush()
        if outcome.ends_all:
            break


if __name__ == "__main__":
    work(Path(sys.argv[1]))
