"""A run folder: what a training leaves for its resumption, for evaluation and for the report.

plan.yaml        the complete plan                 metrics.jsonl   the curves, one JSON object a line
config_min.yaml  what the user asked for           events.out...   the same for TensorBoard
status.json      RUNNING, DONE, STOPPED, FAILED    summary.json    the result
sites.json       the sites table                   checkpoints/    last.pt, previous.pt, best.pt
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from engine.checkpoint import write_aside

RUNNING, DONE, STOPPED, FAILED = "RUNNING", "DONE", "STOPPED", "FAILED"


class RunLocked(RuntimeError):
    """Another process works in this run folder."""


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run, and reading and writing its small files whole."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def status(self) -> dict[str, Any]:
        """The last known status; {} for a folder that never held a run."""
        return self.read("status.json") or {}

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
            lines = (self.path / "metrics.jsonl").read_text().splitlines()
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

    def lock(self) -> IO[str]:
        """Hold the folder for this process; the system lets go when the process ends, however it ends.

        Raises:
            RunLocked: if another process holds it; names its pid and host.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        file = open(self.path / ".lock", "a+")  # noqa: SIM115 - held open as long as the run
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise RunLocked(f"{self.path}: in use by process {file.read().strip() or 'unknown'}") from None
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
        return file


def environment() -> dict[str, Any]:
    """What a reviewer asks of a number: the code it came from, the versions, the machine."""
    import torch
    import torchvision

    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _git(*words: str) -> str | None:
    here = Path(__file__).parent
    try:
        result = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
