"""A worker of `jobs=N`: trains the runs that the parent process names, one after the other.

Started by `experiment.jobs` as `python -m experiment.worker LOG`. Each line of its standard input is a job, each of
its standard output an outcome. What it would print goes to LOG, and during a run to the run's own log.txt.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from configs.compose import config_of
from engine import cpu
from experiment.grid import Command, run_job


def main(log: Path) -> None:
    """Work until the parent closes the pipe, or a signal asks to stop."""
    answers = os.fdopen(os.dup(1), "w")
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    cpu.configure_process(alone=False)
    for line in sys.stdin:
        job = json.loads(line)
        command = Command(Path(job["sweep"]), job["began"], log=True)
        config = config_of(*job["overrides"])
        outcome = run_job(command, config, job["overrides"], job["number"], "wait" if job["wait"] else "later")
        answers.write(json.dumps(asdict(outcome)) + "\n")
        answers.flush()
        if outcome.ends_all:
            break


if __name__ == "__main__":
    main(Path(sys.argv[1]))
