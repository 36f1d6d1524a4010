"""The time until the command line answers, beside that of importing torch and torchvision."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.bench.rounds import interleaved, ratios, spread, surroundings

ROOT = Path(__file__).resolve().parents[2]
IMPORTS = "import torch, torchvision"
COMMANDS = {
    IMPORTS: ["-c", IMPORTS],
    "train.py --help": ["train.py", "--help"],
    "train.py regularizer=dropblok": ["train.py", "regularizer=dropblok"],
    "train.py lr=abc": ["train.py", "lr=abc"],
    "evaluate.py --help": ["evaluate.py", "--help"],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=7, help="rounds that count (default %(default)s)")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Each command as a new process, in interleaved rounds."""
    before = surroundings("cpu")
    times, _ = interleaved({name: started(command) for name, command in COMMANDS.items()}, arguments.rounds, 0.0, "cpu")
    rows = [
        {"name": name, "seconds": spread(times[name]), "to_imports": spread(ratios(times, name, IMPORTS))}
        for name in COMMANDS
    ]
    after = surroundings("cpu")
    return {"kind": "startup", "rounds": arguments.rounds, "before": before, "after": after, "rows": rows}


def started(command: list[str]) -> Callable[[], object]:
    """One call: the process, from its start to its end."""
    return lambda: subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=False)


def markdown(result: dict[str, Any]) -> str:
    """One row a command."""
    lines = [
        "# Time until the command line answers",
        "",
        f"New processes, {result['rounds']} interleaved rounds; median [quartiles].",
        "",
        "| command | seconds | x the imports |",
        "|---" * 3 + "|",
    ]
    for row in result["rows"]:
        seconds = "{median:.2f} [{quarter:.2f}, {three_quarters:.2f}]".format(**row["seconds"])
        lines.append(f"| `{row['name']}` | {seconds} | {row['to_imports']['median']:.2f} |")
    return "\n".join(lines)
