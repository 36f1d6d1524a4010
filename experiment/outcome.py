"""A job of a command: what is to run, what became of it, and how an error is reported. Imports no torch."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.plan import Plan
from engine.console import error_line
from engine.run_directory import DONE, RunDirectory

STOPPED_CODES = (130, 143)  # by a signal; the same command resumes
STATUS_OF = {0: "DONE", 130: "STOPPED", 143: "STOPPED"}
CODE_OF = {"DONE": 0, "STOPPED": 143}  # of a job in another process, which left its status alone


@dataclass(frozen=True)
class Outcome:
    """The end of a job, as the process that ran it knows it.

    Args:
        code: the exit code that a process of this job alone would have.
        in_use: another process has the run directory; to be tried again.
        ends_all: no other job may follow in this process.
        done: the run is done, though a signal came.
        reason: one line, for a job that failed or stopped.
    """

    code: int = 0
    in_use: bool = False
    ends_all: bool = False
    done: bool = False
    reason: str = ""

    @property
    def status(self) -> str:
        return "DONE" if self.done else STATUS_OF.get(self.code, "FAILED")


@dataclass
class Job:
    """One run that a command asks for.

    Args:
        number: its place in the command.
        overrides: its own command line.
        plan: None for a job that was refused.
        refused: the reason, in one line.
        outcome: None until it has ended.
        starts: workers that it was given to, with jobs=N.
        wait: another process had its run directory; wait for that one to end.
    """

    number: int
    overrides: list[str]
    plan: Plan | None = None
    refused: str = ""
    outcome: Outcome | None = None
    starts: int = 0
    wait: bool = False

    @property
    def run(self) -> Path:
        """Its run directory."""
        assert self.plan is not None
        return self.plan.run_dir()


def is_done(plan: Plan) -> bool:
    """True if the run of a plan has ended well and was evaluated as asked, and no new start of it was asked for."""
    done = RunDirectory(plan.run_dir()).status().get("status") == DONE
    return done and not plan.runtime.fresh and not missing_evaluations(plan)


def missing_evaluations(plan: Plan) -> list[str]:
    """The evaluations of a plan that its run has not got yet; none of a pilot, which only chooses on val."""
    made = RunDirectory(plan.run_dir()).read("evaluations.json") or {}
    return [text for text in plan.runtime.evaluations if text not in made and not plan.pilot]


def names_of(jobs: Sequence[Job]) -> dict[int, str]:
    """Short names by job number: the overrides that are not common to all jobs."""
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return {job.number: " ".join(word.lstrip("+") for word in job.overrides if word not in common) for job in jobs}


def notes_of(jobs: Sequence[Job]) -> list[str]:
    """The notes on the resolution of the plans, each once with the number of jobs it is about.

    Those that differ in a value alone are one: "keep_prob=0.8,0.9 does not apply to regularizer=none (2 jobs)".
    """
    found: dict[tuple[str, str], list[str]] = {}  # values by what stands before and behind them
    for note in (note for job in jobs if job.plan is not None for note in job.plan.notes):
        idle = re.fullmatch(r"([\w.]+=)(\S+)( does not apply to .*)", note)
        before, value, behind = idle.groups() if idle else (note, "", "")
        found.setdefault((before, behind), []).append(value)
    return [
        f"{before}{','.join(dict.fromkeys(values))}{behind}{'' if len(values) == 1 else f' ({len(values)} jobs)'}"
        for (before, behind), values in found.items()
    ]


def exit_code(jobs: Sequence[Job]) -> int:
    """The exit code of a grid: 0 if all jobs are done, that of a signal if one came, else 1."""
    codes = [job.outcome.code for job in jobs if job.outcome is not None]
    stopped = [code for code in codes if code in STOPPED_CODES]
    return stopped[0] if stopped else int(any(codes))


def report_error(error: BaseException, fresh: bool = False, reported: set[str] | None = None) -> tuple[int, str]:
    """Print one line for an error the user can fix, a traceback otherwise.

    An error that all ranks share, or that stands for a decision of this program, knows its `exit_code`.

    Args:
        error: the exception.
        fresh: True if the command asked for a fresh start; given again, it would not resume.
        reported: lines that the command printed before and need not be printed again; the line is added.

    Returns:
        the exit code, and the line.
    """
    line = error_line(error)
    code = getattr(error, "exit_code", None)
    if code in STOPPED_CODES:
        again = f"; the same command{' without fresh=true' if fresh else ''} goes on from there"
        print(f"{line}{'' if getattr(error, 'done', False) else again}", file=sys.stderr)
        return code, line
    if isinstance(error, KeyboardInterrupt):
        code, line = 130, "interrupted"
    elif code is None:
        # The packages raise these for what a user can fix; the traceback is in the run's error.txt. Of the errors of
        # the disk only a place that cannot be used is one: a write that fails during a run has no file name.
        no_place = isinstance(error, NotADirectoryError | PermissionError) and error.filename is not None
        code = 2 if no_place or isinstance(error, ValueError | FileNotFoundError) else 1
        if code == 1 and not isinstance(error, OSError):
            traceback.print_exception(error)
    reported = set() if reported is None else reported
    print(f"error: {'the same as before' if line in reported else line}", file=sys.stderr, flush=True)
    reported.add(line)
    return code, line
