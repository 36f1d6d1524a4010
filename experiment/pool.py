"""`jobs=N`: the runs of a sweep, N at a time on this machine. Imports no torch.

The parent has composed all jobs and hands them to worker processes (`experiment.job`), which live as long as there is
work: a worker imports torch once. Each has its share of the cores, set before torch is imported, or a GPU of its own.
Run directories are locked as in a single run, so a second command on the same sweep, here or on a machine that shares
the folder, takes part.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.run_directory import FAILED
from engine.signals import asking
from experiment.outcome import Job, Outcome
from experiment.progress import SweepProgress
from experiment.shares import environment_of, gpus
from experiment.sweep import note_run

STARTS = 3  # of one job; when that many workers have died with it, the job is the cause
POLL_SECONDS = 0.5
PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass
class Worker:
    """A process, and the job it has."""

    process: subprocess.Popen[str]
    place: int  # among the workers; decides its share of the cores or its GPU
    job: Job | None = None


class Pool:
    """Runs the jobs of a sweep on some workers.

    Args:
        jobs: those to run. Of jobs that share a run directory the first runs it; the others come last and find it done.
        workers: how many at a time, at most as many as jobs.
        sweep: directory of the sweep.
        began: time of the command (`time.time`).
        devices: GPUs to share out; empty on a CPU.
    """

    def __init__(self, jobs: Sequence[Job], workers: int, sweep: Path, began: float, devices: Sequence[str]) -> None:
        first = {job.run: job for job in reversed(jobs)}
        self.jobs = sorted(jobs, key=lambda job: job is not first[job.run])
        self.waiting = list(self.jobs)
        self.later: list[Job] = []  # in use by another process when first tried
        self.sweep, self.began, self.devices = sweep, began, devices
        self.size = max(1, min(workers, len(jobs)))
        self.workers: list[Worker] = []
        self.stopped = 0  # signal that asked to stop, or 0
        self.ended = False  # a job says that no other may follow
        self.selector = selectors.DefaultSelector()

    def run(self, write: Callable[[str], None] = print) -> None:
        """Work until all jobs have an outcome, or a signal came; then every worker has written its checkpoint."""
        write(f"{len(self.jobs)} runs, {self.size} at a time; what each prints is in log.txt of its directory")
        with SweepProgress(self.jobs, write) as progress, self._signals():
            for place in range(self.size):
                self._start(place)
            while any(worker.job for worker in self.workers):
                for key, _ in self.selector.select(POLL_SECONDS):
                    self._answered(key.data, progress)
                progress.show([worker.job for worker in self.workers if worker.job])
            for worker in self.workers:
                self._end(worker)
        if self.stopped:  # perhaps in a moment in which no worker had a job
            for job in self.jobs:
                job.outcome = job.outcome or self._stopped_outcome()

    def _start(self, place: int) -> None:
        (self.sweep / "workers").mkdir(parents=True, exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "experiment.job", str(self.sweep / "workers" / f"{place + 1}.log")],
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
        self._give(worker)

    def _give(self, worker: Worker) -> None:
        """Give a worker the next job, if there is one, as one line of JSON: see `experiment.job.work`."""
        worker.job = None
        queue = self.waiting or self.later
        if self.stopped or self.ended or not queue:
            return
        job = worker.job = queue.pop(0)
        job.starts += 1
        assert job.plan is not None
        assert worker.process.stdin is not None
        values = {"plan": asdict(job.plan), "notes": job.plan.notes, "overrides": job.overrides, "number": job.number}
        values |= {"sweep": str(self.sweep), "began": self.began, "wait": job.wait}
        values["place"] = f"{self.jobs.index(job) + 1} of {len(self.jobs)}"
        with suppress(OSError):  # the worker is gone; its end is noticed at its standard output
            worker.process.stdin.write(json.dumps(values) + "\n")
            worker.process.stdin.flush()

    def _answered(self, worker: Worker, progress: SweepProgress) -> None:
        """Take the outcome of a worker's job, or notice that the worker has ended."""
        assert worker.process.stdout is not None
        line, job = worker.process.stdout.readline(), worker.job

        # An outcome. A run that another process has comes last: by then that one is done, or is waited for.
        if line:
            assert job is not None
            outcome = Outcome(**json.loads(line))
            if outcome.in_use:
                job.wait, job.starts = True, 0
                self.later.append(job)
                progress.event(job, "in use by another process; left for the end")
            else:
                job.outcome = outcome
                self.ended |= outcome.ends_all
                progress.event(job, outcome.status, outcome.reason)
            self._give(worker)
            return

        # The end of its output: killed, or stopped after a signal.
        self._end(worker)
        self.workers.remove(worker)
        code = worker.process.returncode
        if job is None:
            return
        if self.stopped or self.ended:
            job.outcome = self._stopped_outcome()
            return

        # A killed worker is replaced, and its run goes on from the last checkpoint: a few times, then the job is given
        # up. The worker could note nothing in the directory of the sweep, so the parent does.
        if job.starts < STARTS:
            progress.event(job, f"its worker ended with {code}; resumed by a new one")
            self.waiting.insert(0, job)
        else:
            job.outcome = Outcome(1, reason=f"{job.starts} workers ended with it, the last with {code}")
            progress.event(job, FAILED, job.outcome.reason)
            note_run(self.sweep, job, job.outcome)
        self._start(worker.place)

    def _stopped_outcome(self) -> Outcome:
        return Outcome(130 if self.stopped == signal.SIGINT else 143, ends_all=True)

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
        """Pass the first signal on to every worker, which writes its checkpoint; a second interrupt kills them.

        Only a repeated SIGINT kills: schedulers send USR1 and then TERM.
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


def _die_with_parent() -> None:
    """Have the system send a worker SIGTERM if its parent is killed, so that its run stops, resumable."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def run_pool(jobs: Sequence[Job], workers: int, sweep: Path, began: float) -> None:
    """Run jobs `workers` at a time, each on a GPU of its own unless one of them asks for the CPU."""
    on_gpu = all(job.plan is not None and job.plan.runtime.device != "cpu" for job in jobs)
    Pool(jobs, workers, sweep, began, gpus() if on_gpu else []).run()
