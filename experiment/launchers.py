"""Whether the launcher of a sweep can do its work here, asked before Hydra loads it. Imports no torch.

slurm submits every run as a job of its own; ray hands the runs to a queue that knows the cores and GPUs of a cluster.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Sequence

from configs.checking import UserError
from configs.command_line import values_given
from experiment.shares import gpus

# Of each launcher: the plugin, and the extra of pyproject.toml that installs it.
PLUGINS = {
    "slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
}
RAY_KEYS = ("num_cpus", "num_gpus")


def launcher_of(arguments: Sequence[str]) -> str:
    """The name of the launcher that the command asks for; "" for none."""
    return next((word.partition("=")[2] for word in arguments if word.startswith("hydra/launcher=")), "")


def check_launcher(arguments: Sequence[str]) -> None:
    """Refuse a launcher that could start no run here, and keys that the chosen one does not read.

    Raises:
        UserError: in one line.
    """
    launcher = launcher_of(arguments)
    given = values_given(arguments)
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
    """Whether a module could be imported; it is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it
        return False
