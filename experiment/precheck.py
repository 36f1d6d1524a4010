"""Before ranks are started: python -m experiment.precheck PROCESSES KEY=VALUE ...

torchrun takes every end of a rank for a crash and starts all of them again. What is wrong with the command itself is
found here first, without torch: one line, exit code 2.
"""

from __future__ import annotations

import os
import sys

from configs.checking import UserError
from configs.command_line import check_arguments
from configs.compose import plan_of
from experiment.outcome import report_error


def precheck(arguments: list[str], processes: int) -> None:
    """Refuse a command that no number of restarts would help.

    Args:
        arguments: the command line of train.py.
        processes: ranks that will share each batch.

    Raises:
        UserError: one line that names the key.
    """
    read = check_arguments(arguments)
    for key in ("hydra/launcher", "jobs"):
        if read.given.get(key, "1") != "1":
            raise UserError(f"{key}={read.given[key]}: its runs have one process each; call train.py itself")
    if read.is_grid:  # a job that is refused does not end the others
        return

    # Every rank and micro-batch needs the same number of images.
    plan = plan_of(*read.overrides)
    batch = plan.recipe.batch_size
    if batch % processes:
        raise UserError(f"batch_size={batch}: cannot be shared equally by {processes} processes")
    if batch // processes < plan.recipe.accumulate:
        accumulate = plan.recipe.accumulate
        raise UserError(f"recipe.accumulate={accumulate}: a process has {batch // processes} images of a batch")
    root = plan.data.root
    if root is not None and not plan.data.download and not os.path.exists(os.path.expanduser(root)):
        raise UserError(f"data.root={root}: no such file or directory")


if __name__ == "__main__":
    try:
        precheck(sys.argv[2:], int(sys.argv[1]))
    except (UserError, OSError) as error:
        sys.exit(report_error(error)[0])
