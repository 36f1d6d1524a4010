"""Training processes for the tests: started in a moment, killed at will, compared to the last bit."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from engine.files import ASIDE
from engine.run_directory import RunDirectory
from tests.last_of_each import last_of_each

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
# Everything that a resume has to restore: layers with counters, an average, micro-batches, augmentation, val and test.
WORDS = (
    *("data=fake", "data.image_size=16", "model=resnet18", "model.width=4"),
    *("progress=false", "log_every=3", "device=cpu"),
    *("regularizer=dropblock", "block_size=3", "recipe.ema_decay=0.9", "recipe.accumulate=2"),
    *("recipe.augment.flip=true", "epochs=2", "batch_size=48"),
)
STEPS_PER_EPOCH = 288 // 48
# The same for segmentation, with DropBlock in body and head.
SEGMENTATION = (
    *("data=digit_masks", "data.image_size=33", "data.train_subset=96", "batch_size=16", "log_every=3", "device=cpu"),
    *("model.width=4", "model.options.fpn_width=8", "model.options.head_width=8", "recipe.eval_every=2"),
    *("regularizer=dropblock", "block_size=3", "groups=[3,4,head]", "head_share=0.5", "recipe.augment.scale_min=0.8"),
    *("recipe.precision=float32", "recipe.ema_decay=0.9", "recipe.accumulate=2", "progress=false"),
)
# The same for detection; the low threshold lets a network of 12 steps find something.
DETECTION = (
    *("data=digit_boxes", "data.image_size=32", "data.train_subset=96", "data.val_fraction=0.02", "batch_size=16"),
    *("model.width=4", "model.options.fpn_width=8", "model.options.head_width=8", "model.options.head_depth=1"),
    *("regularizer=dropblock", "block_size=3", "groups=[3,4,head]", "head_share=0.5", "recipe.score_threshold=0.02"),
    *("recipe.ema_decay=0.9", "recipe.accumulate=2", "recipe.eval_every=2", "epochs=2", "lr=0.2"),
    *("log_every=3", "device=cpu", "progress=false"),
)


@dataclass
class Process:
    """A running entry script."""

    pid: int
    log: Path
    wait_for: Callable[[int], int]

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def ended(self) -> bool:
        return gone(self.pid)

    def wait(self, timeout: float = 120.0) -> int:
        """The exit code; negative for a signal. What the process said is shown if it does not end."""
        until(self.ended, timeout, lambda: f"no end after {timeout} s:\n{self.output()}")
        return self.wait_for(self.pid)

    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def gone(pid: int) -> bool:
    """Whether a process has ended with all its threads (the last one lets go of files and locks), waited for or not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state in "ZX" and len(os.listdir(f"/proc/{pid}/task")) == 1
    except OSError:
        return True


