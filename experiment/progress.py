"""The state of a sweep with `jobs=N` while it runs: done, running, waiting, time left. Imports no torch.

The numbers of a running training are read from its metrics.jsonl, so those of other processes are seen as well.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.console import duration
from engine.run_directory import DONE, FAILED, STOPPED
from experiment.outcome import Job, names_of

TAIL_BYTES = 8192
LINE_SECONDS = 60.0  # between lines about the whole, where there is no terminal


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


def headline(job: Job, values: dict[str, Any]) -> str:
    """The headline of the latest evaluation on test: the metric that the plan names, or the first that is no loss."""
    named = job.plan.headline if job.plan is not None else None
    names = [f"test/{named}"] if named else [name for name in values if name.startswith("test/") and "loss" not in name]
    return f"{names[0]} {values[names[0]]:.4g}" if names and names[0] in values else ""


class SweepProgress:
    """A bar over the epochs of each running job on a terminal; in a file or a pipe one line a minute. Events on both.

    Args:
        jobs: all jobs of the sweep.
        write: prints a line where there is no terminal.
    """

    def __init__(self, jobs: Sequence[Job], write: Callable[[str], None] = print) -> None:
        self.jobs, self.names = list(jobs), names_of(jobs)
        self.width = max(map(len, self.names.values()), default=0)
        self.terminal = sys.stdout.isatty()
        self.write = tqdm.write if self.terminal else write
        self.bars: dict[int, tqdm[Any]] = {}  # of the running jobs; all these by the number of the job
        self.seen_at: dict[int, float] = {}  # when it was first seen running, and how many epochs it had done
        self.epochs_then: dict[int, float] = {}
        self.epochs: dict[int, float] = {}
        self.ended: dict[int, str] = {}  # the status
        self.began, self.line_at = time.time(), time.monotonic()

    def __enter__(self) -> SweepProgress:
        return self

    def __exit__(self, *_: object) -> None:
        for bar in self.bars.values():
            bar.close()

    def event(self, job: Job, what: str, more: str = "") -> None:
        """Print a line that stays: a job has ended with a status, or something else happened to it."""
        if job.number in self.bars:
            self.bars.pop(job.number).close()
            print("\r", end="", file=sys.stderr, flush=True)  # tqdm leaves the cursor behind a bar that it wiped

        # The end of a job, with the time it took. One that an earlier command has trained took none.
        if what in (DONE, FAILED, STOPPED):
            self.ended[job.number] = what
            summary = job.run / "summary.json"
            if what == DONE and summary.exists() and summary.stat().st_mtime < self.began:
                what = "DONE before"
                self.epochs.pop(job.number, None)  # it says nothing about the pace of this command
            elif job.number in self.seen_at:
                what += f" in {duration(time.monotonic() - self.seen_at[job.number])}"
        if what.startswith(DONE):
            more = headline(job, last_entries(job.run))
        count = f"[{len(self.ended)}/{len(self.jobs)}]"
        self._line("  ".join(filter(None, (count, self._name(job), what, more))))

    def show(self, running: Sequence[Job]) -> None:
        """Show the state of now; called a few times a second."""
        now = time.monotonic()
        for job in running:
            values = last_entries(job.run)
            self.epochs[job.number] = float(values.get("epoch", 0.0))

            # The pace is counted from the epochs that a resumed run had when it was first seen.
            if job.number not in self.seen_at:
                self.seen_at[job.number], self.epochs_then[job.number] = now, self.epochs[job.number]
                if not self.terminal:
                    self._line(f"started  {self._name(job)}")
            if not self.terminal:
                continue

            # On a terminal a bar, on the first line that is free.
            if job.number not in self.bars:
                taken = {bar.pos for bar in self.bars.values()}
                self.bars[job.number] = tqdm(
                    total=epochs_of(job),
                    desc=self._name(job),
                    position=next(place for place in range(len(self.jobs)) if -place not in taken),
                    leave=False,
                    initial=self.epochs[job.number],
                    dynamic_ncols=True,
                    bar_format="{desc} |{bar:8}| epoch {n:.1f}/{total}, {remaining} left{postfix}",
                )
            loss = f"loss {values['train/loss']:.3f}" if "train/loss" in values else ""
            bar = self.bars[job.number]
            bar.set_postfix_str("  ".join(filter(None, (loss, headline(job, values)))), refresh=False)
            bar.n = self.epochs[job.number]
            bar.refresh()

        # The whole, once a minute.
        if now - self.line_at >= LINE_SECONDS:
            self.line_at = now
            self._line(self._summary(running))

    def _summary(self, running: Sequence[Job]) -> str:
        """The number of jobs done, running and waiting, and the time left at the pace so far."""
        counts = Counter(self.ended.values())
        failed = f", {counts[FAILED]} failed" if counts[FAILED] else ""
        waiting = len(self.jobs) - len(self.ended) - len(running)
        text = f"{counts[DONE]} done{failed}, {len(running)} running, {waiting} waiting of {len(self.jobs)}"
        gained = sum(epochs - self.epochs_then[number] for number, epochs in self.epochs.items())
        left = sum(epochs_of(job) - self.epochs.get(job.number, 0) for job in self.jobs if job.number not in self.ended)
        if gained <= 0:
            return text
        return f"{text}; about {duration(left / gained * (time.monotonic() - min(self.seen_at.values())))} left"

    def _line(self, text: str) -> None:
        self.write(text.rstrip())
        sys.stdout.flush()

    def _name(self, job: Job) -> str:
        return self.names.get(job.number, "").ljust(self.width)


def epochs_of(job: Job) -> int:
    """The length of a job."""
    return job.plan.recipe.epochs if job.plan is not None else 1
