"""Seconds and memory of the parts of a run."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

WARM_UP, MOST_STEPS = 3, 20


def time_of(run: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Median seconds of a call: a few that do not count, then up to 20 or until the time is spent."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    for number in range(WARM_UP + MOST_STEPS):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        taken.append(time.perf_counter() - start)
        if number == WARM_UP - 1:
            end = max(end, time.perf_counter() + seconds / 2)
        if time.perf_counter() > end and number:
            break
    counted = sorted(taken[WARM_UP:] or taken[1:])
    return counted[len(counted) // 2]


def time_loading(loader: Any, seconds: float, device: torch.device) -> tuple[Any, float]:
    """A batch, and the seconds from one to the next when nothing else is done meanwhile.

    Worker processes bring their first batches all at the same time, and so on in waves: what is counted begins with
    one and ends at the same place of another wave, so that no queue filled before it is taken for speed.
    """
    workers = getattr(loader, "workers", 0)
    batches: Iterator[Any] = loader.epoch(0)
    batch = next(batches)
    wait(device)
    start = time.perf_counter()
    count = 0
    for batch in batches:  # noqa: B007 - the last one is handed back
        count += 1
        whole_waves = count % max(1, workers) == 0
        if whole_waves and (count >= MOST_STEPS or time.perf_counter() - start > seconds):
            break
    wait(device)
    spent = time.perf_counter() - start
    if hasattr(batches, "close"):
        batches.close()  # ends the workers
    return batch, spent / max(1, count)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Let the largest use of memory be counted from here on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # Linux alone; elsewhere the peak is that of the whole process
            Path("/proc/self/clear_refs").write_text("5")


def peak(device: torch.device) -> int:
    """The largest use of memory in bytes: of the device, or of this process without its loader workers."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
