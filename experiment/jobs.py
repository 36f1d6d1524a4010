"""`jobs=N`: the runs of a sweep, N at a time on this machine. Imports no torch.

The parent composes all jobs and hands them to worker processes, which live as long as there is work: a worker imports
torch once. Each has its share of the cores, set before torch is imported, or a GPU of its own. The run directories are
locked as ever, so a second command on the same sweep, here or on a machine that shares the folder, takes part.
"""

from __future__ import annotations

import ctypes
import json
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.records import FAILED
from engine.signals import asking
from experiment.display import Display
from experiment.outcome import Outcome
from experiment.shares import environment_of, gpus
from experiment.sweep import note_run

STARTS = 3  # of one job, before a worker that dies with it is taken for the job's fault
POLL_SECONDS = 0.5
PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass
class Job:
    """One run of the command, and where it stands.

    Args:
        number: its place in the command.
        overrides: its own command line.
        run: its directory.
        epochs: its length.
        experiment: its name, if it has one.
        starts: how often a worker was given it.
        wait: another process had it; wait for that one to end.
    """

    number: int
    overrides: list[str]
    run: Path
    epochs: int = 1
    experiment: str | None = None
    starts: int = 0
    wait: bool = False


@dataclass
class Worker:
    """A process, and the job it is at."""

    process: subprocess.Popen[str]
    place: int  # among the workers; says which cores' share or GPU
    job: Job | None = None

    def give(self, job: Job, sweep: Path, began: float) -> None:
        self.job, job.starts = job, job.starts + 1
        values = {"overrides": job.overrides, "number": job.number, "wait": job.wait}
        assert self.process.stdin is not None
        with suppress(OSError):  # it is gone; its end is noticed at its standard output
            self.process.stdin.write(json.dumps({**values, "sweep": str(sweep), "began": began}) + "\n")
            self.process.stdin.flush()


def _die_with_parent() -> None:
    """In the worker, before it starts: should the parent be killed, the run stops as after SIGTERM, resumable."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Pool:
    """Runs the jobs of a sweep on some workers.

    Args:
        jobs: in their order.
        workers: how many at a time, at most as many as jobs.
        sweep: its directory.
        began: time of the command (`time.time`).
        devices: GPUs to share out; empty on a CPU.
    """

    def __init__(self, jobs: Sequence[Job], workers: int, sweep: Path, began: float, devices: Sequence[str]) -> None:
        self.waiting = list(jobs)
        self.later: list[Job] = []  # in use by another process when first looked at
        self.sweep, self.began, self.devices = sweep, began, devices
        self.size = max(1, min(workers, len(jobs)))
        self.outcomes: list[Outcome] = []
        self.workers: list[Worker] = []
        self.stopped = 0  # signal that asked to stop, or 0
        self.ended = False  # a job says that no other may follow
        self.selector = selectors.DefaultSelector()

    def run(self, display: Display) -> list[Outcome]:
        """Until all jobs have an outcome, or a signal came; then every worker has written its checkpoint."""
        with self._signals():
            for place in range(self.size):
                self._start(place)
            while any(worker.job for worker in self.workers):
                for key, _ in self.selector.select(POLL_SECONDS):
                    self._answer(key.data, display)
                display.show([worker.job for worker in self.workers if worker.job], self.waiting + self.later)
            for worker in self.workers:
                self._end(worker)
        return self.outcomes

    def _start(self, place: int) -> None:
        (self.sweep / "workers").mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "experiment.worker", str(self.sweep / "workers" / f"{place + 1}.log")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment_of(place, self.size, self.devices),
            start_new_session=True,  # an interrupt of the terminal reaches the parent alone, which passes it on once
            preexec_fn=_die_with_parent,
        )
        worker = Worker(process, place)
        self.workers.append(worker)
        assert process.stdout is not None
        self.selector.register(process.stdout, selectors.EVENT_READ, worker)
        self._next(worker)

    def _next(self, worker: Worker) -> None:
        """Give a worker the next job, if there is one."""
        worker.job = None
        if self.stopped or self.ended:
            return
        queue = self.waiting or self.later
        if queue:
            worker.give(queue.pop(0), self.sweep, self.began)

    def _answer(self, worker: Worker, display: Display) -> None:
        """A worker is done with its job, or gone."""
        assert worker.process.stdout is not None
        line = worker.process.stdout.readline()
        job = worker.job
        if not line:
            self._lost(worker, job, display)
            return
        assert job is not None
        outcome = Outcome(**json.loads(line))
        if outcome.in_use:
            job.wait, job.starts = True, 0
            self.later.append(job)
            display.event(job, "in use by another process; left for the end")
        else:
            self.outcomes.append(outcome)
            self.ended |= outcome.ends_all
            display.event(job, outcome.status, outcome.reason)
        self._next(worker)

    def _lost(self, worker: Worker, job: Job | None, display: Display) -> None:
        """A worker has ended: was killed, or has stopped after a signal."""
        self._end(worker)
        self.workers.remove(worker)
        if job is None:
            return
        code = worker.process.returncode
        if self.stopped or self.ended:
            self.outcomes.append(Outcome(130 if self.stopped == signal.SIGINT else 143, ends_all=True))
        elif job.starts < STARTS:
            display.event(job, f"its worker ended with {code}; resumed by a new one")
            self.waiting.insert(0, job)
            self._start(worker.place)
        else:
            reason = f"{job.starts} workers ended with it, the last with {code}"
            display.event(job, "FAILED", reason)
            note_run(self.sweep, job.run, FAILED, job.overrides, reason, experiment=job.experiment)
            self.outcomes.append(Outcome(1))
            self._start(worker.place)

    def _end(self, worker: Worker) -> None:
        process = worker.process
        assert process.stdin is not None
        assert process.stdout is not None
        self.selector.unregister(process.stdout)
        with suppress(OSError):
            process.stdin.close()  # the worker leaves its loop
        process.wait()
        process.stdout.close()

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """The first signal is passed on to every worker, which writes its checkpoint; a second interrupt ends them.

        Other signals come twice without anybody's impatience, as a scheduler's warning and its SIGTERM.
        """

        def pass_on(number: int, frame: Any) -> None:
            at_once = self.stopped == number == signal.SIGINT
            for worker in self.workers if at_once or not self.stopped else ():
                worker.process.send_signal(signal.SIGKILL if at_once else number)
            self.stopped = number

        before = {number: signal.signal(number, pass_on) for number in asking()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run_jobs(
    jobs: Sequence[Job], workers: int, sweep: Path, began: float, on_gpu: bool, write: Callable[[str], None] = print
) -> list[Outcome]:
    """Run the jobs of a sweep `workers` at a time; returns what became of them, in the order they ended.

    Args:
        jobs: of the command. Of those that share a run directory the first runs it, the others find it done.
        workers: processes, see `count_of`.
        sweep: directory of the sweep.
        began: time (`time.time`) of the command.
        on_gpu: share out the GPUs of this machine; False for device=cpu.
        write: prints a line.
    """
    pool = Pool(jobs, workers, sweep, began, gpus() if on_gpu else [])
    write(f"{len(jobs)} runs, {pool.size} at a time; what each prints is in log.txt of its directory")
    with Display(jobs, pool.size, write) as display:
        return pool.run(display)
