"""Process settings that a CPU's speed was measured to depend on. To be called before torch is imported.

Threads: GNU OpenMP lets a thread that has nothing to do spin for a while in the hope of more. On a machine of one's
own that is right: the step of a narrow ResNet-50 on two cores took 0.21 s, and 0.29 to 0.38 s where threads wait
asleep. Beside another training everybody waits for the spinner: two at once took 0.8 to 3 s a step, and 0.45 s waiting
asleep. So the ranks and the jobs of one command wait asleep; for others side by side set OMP_WAIT_POLICY=PASSIVE.

Memory: glibc hands the memory of a large tensor back to the system and has it paged in again, zeroed, for the next one.
A network asks for the same sizes at every step, so the process keeps what it has: two epochs of a ResNet-50 took 4 s of
the system's time instead of 16 to 21, and a fifth more memory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

WAITING = "OMP_WAIT_POLICY"
RUNS_HERE = "DROPBLOCK_RUNS_HERE"  # how many runs of one command share the machine
# Numbers of mallopt(3).
TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
KEPT = {
    MMAP_THRESHOLD: 1 << 30,  # smaller tensors come from the heap, not from a mapping of their own
    TRIM_THRESHOLD: -1,  # the end of the heap is never handed back
    TOP_PAD: 1 << 28,  # and grows in steps of 256 MB
}


def configure_process(alone: bool = True) -> bool:
    """Make the settings, unless they are set in the environment.

    Args:
        alone: False if other trainings are started beside this one.

    Returns:
        True if the allocator was set; it is only where it is glibc's.
    """
    if not alone or ranks_here() > 1:
        os.environ.setdefault(WAITING, "PASSIVE")
    if sys.platform != "linux" or any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    import ctypes

    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version") or not hasattr(library, "mallopt"):
        return False
    return all(library.mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in KEPT.items())


@contextmanager
def shared_by(runs: int) -> Iterator[None]:
    """Context in which `cores_of_a_rank` is the share of one of several runs on this machine."""
    before = os.environ.get(RUNS_HERE)
    os.environ[RUNS_HERE] = str(runs)
    try:
        yield
    finally:
        os.environ.pop(RUNS_HERE)
        if before is not None:
            os.environ[RUNS_HERE] = before


def ranks_here() -> int:
    """Number of ranks of this run on this machine, as torchrun announces it."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def cores_of_a_rank() -> int:
    """Number of cores for this process: those it may run on, shared with the other ranks and runs on this machine."""
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, mine // (ranks_here() * int(os.environ.get(RUNS_HERE, "1"))))
