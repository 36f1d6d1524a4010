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
from configs.plan import Plan
from experiment.outcome import report_error


def precheck(arguments: list[str], processes: int) -> None:
    """Refuse a command that no number of restarts would help.

    Args:
        arguments: of train.py.
        processes: ranks that will share each batch.

    Raises:
        UserError: in one line.
    """
    read = check_arguments(arguments)
    given = read.given
    alone = [key for key in ("hydra/launcher", "jobs") if given.get(key, "1") != "1"]
    if alone:
        raise UserError(f"{alone[0]}={given[alone[0]]}: its runs have one process each; call train.py itself")
    if not read.is_grid:  # of a grid each job is checked as it comes
        _check_plan(plan_of(*read.overrides), processes)


def _check_plan(plan: Plan, processes: int) -> None:
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
