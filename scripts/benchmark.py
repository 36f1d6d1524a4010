"""Measure: python -m scripts.benchmark SUBJECT [--json FILE] [--markdown FILE] [--help]

op: the operator beside torchvision, timm, nn.Dropout and the memory-bandwidth bound. step: a ResNet-50 training step;
--regularizers: mixup, CutMix, ShakeDrop and others in one of ResNet-18.
launches: how often a step launches something for DropBlock on a GPU, and the host's time for it; no GPU is needed.
kernels: the Triton kernels, compiled for GPUs that need not be there.
loop: the training loop beside the barest one. loader: input pipelines beside torchvision's. startup: the command line.
jobs: a small table with jobs=N beside jobs=1; for an otherwise idle machine. precision: bfloat16 on this CPU.
Prints a markdown table; reports ratios only from rounds in which all contestants took part.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from scripts.bench import kernels, launches, loader, loop, op, program, step
from scripts.bench.harness import MALLOC, surroundings
from scripts.entry import guarded, parser_of

# Name -> adding its options, measuring (options -> its kind, facts and rows), and the table of what was measured.
SUBJECTS = {
    "op": (op.add_arguments, op.measure, op.markdown),
    "step": (step.add_arguments, step.measure, step.markdown),
    "launches": (launches.add_arguments, launches.measure, launches.markdown),
    "kernels": (kernels.add_arguments, kernels.measure, kernels.markdown),
    "loop": (loop.add_arguments, loop.measure, loop.markdown),
    "loader": (loader.add_arguments, loader.measure, loader.markdown),
    "startup": (program.add_startup_arguments, program.measure_startup, program.startup_markdown),
    "jobs": (program.add_jobs_arguments, program.measure_jobs, program.jobs_markdown),
    "precision": (step.add_precision_arguments, step.measure_precision, step.precision_markdown),
}


def measured(subject: str, given: argparse.Namespace) -> dict[str, Any]:
    """The result of one subject with the machine's state before and after: what --json writes."""
    device = getattr(given, "device", "cpu")
    before = surroundings(device)
    found = SUBJECTS[subject][1](given)
    rows = found.pop("rows")
    clock = {"clock": given.clock} if hasattr(given, "clock") else {}
    return {**found, "rounds": given.rounds, **clock, "before": before, "after": surroundings(device), "rows": rows}


@guarded
def main(arguments: list[str]) -> int:
    """Arguments in, exit code out: 0, or 2 with one line."""
    parser = parser_of(__doc__)
    subjects = parser.add_subparsers(dest="subject", required=True)
    for name, (add_arguments, measure, _) in SUBJECTS.items():
        command = subjects.add_parser(name, help=(measure.__doc__ or "").strip().splitlines()[0])
        command.add_argument("--json", type=Path, help="write everything measured here")
        command.add_argument("--markdown", type=Path, help="write the table here, too")
        add_arguments(command)
    given = parser.parse_args(arguments)
    for path in filter(None, (given.json, given.markdown)):
        path.parent.mkdir(parents=True, exist_ok=True)  # before anything is measured
    result = measured(given.subject, given)
    table = SUBJECTS[given.subject][2](result)
    print(table)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    if given.markdown:
        given.markdown.write_text(table + "\n")
    return 0


if __name__ == "__main__":
    wanted = dict(MALLOC)
    if "loader" in sys.argv[1:2]:
        wanted["OMP_WAIT_POLICY"] = "PASSIVE"  # as train.py has it beside others: here the workers are at work
    if sys.platform == "linux" and any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **wanted})
    sys.exit(main(sys.argv[1:]))
