"""Timing that can be trusted on a machine with other work: every contestant in every round, ratios within a round."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Times = dict[str, list[float]]

# Share of the processor time that other processes may take in a round. Threads that wait for each other make a
# two-core measurement useless long before the load looks high.
BUSY = 0.05


# `processor` is the time that this process computes, which others on the machine hardly change.
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def add_clock(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor: of a CPU that others use as well")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")


def add_patience(parser: argparse.ArgumentParser, of: str) -> None:
    meaning = f"for so long, of {of}, repeat rounds that other processes disturbed"
    parser.add_argument("--patience", type=float, default=0.0, metavar="SECONDS", help=meaning)


def interleaved(
    contestants: dict[str, Callable[[], object]],
    rounds: int,
    least_s: float,
    device: str,
    patience_s: float = 0.0,
    by: str = "wall",
) -> tuple[Times, list[float]]:
    """Time every contestant once a round, in an order that rotates.

    Args:
        contestants: what to run, by name.
        rounds: rounds that count; one more goes before them.
        least_s: a measurement repeats its contestant until about this many seconds.
        device: `cpu` or `cuda`; on a GPU the clock stops when the work is done.
        patience_s: for so long a round that other processes disturbed is thrown away and done again.
        by: one of `CLOCKS`.

    Returns:
        seconds per call, by name, one for each round; and the share of the processors that others took, one for each
        round (0 where the system does not tell).
    """
    for run in contestants.values():
        run()  # what is compiled at the first call is not part of how many calls fill a measurement
    repeats = {name: max(1, round(least_s / max(1e-7, clock(run, 2, device)))) for name, run in contestants.items()}
    names = list(contestants)
    times: Times = {name: [] for name in names}
    shares: list[float] = []
    deadline, number = time.monotonic() + patience_s, 0
    while number <= rounds:
        others, start = seconds_of_others(), time.perf_counter()
        seconds = {name: clock(contestants[name], repeats[name], device, by) for name in in_turn(names, number)}
        share = (seconds_of_others() - others) / (time.perf_counter() - start) / (os.cpu_count() or 1)
        if share > BUSY and time.monotonic() < deadline:
            time.sleep(1.0)
            continue
        number += 1
        if number > 1:
            shares.append(round(max(0.0, share), 3))
            for name in names:
                times[name].append(seconds[name])
    return times, shares


def in_turn(names: Sequence[str], number: int) -> list[str]:
    """The order of a round: each round begins one further, so that nobody always goes first."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


def seconds_of_others() -> float:
    """Processor seconds that everything but this process has used since the start of the system."""
    try:
        with open("/proc/stat") as lines:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, lines.readline().split()[1:9])
    except (OSError, ValueError):
        return 0.0
    busy = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return busy - sum(os.times()[:2])


def clock(run: Callable[[], object], repeats: int, device: str, by: str = "wall") -> float:
    """Seconds per call over some repeats, by one of `CLOCKS`."""
    seconds = CLOCKS[by]
    if device == "cuda":
        torch.cuda.synchronize()
    start = seconds()
    for _ in range(repeats):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    return (seconds() - start) / repeats


def ratios(times: Times, name: str, to: str) -> list[float]:
    """How much longer `name` took than `to`, round by round."""
    return [a / b for a, b in zip(times[name], times[to], strict=True)]


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"median": middle, "quarter": low, "three_quarters": high}


def interval_of_median(values: list[float]) -> tuple[float, float]:
    """An interval that holds the true median with at least 95 %, from the order of the values alone.

    Fewer than 6 values cannot give one; what comes back then is the smallest and the largest.
    """
    ordered, n = sorted(values), len(values)
    chance, outside, rank = 0.5**n, 0.0, 0
    while outside + chance <= 0.025:  # binomial(n, 1/2) tail
        outside += chance
        rank += 1
        chance = chance * (n - rank + 1) / rank
    rank = max(rank, 1)
    return ordered[rank - 1], ordered[n - rank]


def surroundings(device: str) -> dict[str, Any]:
    """What a reader needs to judge the numbers."""
    processor = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            processor = next((line.split(":")[1].strip() for line in lines if "model name" in line), processor)
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else processor,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "malloc": {name: os.environ.get(name, "") for name in MALLOC},
    }


# glibc hands large tensors back to the system and page-faults them in again: that makes even x * scalar vary by a
# factor of 2 to 8. With these it keeps them. They must stand in the environment before the process starts.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
