"""A run directory: what a training leaves for its resumption, for evaluation and for the report.

plan.yaml        the complete plan                 metrics.jsonl   the log, one JSON object a line
config_min.yaml  what the user asked for           events.out...   the same for TensorBoard
status.json      RUNNING, DONE, STOPPED, FAILED    summary.json    the result
error.txt        why it FAILED                     nonfinite.pt    the step at which a number went wrong
sites.json       the sites table                   checkpoints/    last.pt, previous.pt, best.pt
code.diff        local changes to the code, of a run from a dirty checkout

The order of events: `session` locks the directory, `start` makes it RUNNING, `finish` makes it DONE. However a session
ends, the status is true afterwards and the run can be resumed. Imports no torch: reports read run directories.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import time
import traceback
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from engine.files import absent, remove_made, remove_unfinished, write_json
from engine.signals import Stopped

if TYPE_CHECKING:
    from engine.distributed import Ranks

RUNNING, DONE, STOPPED, FAILED, KILLED = "RUNNING", "DONE", "STOPPED", "FAILED", "KILLED"
LOCK, LOCK_TRIES, WAIT_SECONDS = ".lock", 20, 1.0
TRACES = re.compile(r"error(-rank\d+)?\.txt")
RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")

# A forked process, such as a loader worker, inherits the lock of its parent: it would outlive a run that is killed.
_LOCKS: weakref.WeakSet[IO[str]] = weakref.WeakSet()
os.register_at_fork(after_in_child=lambda: [lock.close() for lock in list(_LOCKS)])


class RunLocked(RuntimeError):
    """Another process works in this run directory."""

    exit_code = 2
    in_use = True


@dataclass
class RunDirectory:
    """The directory of one run; its small files are read and written whole.

    Args:
        path: need not exist.
    """

    path: Path
    started: bool = field(default=False, init=False, compare=False, repr=False)  # by this process, and not finished

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    # ---- small files

    def read(self, name: str) -> Any:
        """A JSON file of the directory, or None if there is none that can be read."""
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError):
            return None

    def write(self, name: str, value: Any) -> None:
        write_json(self.path / name, value)

    def summary(self) -> dict[str, Any]:
        return self.read("summary.json") or {}

    def metrics(self) -> list[dict[str, Any]]:
        """Every whole line of metrics.jsonl; a line that a kill cut off is left out."""
        try:
            lines = (self.path / "metrics.jsonl").read_text(errors="replace").splitlines()
        except OSError:
            return []
        whole = []
        for line in lines:
            try:
                whole.append(json.loads(line))
            except ValueError:
                break
        return whole

    def status(self) -> dict[str, Any]:
        """The last known status; {} for a directory without a run. RUNNING without a process is KILLED."""
        status = self.read("status.json") or {}
        if status.get("status") == RUNNING and not self.in_use():
            status["status"] = KILLED
        return status

    def set_status(self, status: str, **more: Any) -> None:
        self.write("status.json", {"status": status, "pid": os.getpid(), "host": socket.gethostname(), **more})

    # ---- one start of the run, on all its ranks

    @contextmanager
    def session(
        self, ranks: Ranks, fresh_since: float | None = None, wait: bool = False, within: Path | None = None
    ) -> Iterator[None]:
        """Keep the directory locked; leave its status true, and nothing of a run that had no data.

        Args:
            ranks: the main one locks, writes and removes; all raise if it could not.
            fresh_since: start over, if what is there is older than this (in seconds of `time.time`), so that jobs of a
                grid that meet in one directory do not start each other's work over. None: go on.
            wait: until the process that has the directory is done, instead of raising.
            within: parent of all run directories, for the cleanup.

        Raises:
            RunLocked: on all ranks, if another process works there.
            ValueError: on all ranks, if the directory cannot be written.
        """
        # A launcher that restarts its ranks or queues a job again repeats the command line: that is no fresh start.
        again = [count for count in RESTARTS if os.environ.get(count, "0") != "0"]
        if again and fresh_since is not None:
            fresh_since = None
            if ranks.is_main:
                count = f"{again[0]}={os.environ[again[0]]}"
                print(f"note: fresh=true was for the first start; by {count} this is another one")

        # From here to the end of the session nobody else works in the directory.
        made = absent(self.path, within)
        lock = self._lock_for_all(ranks, fresh_since, wait)
        try:
            if lock is not None:
                remove_unfinished(self.path)
            yield

        # The run goes on from its checkpoint at the next start. A full disk does not hide what ended this one.
        except Stopped as stopped:
            if self.started and ranks.is_main:
                with suppress(OSError):
                    self.set_status(STOPPED, reason=str(stopped))
            raise

        # The reason is kept for the report, and this rank's traceback for the user.
        except BaseException as error:
            if self.started:
                self._record_failure(error, ranks)
            # `checkpoints` is made when the data are open: without, there is nothing to resume, and nothing is left.
            unopened = isinstance(error, ValueError | FileNotFoundError) and not self.checkpoints.exists()
            if unopened and ranks.is_main:
                remove_made(made)
            from engine.distributed import lost_peer

            if self.started and (lost := lost_peer(error)) is not None:
                raise lost from error
            raise

        finally:
            self.started = False
            if lock is not None:
                lock.close()

    def start(self, ranks: Ranks) -> None:
        """Mark the run RUNNING, and remove the tracebacks of earlier starts."""
        self.started = True
        if ranks.is_main:
            for old in self.path.glob("error*.txt"):
                if TRACES.fullmatch(old.name):
                    old.unlink()
            self.set_status(RUNNING)
        ranks.barrier()

    def finish(self, ranks: Ranks, summary: dict[str, Any]) -> None:
        """Write the result and mark the run DONE, which it stays whatever happens in the rest of the session."""
        if ranks.is_main:
            self.write("summary.json", summary)
            self.set_status(DONE, commit=summary["environment"]["commit"])
        self.started = False

    def finished(self, ranks: Ranks) -> dict[str, Any]:
        """The summary of a run that is DONE, {} of any other; equal on all ranks."""
        done = self.status().get("status") == DONE
        # What the main rank read: another may see an older state of a shared disk. None writes before all have read.
        return ranks.gather(self.summary() if done else {})[0]

    def _record_failure(self, error: BaseException, ranks: Ranks) -> None:
        """Write FAILED with the reason, and the traceback of each rank to a file of its own."""
        trace = self.path / ("error.txt" if ranks.is_main else f"error-rank{ranks.rank}.txt")
        with suppress(OSError):
            trace.write_text("".join(traceback.format_exception(error)))
            if ranks.is_main:
                self.set_status(FAILED, reason=f"{type(error).__name__}: {error}"[:2000])
        if "TORCHELASTIC_ERROR_FILE" in os.environ:  # torchrun shows what stands there when the job ends
            from torch.distributed.elastic.multiprocessing.errors import get_error_handler

            get_error_handler().record_exception(error)

    # ---- the lock

    def _lock_for_all(self, ranks: Ranks, fresh_since: float | None, wait: bool) -> IO[str] | None:
        """The lock on the main rank, None on the others; raises on all ranks what the main one met."""
        waits, status = False, self.path / "status.json"
        while True:
            lock: IO[str] | None = None
            problem: RunLocked | ValueError | None = None
            if ranks.is_main:
                try:
                    lock = self.lock()
                    # A fresh start: the earlier run is moved aside, its lock kept until the new directory is locked.
                    if fresh_since is not None and status.exists() and status.stat().st_mtime < fresh_since:
                        with lock:
                            print(f"the earlier run is now {self.move_aside()}")
                            lock = self.lock()
                except (RunLocked, ValueError) as error:
                    problem = error

            # The others learn what the main rank met; all wait, or all raise.
            problem = ranks.gather(problem)[0]
            if problem is None:
                return lock
            if not wait or not isinstance(problem, RunLocked):
                raise problem
            if ranks.is_main and not waits:
                print(f"{problem}; waiting for it", flush=True)
            waits = True
            time.sleep(WAIT_SECONDS)

    def move_aside(self) -> Path:
        """Give an earlier run another name (`...-old-1`), so that a new one starts in an empty directory."""
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}-old-{number}")).exists():
            number += 1
        self.path.rename(aside)
        return aside

    def lock(self) -> IO[str]:
        """Lock the directory for this process; the system unlocks it when the process ends, however it ends.

        Raises:
            RunLocked: if another process holds it; names its pid and host.
            ValueError: if it cannot be written.
        """
        path = self.path / LOCK
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(path, "a+")  # noqa: SIM115 - open as long as the run
        except OSError as error:
            raise ValueError(f"{self.path}: cannot be written ({error.strerror}); choose another output_root") from None

        # Try for a moment: `in_use` holds a lock for some microseconds, too.
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(0.01)
        else:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise RunLocked(f"{self.path}: in use by process {holder}") from None

        # The directory may have been moved aside by another process since the file was opened.
        try:
            same = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except FileNotFoundError:
            same = False
        if not same:
            file.close()
            return self.lock()

        # For the message of a process that finds the directory locked.
        _LOCKS.add(file)
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
        return file

    def in_use(self) -> bool:
        """Tell if a process holds the directory."""
        try:
            with open(self.path / LOCK) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False


def differences(ours: Any, theirs: Any, key: str = "") -> list[str]:
    """Differences of two nested dictionaries as text: 'recipe.lr=0.2 (there: 0.1)'."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = [*ours, *(k for k in theirs if k not in ours)]
        return [d for k in keys for d in differences(ours.get(k), theirs.get(k), f"{key}.{k}" if key else str(k))]
    return [] if ours == theirs else [f"{key}={ours} (there: {theirs})"]


def refuse_another(place: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Refuse to continue a run of another identity.

    Raises:
        ValueError: if they differ; one line that names the keys.
    """
    found = differences(ours, theirs)
    if found:
        raise ValueError(f"{place} holds another run: {', '.join(found[:4])}; fresh=true moves it aside")


def same_data(recorded: str | None, now: str) -> bool:
    """Compare a fingerprint on record with that of these data. An older one of segmentation lacks the splits' sizes."""
    return recorded in (now, now.partition("-")[0])
