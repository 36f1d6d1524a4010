"""From a plan to a finished run: the only package that knows all others, and the way in from Python::

    from experiment import plan_of, run_plan

    summary = run_plan(plan_of("data=digits", "epochs=2"))

Torch is imported when it is needed first: a typo in a plan is refused before that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

from configs.compose import plan_of
from configs.plan import Plan

__all__ = [
    "plan_of",
    "register_layer",
    "register_model",
    "register_regularizer",
    "register_schedule",
    "run_plan",
    "run_sweep",
]


def run_plan(plan: Plan, model: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Train in the run directory of the plan, from the start or from the last checkpoint; returns the summary.

    Args:
        plan: the run to train.
        model: a class or function that builds another network than the plan's, see `register_model`. The run
            directory is named after it.

    Raises:
        ValueError, FileNotFoundError: for a mistake in the configuration or the data, in one line.
    """
    from experiment.run import run_plan as run

    if model is not None:
        from experiment.registration import with_model

        plan = with_model(plan, model).made_by((), plan.notes)
    return run(plan, plan.overrides)


def run_sweep(plans: Iterable[Plan], name: str) -> Path:
    """Train many plans, one after the other; what is done already is skipped.

    A run that another process trains is left for the end, so a script that is started several times at once shares the
    work. A run that fails does not end the others.

    Args:
        plans: the runs; those that differ in nothing but the seed become one row of the report.
        name: name of the sweep.

    Returns:
        the directory of the sweep, for `scripts/report.py`.

    Raises:
        RuntimeError: at the end, if a run failed; names the first.
    """
    from experiment.command import train_all

    return train_all(list(plans), name)


def __getattr__(name: str) -> Any:
    if name.startswith("register_") and name in __all__:
        return getattr(import_module("experiment.registration"), name)
    raise AttributeError(f"module 'experiment' has no attribute '{name}'")
