"""What a sweep with `jobs=N` shows while it runs: done, running, waiting, time left. Imports no torch.

The numbers of a running training are read from its metrics.jsonl, so those of other processes are seen as well.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.console import duration, metric_text

if TYPE_CHECKING:
    from experiment.jobs import Job

TAIL_BYTES = 8192
REDRAW_SECONDS, LINE_SECONDS = 1.0, 60.0


def last_entries(run: Path) -> dict[str, Any]:
    """The latest value of everything in the last few log entries of a run; {} before the first."""
    try:
        with open(run / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return {}
    values: dict[str, Any] = {}
    for line in lines:
        try:
            values |= json.loads(line)
        except ValueError:  # the first may be cut off by the tail, the last by the writer
            continue
    return values


class Display:
    """One block of lines on a terminal, redrawn in place; in a file or a pipe a line for each event.

    Args:
        jobs: of the sweep.
        workers: at a time.
        write: prints a line where nothing is redrawn.
    """

    def __init__(self, jobs: Sequence[Job], workers: int, write: Callable[[str], None] = print) -> None:
        self.total, self.workers, self.write = len(jobs), workers, write
        self.names = names_of(jobs)
        self.width = max(map(len, self.names.values()), default=0)
        self.ended: Counter[str] = Counter()  # how many, by status
        self.began: dict[int, float] = {}  # when a job was first seen running, and how far it was then
        self.from_share: dict[int, float] = {}
        self.lengths: list[float] = []  # seconds of the whole runs that ended here
        self.terminal = sys.stdout.isatty()
        self.height = 0  # lines of the block on the screen
        self.shown_at: float | None = None
        self.since = time.time()

    def __enter__(self) -> Display:
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def event(self, job: Job, what: str, more: str = "") -> None:
        """A job has ended with a status, or something else happened to it: a line that stays, perhaps with a reason."""
        if what in ("DONE", "FAILED", "STOPPED"):
            self.ended[what] += 1
            began = self.began.pop(job.number, None)
            if what == "DONE" and self._was_done(job):
                began, what = None, "DONE before"
            if what == "DONE" and began is not None and not self.from_share.get(job.number):
                self.lengths.append(time.monotonic() - began)
            if began is not None:
                what += f" in {duration(time.monotonic() - began)}"
        if what.startswith("DONE"):
            more = self._headline(last_entries(job.run))
        self._clear()
        count = f"[{self.ended.total()}/{self.total}]"
        self._line("  ".join(filter(None, (count, self._name(job), what, more))))

    def _was_done(self, job: Job) -> bool:
        """Whether a run was finished before this sweep began, and was skipped."""
        summary = job.run / "summary.json"
        return summary.exists() and summary.stat().st_mtime < self.since

    def show(self, running: Sequence[Job], waiting: Sequence[Job]) -> None:
        """The state of now, at most once a second on a terminal and once a minute elsewhere."""
        now = time.monotonic()
        for job in running:
            if job.number not in self.began:
                self.began[job.number] = now
                self.from_share[job.number] = self._share(job)
                if not self.terminal:
                    self._line(f"started  {self._name(job)}")
        first = self.shown_at is None
        if self.shown_at is not None and now - self.shown_at < (REDRAW_SECONDS if self.terminal else LINE_SECONDS):
            return
        self.shown_at = now
        lines = [self._running(job) for job in running] + [self._summary(running, waiting)]
        if self.terminal:
            self._clear()
            width = shutil.get_terminal_size().columns
            for line in lines:
                self.write(line[: width - 1])
            self.height = len(lines)
            sys.stdout.flush()
        elif not first:
            self._line(lines[-1])

    def _running(self, job: Job) -> str:
        values = last_entries(job.run)
        parts = [f"epoch {round(values.get('epoch', 0), 1):g}/{job.epochs}"]
        if "train/loss" in values:
            parts.append(f"loss {values['train/loss']:.3f}")
        return "  ".join([self._name(job), *parts, self._headline(values)]).rstrip()

    def _headline(self, values: dict[str, Any]) -> str:
        """The first metric of the latest evaluation on test that is no loss."""
        names = [name for name in values if name.startswith("test/") and "loss" not in name]
        return f"{names[0]} {metric_text(names[0], values[names[0]])}" if names else ""

    def _summary(self, running: Sequence[Job], waiting: Sequence[Job]) -> str:
        left = self._time_left(running, waiting)
        failed = f", {self.ended['FAILED']} failed" if self.ended["FAILED"] else ""
        return (
            f"{self.ended['DONE']} done{failed}, {len(running)} running, {len(waiting)} waiting of {self.total}"
            f"{'' if left is None else f'; about {duration(left)} left'}"
        )

    def _share(self, job: Job) -> float:
        return float(last_entries(job.run).get("epoch", 0.0)) / job.epochs

    def _time_left(self, running: Sequence[Job], waiting: Sequence[Job]) -> float | None:
        """From the runs that ended, or the pace of those that run; None before anything can be said."""
        now = time.monotonic()
        paces = []  # seconds of a whole run, by what is seen of those running
        left = 0.0
        for job in running:
            share = self._share(job)
            gained = share - self.from_share[job.number]
            if gained > 0.02:
                pace = (now - self.began[job.number]) / gained
                paces.append(pace)
                left += pace * (1 - share)
        known = self.lengths or paces
        if not known:
            return None
        whole = sum(known) / len(known)
        unknown = len(running) - len(paces) + len(waiting)
        return (left + unknown * whole) / self.workers

    def _line(self, text: str) -> None:
        self.write(text)
        sys.stdout.flush()

    def _clear(self) -> None:
        """Take the block off the screen."""
        if self.terminal and self.height:
            sys.stdout.write(f"\x1b[{self.height}A\x1b[J")
        self.height = 0

    def _name(self, job: Job) -> str:
        return self.names.get(job.number, "").ljust(self.width)


def names_of(jobs: Sequence[Job]) -> dict[int, str]:
    """What sets each job apart from the others, by its number: those of its overrides that are not in all of them."""
    common = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    return {job.number: " ".join(word.lstrip("+") for word in job.overrides if word not in common) for job in jobs}
