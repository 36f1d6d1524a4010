"""One harness for all benchmarks: contestants in, rows with times and ratios out, one form of table.

Timing that can be trusted on a machine with other work: every contestant runs in every round, in an order that rotates,
and ratios are taken within a round.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

Contestants = dict[str, Callable[[], object]]
Times = dict[str, list[float]]
Row = dict[str, Any]

# `processor` is the time that this process computes, which others on the machine hardly change.
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
# Share of the processor time that other processes may take in a round. Threads that wait for each other make a
# two-core measurement useless long before the load looks high.
BUSY = 0.05
# glibc hands large tensors back to the system and page-faults them in again: that makes even x * scalar vary by a
# factor of 2 to 8. With these it keeps them. They must stand in the environment before the process starts.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}


def add_options(parser: argparse.ArgumentParser, *names: str, rounds: int, patience_of: str = "the whole") -> None:
    """Add `--rounds`, and of the options that several benchmarks share those that are named."""
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds that count (default %(default)s)")
    if "clock" in names:
        parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor: of a CPU that others use too")
    if "device" in names:
        parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    if "patience" in names:
        meaning = f"for so long, of {patience_of}, repeat rounds that other processes disturbed"
        parser.add_argument("--patience", type=float, default=0.0, metavar="SECONDS", help=meaning)


def interleaved(
    contestants: Contestants,
    rounds: int,
    least_s: float = 0.0,
    device: str = "cpu",
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
    # Compilation and first-touch costs must not decide how many calls fill a measurement.
    for run in contestants.values():
        run()
    repeats = {name: max(1, round(least_s / max(1e-7, clock(run, 2, device)))) for name, run in contestants.items()}

    def measure(name: str) -> dict[str, float]:
        return {"seconds": clock(contestants[name], repeats[name], device, by)}

    found, shares = in_rounds(measure, list(contestants), rounds, patience_s)
    return found["seconds"], shares


def in_rounds(
    measure: Callable[[str], dict[str, float]],
    names: Sequence[str],
    rounds: int,
    patience_s: float = 0.0,
    warm_up: bool = True,
) -> tuple[dict[str, Times], list[float]]:
    """Measure every contestant once a round; each round begins one further, so that nobody always goes first.

    Args:
        measure: takes the name of a contestant, returns what was measured, each number under a key.
        names: the contestants.
        rounds: rounds that count.
        patience_s: see `interleaved`.
        warm_up: one more round goes before them, which warms caches and does not count.

    Returns:
        by key the numbers of every contestant, one for each round; shares as from `interleaved`.
    """
    found: dict[str, Times] = {}
    shares: list[float] = []
    deadline, number = time.monotonic() + patience_s, 0 if warm_up else 1
    while number <= rounds:
        others, start = seconds_of_others(), time.perf_counter()
        first = number % len(names)
        measured = {name: measure(name) for name in (*names[first:], *names[:first])}
        share = (seconds_of_others() - others) / (time.perf_counter() - start) / (os.cpu_count() or 1)
        if share > BUSY and time.monotonic() < deadline:
            time.sleep(1.0)
            continue
        if number > 0:
            shares.append(round(max(0.0, share), 3))
            for name in names:
                for key, value in measured[name].items():
                    found.setdefault(key, {}).setdefault(name, []).append(value)
        number += 1
    return found, shares


def compare(
    contestants: dict[str, Callable[[], object]],
    arguments: argparse.Namespace,
    to: dict[str, str],
    least_s: float = 0.0,
) -> tuple[list[Row], Times, list[float]]:
    """Time contestants by the options of a benchmark; one row each.

    Args:
        contestants: see `interleaved`.
        arguments: with rounds, and of device, patience and clock those that the benchmark has.
        to: key of a row -> the contestant that its ratios are taken to.
        least_s: see `interleaved`.

    Returns:
        rows with `name`, `milliseconds` and the ratios; seconds and shares as from `interleaved`.
    """
    device, patience = getattr(arguments, "device", "cpu"), getattr(arguments, "patience", 0.0)
    by = getattr(arguments, "clock", "wall")
    times, shares = interleaved(contestants, arguments.rounds, least_s, device, patience, by)
    rows = []
    for name in contestants:
        row: Row = {"name": name, "milliseconds": spread(times[name], 1000)}
        row |= {key: with_interval(ratios(times, name, other)) for key, other in to.items()}
        rows.append(row)
    return rows, times, shares


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


def peak_of(step: Callable[[], object], device: torch.device) -> int:
    """Peak memory of one call in bytes, beyond what was allocated before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    # The CPU's allocator keeps no peak: the profiler's allocations and frees are added up in the order of time.
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def surroundings(device: str) -> dict[str, Any]:
    """Processor or GPU, threads, load and allocator: the context a reader needs to judge the numbers."""
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


def ratios(times: Times, name: str, to: str) -> list[float]:
    """Time of `name` over time of `to`, round by round."""
    return [a / b for a, b in zip(times[name], times[to], strict=True)]


def spread(values: Iterable[float], scale: float = 1.0) -> dict[str, float]:
    """Median and quartiles, times `scale`."""
    scaled = [scale * value for value in values]
    low, middle, high = statistics.quantiles(scaled, n=4, method="inclusive") if len(scaled) > 1 else scaled * 3
    return {"median": middle, "quarter": low, "three_quarters": high}


def with_interval(values: list[float]) -> dict[str, Any]:
    """Median and quartiles, and the 95 % interval of the median."""
    return {**spread(values), "interval": interval_of_median(values)}


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


def quartiles(measured: dict[str, float], form: str, scale: float = 1.0, unit: str = "") -> str:
    """`median [lower, upper quartile]`, each times `scale` and in this format."""
    middle, low, high = (f"{scale * measured[key]:{form}}" for key in ("median", "quarter", "three_quarters"))
    return f"{middle}{unit} [{low}, {high}]"


def interval(measured: dict[str, Any], form: str, scale: float = 1.0, unit: str = "") -> str:
    """`median [95 % interval of the median]`, each times `scale` and in this format."""
    middle, low, high = (f"{scale * value:{form}}" for value in (measured["median"], *measured["interval"]))
    return f"{middle}{unit} [{low}, {high}]"


def table(columns: Mapping[str, Callable[[Any], object]], rows: Iterable[Any]) -> str:
    """A Markdown table: a column is its head and what it shows of a row."""
    return table_of_cells(columns, [[str(cell(row)) for cell in columns.values()] for row in rows])


def table_of_cells(heads: Iterable[str], lines: Iterable[Sequence[str]]) -> str:
    heads = list(heads)
    shown = [f"| {' | '.join(cells)} |" for cells in (heads, *lines)]
    return "\n".join([shown[0], "|---" * len(heads) + "|", *shown[1:]])
