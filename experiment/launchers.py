"""Launcher plugins of Hydra, which start the runs of a grid elsewhere. Imports no torch.

slurm submits every run as a job of its own; ray hands the runs to a queue that knows the cores and GPUs of a cluster.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from omegaconf import DictConfig

from configs.checking import UserError
from configs.command_line import Arguments
from configs.compose import launch_jobs
from configs.resolve import resolve_composed
from engine import cpu
from experiment.job import run_job
from experiment.outcome import Job, Outcome
from experiment.shares import gpus
from experiment.sweep import note_run

PLUGINS = {  # launcher -> the module of the plugin, and the extra of pyproject.toml that installs it
    "slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
}
RAY_KEYS = ("num_cpus", "num_gpus")


def check_launcher(arguments: Arguments) -> None:
    """Check that the requested launcher is usable on this machine, and that no key of another one is set.

    Raises:
        UserError: one line that names the launcher or the key.
    """
    launcher, given = arguments.launcher, arguments.given
    useless = [key for key in RAY_KEYS if key in given and launcher != "ray"]
    if useless:
        raise UserError(f"{useless[0]}: only with hydra/launcher=ray; jobs=N shares cores and GPUs by itself")
    if launcher not in PLUGINS:  # none, or one that Hydra answers for
        return
    plugin, extra = PLUGINS[launcher]
    if not installed(plugin):
        raise UserError(f"hydra/launcher={launcher}: not installed: pip install '.[train,{extra}]'")
    if launcher == "slurm" and shutil.which("srun") is None:
        raise UserError("hydra/launcher=slurm: no SLURM on this machine (no srun); jobs=N runs N at a time here")
    if launcher == "ray" and "num_gpus" not in given and given.get("device") != "cpu" and gpus():
        # Ray hides every GPU from a run that asks for none, which would then train on the CPU.
        raise UserError("hydra/launcher=ray: GPUs of a run? num_gpus=1, or device=cpu")


def installed(module: str) -> bool:
    """True if a module could be imported; it is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False


def launch(arguments: Arguments, sweep: Path, jobs: Sequence[Job], began: float) -> None:
    """Give jobs to the launcher that the command asks for, and wait for them; each leaves its outcome in `sweep`."""
    log = arguments.launcher == "ray"  # its own logs are hard to find
    run = partial(run_launched, list(jobs), sweep, began, log)
    launch_jobs(arguments, sweep, [job.overrides for job in jobs], run)


def run_launched(jobs: list[Job], sweep: Path, began: float, log: bool, number: int, config: DictConfig) -> None:
    """Run one job in a process of the launcher's, if what it composed is what the command composed.

    Args:
        jobs: those that were launched.
        number: the place of this one among them.
        config: composed here from its overrides.
    """
    cpu.configure_process()
    asked = jobs[number]
    plan = resolve_composed(config, asked.overrides, grid=True)
    job = Job(asked.number, asked.overrides, plan)
    assert asked.plan is not None
    if plan.hash() != asked.plan.hash():
        reason = f"{plan.hash()} is the hash of this plan on the launcher's side: another version of code or configs"
        note_run(sweep, asked, Outcome(1, reason=reason))
        return
    run_job(job, began, sweep, log=log, place=f"{number + 1} of {len(jobs)}")
