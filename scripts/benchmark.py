"""Measure: python scripts/benchmark.py SUBJECT [--json FILE] [--markdown FILE] [--help]

op: the operator beside torchvision, timm, nn.Dropout and the memory-bandwidth bound. step: a ResNet-50 training step.
loop: the training loop beside the barest one. loader: input pipelines beside torchvision's. startup: the command line.
jobs: a small table with jobs=N beside jobs=1; for an otherwise idle machine. precision: bfloat16 on this CPU.
Prints a markdown table; reports ratios only from rounds in which all contestants took part.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.bench import jobs, loader, loop, op, precision, startup, step
from scripts.bench.rounds import MALLOC
from scripts.entry import guarded, parser_of

SUBJECTS = {
    "op": op,
    "step": step,
    "loop": loop,
    "loader": loader,
    "startup": startup,
    "jobs": jobs,
    "precision": precision,
}


@guarded
def main(arguments: list[str]) -> int:
    """Arguments in, exit code out: 0, or 2 with one line."""
    parser = parser_of(__doc__)
    subjects = parser.add_subparsers(dest="subject", required=True)
    for name, subject in SUBJECTS.items():
        command = subjects.add_parser(name, help=(subject.__doc__ or "").strip())
        command.add_argument("--json", type=Path, help="write everything measured here")
        command.add_argument("--markdown", type=Path, help="write the table here, too")
        subject.add_arguments(command)
    given = parser.parse_args(arguments)
    for path in filter(None, (given.json, given.markdown)):
        path.parent.mkdir(parents=True, exist_ok=True)  # before anything is measured
    result = SUBJECTS[given.subject].measure(given)
    table = SUBJECTS[given.subject].markdown(result)
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
