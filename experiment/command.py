"""A command is a list of jobs, one or many: composed and resolved here, then run, shown or priced.

    train.py -> check_arguments -> run_command -> jobs_of -> one of
        run_job       in this process, one after the other (experiment.job)
        run_pool      jobs=N, in worker processes (experiment.pool)
        launch        hydra/launcher=slurm | ray, in processes of a cluster (experiment.launchers)
        preview       plan=true (experiment.preview)
        price_jobs    estimate=true (experiment.prices)

With `tune=` the list is run in stages: pilots of every row, then the rows with what their pilots chose
(experiment.tuning).

What happens between Ctrl-C and the next start:

    1. `engine.signals.StopRequest` notes the signal. `Fit.run` looks after each step, writes last.pt, raises `Stopped`.
    2. `RunDirectory.session` writes STOPPED into status.json and unlocks the run directory.
    3. `run_job` returns code 130 or 143 with `ends_all`: no other job starts. With jobs=N the pool passes the signal
       on to its workers (`Pool._signals`) and waits until each has done 1 to 3.
    4. In a grid `note_run` leaves one file for each job in the directory of the sweep. It ends with 130 or 143.
    5. The same command comes to the same list of jobs. Those that are DONE, evaluations included, are skipped at once
       (`skip_done`; a single run says so in `run_plan`), one with a checkpoint resumes after its last step, one of a
       grid that another process has locked is left for the end.

A killed process can do none of this. Its lock is gone with it, so its run counts as KILLED and resumes like the others.

Imports no torch, so a mistake in the first job is reported without it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from configs.checking import UserError
from configs.command_line import Arguments, tune_of
from configs.compose import compose_jobs, show
from configs.plan import Plan
from configs.resolve import resolve_composed
from engine.console import counted
from engine.files import absent, remove_made
from engine.run_directory import DONE
from engine.signals import Stopped, interrupt_held
from experiment.job import run_job
from experiment.launchers import check_launcher, launch
from experiment.outcome import CODE_OF, Job, Outcome, exit_code, names_of, notes_of, report_error
from experiment.pool import run_pool
from experiment.shares import at_a_time, threads_of, workers_of
from experiment.sweep import entries_of, note_command, read_notes, skip_done, summary_text
from experiment.tuning import Tuning


def jobs_of(arguments: Arguments) -> list[Job]:
    """Compose and resolve every job of a command, in its order.

    A job of a grid that cannot be resolved is one that is refused, so that the others go on.

    Raises:
        UserError: for what Hydra does not understand, or for a single run that is refused, in one line.
    """
    jobs: list[Job] = []
    for number, (overrides, config) in enumerate(compose_jobs(arguments)):
        try:
            jobs.append(Job(number, overrides, resolve_composed(config, overrides, arguments.is_grid)))
        except UserError as error:
            if not arguments.is_grid:
                raise
            jobs.append(Job(number, overrides, refused=str(error)))
    return jobs


def run_command(arguments: Arguments) -> int:
    """Carry out every job of a command; returns its exit code."""
    began, sweep = time.time(), arguments.sweep_folder

    # Commands that train nothing.
    if arguments.shows:
        show(arguments)
        return 0
    if arguments.asks_for("estimate"):
        workers = at_a_time(arguments) if arguments.is_grid else 1
        jobs = shown_jobs(arguments)
        if workers > 1:  # timed with the share of the cores that each will have; torch reads this when it is imported
            os.environ.setdefault("OMP_NUM_THREADS", threads_of(workers))
        with interrupt_held():
            from experiment.prices import price_jobs
        return price_jobs(jobs, workers)
    workers = workers_of(arguments)
    check_launcher(arguments)
    if arguments.asks_for("plan"):
        return preview_jobs(shown_jobs(arguments))
    jobs = jobs_of(arguments)

    # A single run.
    if sweep is None:
        return run_job(jobs[0], began).code

    # A grid. Where it is tuned, the pilots come first; the jobs of the table are known when all rows have a choice.
    made, tune, pilots = absent(sweep), tune_of(arguments), list[Job]()
    report_refused(jobs)
    if tune is not None:
        tuning = Tuning(tune, jobs)
        for stage in tuning.stages():
            pilots += stage
            run_grid(arguments, stage, workers, sweep, began)
            if any(job.outcome is not None and job.outcome.ends_all for job in stage):
                return close(sweep, began, pilots, made)
        jobs = tuning.table()
        print(f"\nchosen by {counted(tuning.budget, 'pilot')} a row\n{tuning.text()}", flush=True)
        if os.environ.get("RANK", "0") == "0":
            tuning.write(sweep)
        report_refused(jobs)
    run_grid(arguments, jobs, workers, sweep, began)
    return close(sweep, began, [*pilots, *jobs], made)


def shown_jobs(arguments: Arguments) -> list[Job]:
    """All jobs of a command for what trains nothing: with `tune=` its pilots, and the rows as far as they are known."""
    jobs, tune = jobs_of(arguments), tune_of(arguments)
    if tune is None:
        return jobs
    tuning = Tuning(tune, jobs)
    pilots = [job for stage in tuning.stages(shown=True) for job in stage]
    return [*pilots, *tuning.table(shown=True)]


def run_grid(arguments: Arguments, jobs: Sequence[Job], workers: int, sweep: Path, began: float) -> None:
    """Run some jobs of a grid, by the launcher, the workers or the process that the command asks for."""
    # They are listed before the first one runs, so that a report can name what is missing.
    ready = [job for job in jobs if job.plan is not None]
    note_command(sweep, arguments, ready)
    ready = skip_done(ready, sweep)
    if arguments.launcher and ready:
        launch(arguments, sweep, ready, began)
    elif workers > 1 and len(ready) > 1:  # a single run needs no worker: this process is there already
        print_notes(ready)
        run_pool(ready, workers, sweep, began)
    else:
        run_in_turn(jobs, sweep, began)


def run_in_turn(jobs: Sequence[Job], sweep: Path, began: float) -> None:
    """Run those jobs that have no outcome one after the other in this process.

    A job whose run another process has is left for the end. By then it is done, or is waited for, or is taken over if
    that process died.
    """
    reported: set[str] = set()
    for in_use in ("later", "wait"):
        for place, job in enumerate(jobs, start=1):
            if job.outcome is None or job.outcome.in_use:
                job.outcome = run_job(job, began, sweep, in_use, reported=reported, place=f"{place} of {len(jobs)}")
                if job.outcome.ends_all:
                    return


def train_all(plans: Sequence[Plan], name: str) -> Path:
    """`experiment.run_sweep`."""
    if not plans:
        raise UserError(f"sweep {name}: no plan to train")
    sweep, began = Path(plans[0].runtime.output_root, "sweeps", name), time.time()
    jobs = [Job(number, list(plan.overrides), plan) for number, plan in enumerate(plans)]
    run_in_turn(jobs, sweep, began)
    stopped = next((job.outcome.code for job in jobs if job.outcome is not None and job.outcome.ends_all), None)
    if stopped is not None:
        raise Stopped(signal.SIGINT if stopped == 130 else signal.SIGTERM, f"in sweep {name}")
    entries = entries_of(jobs, sweep, began)
    print(f"\n{summary_text(entries, sweep)}")
    failed = [entry for entry in entries if entry["status"] != DONE]
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(entries)} runs failed, first {failed[0]['run']}: {failed[0]['reason']}"
        )
    return sweep


def close(sweep: Path, began: float, jobs: Sequence[Job], made: Sequence[Path]) -> int:
    """Print the closing table of a sweep; returns its exit code.

    Args:
        sweep: its directory.
        began: time of the command.
        jobs: those of the command; one without an outcome ran in another process, which left it in the directory.
        made: the directories that were absent before; they are removed again if no job left a run.
    """
    runs = entries_of(jobs, sweep, began)
    status = {run["run"]: run["status"] for run in runs}
    if not any(job.outcome is not None and job.outcome.ends_all for job in jobs):
        for job in jobs:
            job.outcome = job.outcome or Outcome(CODE_OF.get(status.get(str(job.run), ""), 1))
    empty = bool(made) and not any(Path(run["run"]).exists() for run in read_notes(sweep))
    if empty:
        remove_made(made)
    refused = [job.refused for job in jobs if job.refused and job.outcome is not None]
    print(f"\n{summary_text(runs, None if empty else sweep, refused)}")
    return exit_code(jobs)


def preview_jobs(jobs: Sequence[Job]) -> int:
    """Print what every job would run, without training it; returns the exit code. Writes nothing."""
    code = report_refused(jobs)
    ready = {job.number: job.plan for job in jobs if job.plan is not None}
    try:
        with interrupt_held():
            from experiment.preview import preview, preview_grid
        if len(ready) > 1:
            names = names_of([job for job in jobs if job.plan is not None])
            shown = preview_grid({names[number]: plan for number, plan in ready.items()})
            print_notes(jobs)  # about runs that can be run
            print(shown)
        else:
            print(*map(preview, ready.values()))
    except Exception as error:
        return report_error(error)[0]
    return code


def report_refused(jobs: Sequence[Job]) -> int:
    """Print each reason for which jobs are refused, once in a command; returns the exit code, 0 if there are none."""
    refused = [job for job in jobs if job.refused and job.outcome is None]
    codes = {reason: report_error(UserError(reason))[0] for reason in dict.fromkeys(job.refused for job in refused)}
    for job in refused:
        job.outcome = Outcome(codes[job.refused], reason=job.refused)
    return max(codes.values(), default=0)


def print_notes(jobs: Sequence[Job]) -> None:
    """Print each note on the resolution of the plans once."""
    for note in notes_of(jobs):
        print(f"note: {note}")
