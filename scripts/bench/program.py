"""The command line as a user starts it: the time until it answers, and a small table with jobs=N beside jobs=1."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine import cpu
from scripts.bench import harness
from scripts.bench.harness import Row, quartiles, ratios, spread, table

ROOT = Path(__file__).resolve().parents[2]
IMPORTS = "import torch, torchvision"
COMMANDS = {
    IMPORTS: ["-c", IMPORTS],
    "train.py --help": ["train.py", "--help"],
    "train.py regularizer=dropblok": ["train.py", "regularizer=dropblok"],
    "train.py lr=abc": ["train.py", "lr=abc"],
    "evaluate.py --help": ["evaluate.py", "--help"],
}
SMALL = ("data=digits", "model=resnet18", "model.width=8", "device=cpu", "progress=false")
TABLE = ("+sweep=table1", *SMALL, "seed=1")
SINGLE = ("-m", *SMALL, "seed=1")


def add_startup_arguments(parser: argparse.ArgumentParser) -> None:
    harness.add_options(parser, rounds=7)


def measure_startup(arguments: argparse.Namespace) -> dict[str, Any]:
    """Each command as a new process, in interleaved rounds, beside importing torch and torchvision."""
    runs = {name: started(command) for name, command in COMMANDS.items()}
    rows, times, _ = harness.compare(runs, arguments, {"to_imports": IMPORTS})
    return {"kind": "startup", "rows": [{**row, "seconds": spread(times[row["name"]])} for row in rows]}


def started(command: list[str]) -> Callable[[], object]:
    """One call: the process, from its start to its end."""
    return lambda: subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=False)


def startup_markdown(result: dict[str, Any]) -> str:
    """The measured table, one row per command."""
    columns: dict[str, Callable[[Row], object]] = {
        "command": lambda row: f"`{row['name']}`",
        "seconds": lambda row: quartiles(row["seconds"], ".2f"),
        "x the imports": lambda row: f"{row['to_imports']['median']:.2f}",
    }
    return f"""# Time until the command line answers

New processes, {result["rounds"]} interleaved rounds; median [quartiles].

{table(columns, result["rows"])}"""


def add_jobs_arguments(parser: argparse.ArgumentParser) -> None:
    harness.add_options(parser, rounds=2)
    parser.add_argument("--epochs", type=int, default=4, help="of each run (default %(default)s)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default %(default)s)")


def measure_jobs(arguments: argparse.Namespace) -> dict[str, Any]:
    """A small Table 1 and a single run, with jobs=1 and with jobs=N: wall time of the whole command.

    Each command has a directory of its own, so that nothing is done already.
    """
    jobs, epochs = ("jobs=1", f"jobs={arguments.jobs}"), f"epochs={arguments.epochs}"
    kinds = {"a table": TABLE, "one run": SINGLE}
    commands = {f"{what} {job}": (*kinds[what], epochs, job) for what in kinds for job in jobs}
    runs: dict[str, int] = {}

    def measure_command(name: str) -> dict[str, float]:
        seconds, runs[name] = timed_command(commands[name])
        print(f"{name}: {runs[name]} runs in {seconds:.1f} s", file=sys.stderr, flush=True)
        return {"seconds": seconds}

    times = harness.in_rounds(measure_command, list(commands), arguments.rounds, warm_up=False)[0]["seconds"]
    rows = [
        {
            "what": what,
            "jobs": job,
            "runs": runs[f"{what} {job}"],
            "seconds": spread(times[f"{what} {job}"]),
            "times_as_fast": spread(ratios(times, f"{what} {jobs[0]}", f"{what} {job}")),
        }
        for what in kinds
        for job in jobs
    ]
    facts = {"table": list(TABLE), "epochs": arguments.epochs, "cores": cpu.cores_of_a_rank()}
    return {"kind": "jobs", **facts, "rows": rows}


def timed_command(arguments: tuple[str, ...]) -> tuple[float, int]:
    """Seconds of one command, and how many runs it did.

    Raises:
        RuntimeError: if a run of it failed.
    """
    # As a user starts it: threads, waiting and memory as train.py decides.
    kept = {key: value for key, value in os.environ.items() if key not in harness.MALLOC and not key.startswith("OMP_")}
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


def jobs_markdown(result: dict[str, Any]) -> str:
    """The measured table, one row per command."""
    rounds = "1 round" if result["rounds"] == 1 else f"{result['rounds']} interleaved rounds, median"
    columns: dict[str, Callable[[Row], object]] = {
        "command": lambda row: f"{row['what']}, `{row['jobs']}`",
        "runs": lambda row: row["runs"],
        "seconds": lambda row: f"{row['seconds']['median']:.1f}",
        "times as fast as jobs=1": lambda row: f"{row['times_as_fast']['median']:.2f}",
    }
    return f"""# Several runs at a time

`{" ".join(result["table"])}`, {result["epochs"]} epochs a run, {result["cores"]} cores, \
{rounds}; wall clock of the whole command.

{table(columns, result["rows"])}"""
