"""How a command ends: what became of each of its jobs, and how an error is reported. Imports no torch."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass

from engine.console import error_line

STOPPED_CODES = (130, 143)  # by a signal; the same command goes on from there
STATUS_OF = {0: "DONE", 130: "STOPPED", 143: "STOPPED"}
CODE_OF = {"DONE": 0, "STOPPED": 143}  # of a job in another process, which left its status alone


@dataclass(frozen=True)
class Outcome:
    """What became of a job."""

    code: int = 0  # as the exit code of a process
    in_use: bool = False  # by another process: to be looked at again
    refused: str = ""  # why it has no run folder
    ends_all: bool = False  # no other job may follow in this process
    done: bool = False  # the run is, though a signal came
    reason: str = ""  # why it failed or stopped, in one line

    @property
    def status(self) -> str:
        return "DONE" if self.done else STATUS_OF.get(self.code, "FAILED")


def exit_code(outcomes: list[Outcome], sweep: bool) -> int:
    """Of a process: the code of its job; of a sweep 0 if all are done, that of a signal if one came, else 1."""
    codes = [outcome.code for outcome in outcomes]
    if not sweep:
        return codes[0] if codes else 0
    stopped = [code for code in codes if code in STOPPED_CODES]
    return stopped[0] if stopped else int(any(codes))


def report_error(error: BaseException, fresh: bool = False, reported: set[str] | None = None) -> tuple[int, str]:
    """Print one line for an error the user can fix, a traceback otherwise.

    An error that all ranks share, or that stands for a decision of this program, knows its `exit_code`.

    Args:
        error: what was raised.
        fresh: whether the command asked for a fresh start, which again would not go on from there.
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
        # The packages raise these for what a user can fix; the traceback is in the run's error.txt.
        # A place that cannot be used; the error of a write in the midst of a run (`cannot_write`) has no file name.
        no_place = isinstance(error, NotADirectoryError | PermissionError) and error.filename is not None
        code = 2 if no_place or isinstance(error, ValueError | FileNotFoundError) else 1
        if code == 1 and not isinstance(error, OSError):
            traceback.print_exception(error)
    reported = set() if reported is None else reported
    print(f"error: {'the same as before' if line in reported else line}", file=sys.stderr, flush=True)
    reported.add(line)
    return code, line