class Starter:
    """Starts train.py by a fork of a process that has everything imported."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("starter.py"))],
            cwd=ROOT,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        assert self._answer() == {"ready": True}

    def _answer(self) -> dict[str, Any]:
        assert self.server.stdout is not None
        return json.loads(self.server.stdout.readline())

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        return self._answer()

    def start(self, *words: str, environment: dict[str, str] | None = None, **faults: Any) -> Process:
        """train.py with these words; `faults` are the methods of `starter.Faults`."""
        self.count += 1
        log = self.folder / f"{self.count}.log"
        request = {"words": last_of_each(*words), "environment": environment or {}, "log": str(log), "faults": faults}
        return Process(self._ask(request)["pid"], log, lambda pid: self._ask({"wait": pid})["code"])

    def run(self, *words: str, environment: dict[str, str] | None = None, **faults: Any) -> tuple[int, str]:
        """Start and wait: (exit code, output)."""
        process = self.start(*words, environment=environment, **faults)
        return process.wait(), process.output()

    def ranks(self, *words: str, world_size: int = 2, faults: dict[int, Any] | None = None) -> list[Process]:
        """One process per rank, as torchrun would start them; `faults` by rank."""
        port = str(free_port())
        common = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        return [
            self.start(
                *words, environment={**common, "RANK": str(r), "LOCAL_RANK": str(r)}, **(faults or {}).get(r, {})
            )
            for r in range(world_size)
        ]

    def close(self) -> None:
        self.server.kill()
        self.server.wait()


def entry_script(*words: str, log: Path, script: str = "train.py", **environment: str) -> Process:
    """`python train.py WORDS` itself, in a session of its own."""
    with open(log, "ab") as file:
        popen = subprocess.Popen(
            [sys.executable, script, *last_of_each(*words)],
            cwd=ROOT,
            env={**ENVIRONMENT, **environment},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    return Process(popen.pid, log, lambda _: popen.wait())


def torchrun(*words: str, log: Path, restarts: int = 0) -> Process:
    """Two ranks by scripts/launch."""
    with open(log, "ab") as file:
        popen = subprocess.Popen(
            ["scripts/launch", "2", *last_of_each(*words)],
            cwd=ROOT,
            env={**ENVIRONMENT, "PYTHON": sys.executable, "RESTARTS": str(restarts)},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    return Process(popen.pid, log, lambda _: popen.wait())


def workers_of(launcher: Process) -> list[int]:
    try:
        children = psutil.Process(launcher.pid).children(recursive=True)
        return sorted(c.pid for c in children if any("train.py" in word for word in c.cmdline()[:4]))
    except psutil.NoSuchProcess:
        return []


def first_port() -> int:
    """Where this process of pytest looks for ports: below those that the system hands to whoever asks for any."""
    try:
        handed_out = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    except OSError:
        handed_out = 32_768
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])
    return max(1_024, handed_out - 12_500) + 500 * (worker % 24) + os.getpid() % 250


PORTS = itertools.count(first_port())


def free_port() -> int:
    """A port that nobody has, never the same twice; the system hands it to no other process before it is used."""
    while True:
        port = next(PORTS)
        with socket.socket() as taken, suppress(OSError):
            taken.bind(("", port))
            return port


def until(
    condition: Callable[[], object],
    timeout: float = 60.0,
    describe: Callable[[], str] = lambda: "",
    pause: float = 0.01,
) -> None:
    """Wait for a condition, looked at every `pause` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, describe()
        time.sleep(pause)


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all that came from it, and see them dead."""
    try:
        tree = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    until(lambda: all(gone(process.pid) for process in tree))


def only_run(root: Path) -> RunDirectory:
    (path,) = root.glob("*-*/*/seed-*")
    return RunDirectory(path)


def written(root: Path) -> int:
    """When a run last finished a checkpoint; 0 for never."""
    try:
        return only_run(root).checkpoints.joinpath("last.pt").stat().st_mtime_ns
    except (OSError, ValueError):
        return 0


def being_written(folder: Path) -> list[str]:
    """Files of a checkpoint folder that are not whole yet, or never will be."""
    return [name for name in os.listdir(folder) if ASIDE in name]


def assert_no_scars(run: RunDirectory) -> None:
    """Every step stands once and in order in both histories, and both say the same."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lines = [line for line in run.metrics() if "train/loss" in line]
    events = EventAccumulator(str(run.path), size_guidance={"scalars": 0}).Reload()
    for name in ("train/loss", f"test/{run.summary()['headline']}"):
        points = [(line["step"], line[name]) for line in run.metrics() if name in line]
        steps = [step for step, _ in points]
        assert steps == sorted(set(steps))
        shown = [(e.step, e.value) for e in events.Scalars(name)]
        assert [step for step, _ in shown] == steps, name
        assert torch.equal(torch.tensor([v for _, v in shown]), torch.tensor([v for _, v in points])), name
    total = run.summary()["steps"]
    per_epoch = STEPS_PER_EPOCH
    assert [line["step"] for line in lines] == [s for s in range(1, total + 1) if s % 3 == 0 or s % per_epoch == 0]
