"""From a plan to a finished run: the only package that knows all others.

from experiment import plan_of, run_plan

summary = run_plan(plan_of("data=digits", "epochs=2"))
"""

from __future__ import annotations

from typing import Any

from configs.compose import plan_of
from configs.plan import Plan

__all__ = ["plan_of", "run_plan"]


def run_plan(plan: Plan) -> dict[str, Any]:
    """Train in the run directory of the plan, from the start or from the last checkpoint; returns the summary.

    Raises:
        ValueError, FileNotFoundError: for a mistake in the configuration or the data, in one line.
    """
    from experiment.run import run_plan as run  # imports torch, which takes seconds: a typo is refused before that

    return run(plan)
