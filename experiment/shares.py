"""Several runs on this machine: how many, and the share of the cores or the GPU of each. Imports no torch."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from configs.checking import UserError
from configs.command_line import LAUNCHER, Arguments
from engine import cpu

ROOT = Path(__file__).resolve().parents[1]
VISIBLE = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
KFD = Path("/sys/class/kfd/kfd/topology/nodes")  # of AMD's driver: processors and GPUs, those with SIMD units


def count_of(value: str, on_gpu: bool = True) -> int:
    """Number of workers that `jobs=VALUE` means: `auto` is one per GPU, or one per core where there is none.

    Args:
        value: a whole number of at least 1, or `auto`.
        on_gpu: whether the runs may use the GPUs; False for device=cpu, which is one worker per core.

    Raises:
        UserError: for what is neither `auto` nor a whole number of at least 1.
    """
    if value == "auto":
        return (len(gpus()) if on_gpu else 0) or cpu.cores_of_a_rank()
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"jobs={value}: a whole number of at least 1, or auto")
    return int(value)


def at_a_time(arguments: Arguments) -> int:
    """Number of runs at a time that a command line asks for: its jobs=, or one."""
    given = arguments.given
    return count_of(given["jobs"], on_gpu=given.get("device") != "cpu") if "jobs" in given else 1


def workers_of(arguments: Arguments) -> int:
    """Number of worker processes that a command asks for.

    Raises:
        UserError: for jobs= where it would have no effect or cannot be combined.
    """
    workers, given = at_a_time(arguments), arguments.given
    if workers > 1:
        if not arguments.is_grid:
            raise UserError(f"jobs={given['jobs']}: a single run is one job; -m or +sweep= start many")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UserError(f"jobs={workers}: runs on one process each; omit torchrun")
        if any(key.startswith(LAUNCHER) for key in given):
            raise UserError(f"jobs={workers}: a launcher has a queue of its own; omit one of the two")
        if given.get("device", "").startswith("cuda:"):
            raise UserError(f"jobs={workers}: gives each run a GPU of its own; write device=cuda, without a number")
    return workers


def threads_of(workers: int) -> str:
    """Each worker's share of the cores."""
    return str(max(1, cpu.cores_of_a_rank() // workers))


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; asked without torch."""
    # AMD's runtime looks at its own variable first.
    visible = next((os.environ[name] for name in VISIBLE if name in os.environ), None)
    if visible is not None:
        return visible_in(visible)
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        listed = ""
    count = sum(line.startswith("GPU ") for line in listed.splitlines())
    return [str(i) for i in range(count or len(amd_gpus()))]


def visible_in(value: str) -> list[str]:
    """The GPUs that a value of CUDA_VISIBLE_DEVICES leaves: those before the first that is none; no two equal.

    A GPU is a number, with or without spaces, or a name such as GPU-8932f937 or MIG-3eb2.
    """
    found: list[str] = []
    for name in map(str.strip, value.split(",")):
        if not name.isdecimal() and not name.startswith(("GPU-", "MIG-")):
            break
        found.append(name)
    return found if len(set(found)) == len(found) else []


def amd_gpus() -> list[str]:
    """The GPUs that the kernel's driver for AMD lists, without those that ROCR_VISIBLE_DEVICES hides."""
    nodes = [
        path for path in KFD.glob("*/properties") if re.search(r"^simd_count [1-9]", path.read_text(), re.MULTILINE)
    ]
    hidden = os.environ.get("ROCR_VISIBLE_DEVICES")
    return [path.parent.name for path in nodes] if hidden is None else visible_in(hidden)


def environment_of(place: int, workers: int, devices: Sequence[str]) -> dict[str, str]:
    """The environment of a worker: its threads and, where there are GPUs, the one it has to itself."""
    values = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        values.setdefault(key, threads_of(workers))
    values[cpu.RUNS_HERE] = str(workers)  # its loaders have their share, too
    if workers > 1:
        values.setdefault(cpu.WAITING, "PASSIVE")  # a thread that spins would take the core of another worker
    if devices:
        for name in VISIBLE:
            if name in os.environ or name == "CUDA_VISIBLE_DEVICES":
                values[name] = devices[place % len(devices)]
    return values
