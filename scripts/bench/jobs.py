"""A small Table 1 with jobs=N beside one run after the other, and a single run beside itself; wall clock."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from engine import cpu
from scripts.bench.rounds import MALLOC, in_turn, ratios, spread, surroundings

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("data=digits", "model=resnet18", "model.width=8", "device=cpu", "progress=false")
TABLE = ("+sweep=table1", *SMALL, "seed=1")
SINGLE = ("-m", *SMALL, "seed=1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=2, help="of every command, interleaved (default %(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="of each run (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default %(default)s)")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Each command in a directory of its own, so that nothing is done already."""
    before, jobs = surroundings("cpu"), ("jobs=1", f"jobs={arguments.jobs}")
    commands = {("a table", job): (*TABLE, f"epochs={arguments.epochs}", job) for job in jobs}
    commands |= {("one run", job): (*SINGLE, f"epochs={arguments.epochs}", job) for job in jobs}
    names = [" ".join(key) for key in commands]
    arguments_of = dict(zip(names, commands.values(), strict=True))
    times: dict[str, list[float]] = {name: [] for name in names}
    runs: dict[str, int] = {}
    for number in range(arguments.rounds):
        for name in in_turn(names, number):
            seconds, runs[name] = timed(arguments_of[name])
            times[name].append(seconds)
            print(f"round {number + 1}, {name}: {runs[name]} runs in {seconds:.1f} s", file=sys.stderr, flush=True)
    rows = [
        {
            "what": what,
            "jobs": job,
            "runs": runs[f"{what} {job}"],
            "seconds": spread(times[f"{what} {job}"]),
            "times_as_fast": spread(ratios(times, f"{what} {jobs[0]}", f"{what} {job}")),
        }
        for what, job in commands
    ]
    facts = {"rounds": arguments.rounds, "epochs": arguments.epochs, "cores": cpu.cores_of_a_rank()}
    return {"kind": "jobs", "table": list(TABLE), **facts, "before": before, "after": surroundings("cpu"), "rows": rows}


def timed(arguments: tuple[str, ...]) -> tuple[float, int]:
    """Seconds of one command, and how many runs it did.

    Raises:
        RuntimeError: if a run of it failed.
    """
    # As a user starts it: threads, waiting and memory as train.py decides.
    kept = {key: value for key, value in os.environ.items() if key not in MALLOC and not key.startswith("OMP_")}
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "train.py", *arguments, f"output_root={root}"]
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
    counted = re.search(r"^(\d+) runs? done, 0 not", done.stdout, re.MULTILINE)
    if done.returncode or counted is None:
        raise RuntimeError(
            f"{' '.join(arguments)}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
    return seconds, int(counted[1])


def markdown(result: dict[str, Any]) -> str:
    """One row a command."""
    rounds = "1 round" if result["rounds"] == 1 else f"{result['rounds']} interleaved rounds, median"
    lines = [
        "# Several runs at a time",
        "",
        f"`{' '.join(result['table'])}`, {result['epochs']} epochs a run, {result['cores']} cores, "
        f"{rounds}; wall clock of the whole command.",
        "",
        "| command | runs | seconds | times as fast as jobs=1 |",
        "|---" * 4 + "|",
    ]
    for row in result["rows"]:
        seconds, fast = row["seconds"]["median"], row["times_as_fast"]["median"]
        lines.append(f"| {row['what']}, `{row['jobs']}` | {row['runs']} | {seconds:.1f} | {fast:.2f} |")
    return "\n".join(lines)
