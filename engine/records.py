"""A run folder: what a training leaves for its resumption, for evaluation and for the report.

plan.yaml        the complete plan                 metrics.jsonl   the log, one JSON object a line
config_min.yaml  what the user asked for           events.out...   the same for TensorBoard
status.json      RUNNING, DONE, STOPPED, FAILED    summary.json    the result
error.txt        why it FAILED                     nonfinite.pt    the step at which a number went wrong
sites.json       the sites table                   checkpoints/    last.pt, previous.pt, best.pt
code.diff        local changes to the code, of a run from a dirty checkout
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import socket
import subprocess
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from engine.files import write_aside

if TYPE_CHECKING:
    import torch

RUNNING, DONE, STOPPED, FAILED, KILLED = "RUNNING", "DONE", "STOPPED", "FAILED", "KILLED"
LOCK, LOCK_TRIES = ".lock", 20
LARGEST_DIFF = 2_000_000  # characters of code.diff
_LOCKS: weakref.WeakSet[IO[str]] = weakref.WeakSet()


def _close_locks() -> None:
    """In a forked process, such as a loader worker: a lock inherited from its parent would outlive a killed run."""
    for lock in list(_LOCKS):
        lock.close()


os.register_at_fork(after_in_child=_close_locks)


class RunLocked(RuntimeError):
    """Another process works in this run folder."""

    exit_code = 2
    in_use = True


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run, and reading and writing its small files whole."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def status(self) -> dict[str, Any]:
        """The last known status; {} for a folder without a run. RUNNING without a process is KILLED."""
        status = self.read("status.json") or {}
        if status.get("status") == RUNNING and not self.in_use():
            status["status"] = KILLED
        return status

    def set_status(self, status: str, **more: Any) -> None:
        self.write("status.json", {"status": status, "pid": os.getpid(), "host": socket.gethostname(), **more})

    def summary(self) -> dict[str, Any]:
        return self.read("summary.json") or {}

    def read(self, name: str) -> Any:
        """A JSON file of the folder, or None if there is none that can be read."""
        try:
            return json.loads((self.path / name).read_text())
        except (OSError, ValueError):
            return None

    def write(self, name: str, value: Any) -> None:
        write_aside(self.path / name, [(json.dumps(value, indent=2) + "\n").encode()])

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

    def move_aside(self) -> Path:
        """Give an earlier run another name (`...-old-1`), so that a new one starts in an empty folder."""
        number = 1
        while (aside := self.path.with_name(f"{self.path.name}-old-{number}")).exists():
            number += 1
        self.path.rename(aside)
        return aside

    def take(self, fresh_since: float | None) -> IO[str]:
        """Lock the folder, an earlier run in it moved aside where a fresh start is wanted.

        Args:
            fresh_since: when the command began that wants one; None: nothing is moved. What was written later stays:
                jobs of a grid that meet in one folder, or share a grid, do not start each other's work over.

        Raises:
            RunLocked: if another process holds it.
            ValueError: if it cannot be written.
        """
        lock = self.lock()
        status = self.path / "status.json"
        if fresh_since is not None and status.exists() and status.stat().st_mtime < fresh_since:
            with lock:  # kept until the new folder is locked
                print(f"the earlier run is now {self.move_aside()}")
                lock = self.lock()
        return lock

    def lock(self) -> IO[str]:
        """Lock the folder for this process; the system unlocks it when the process ends, however it ends.

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
        if not _locked(file):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise RunLocked(f"{self.path}: in use by process {holder}") from None
        if not _same_file(file, path):  # moved aside by another process since it was opened
            file.close()
            return self.lock()
        _LOCKS.add(file)
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
        return file

    def in_use(self) -> bool:
        """Whether a process holds the folder."""
        try:
            with open(self.path / LOCK) as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return False


def _locked(file: IO[str]) -> bool:
    """Try for a moment: whoever asks `in_use` holds a lock for some microseconds, too."""
    for _ in range(LOCK_TRIES):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            time.sleep(0.01)
        else:
            return True
    return False


def _same_file(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def environment(device: torch.device) -> dict[str, Any]:
    """What a reviewer asks of a number: the code it came from, the versions, the machine.

    Args:
        device: that the run is on; a GPU is recorded by its name, a CPU by the instructions that torch uses of it.
    """
    from importlib.metadata import version  # importing torchvision for its number would take seconds

    import torch

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": version("torchvision"),
        "device": str(device),
        "processor": gpu or torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
    }


def code_diff() -> str:
    """How the code differs from the commit that `environment` names, as a patch; '' where it is clean or unknown."""
    difference = _git("diff", "HEAD") or ""
    if len(difference) > LARGEST_DIFF:
        return f"{difference[:LARGEST_DIFF]}\n... {len(difference) - LARGEST_DIFF} more characters\n"
    return f"{difference}\n" if difference else ""


def _git(*arguments: str) -> str | None:
    here = Path(__file__).parent
    try:
        result = subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.rstrip("\n")  # not the blanks that a patch may end with


def same_data(recorded: str | None, now: str) -> bool:
    """Whether a fingerprint on record is that of these data. An older one of segmentation lacks the splits' sizes."""
    return recorded in (now, now.partition("-")[0])
