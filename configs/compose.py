"""Hydra composes the YAML groups and the overrides of a command line; the only file that imports hydra.

Its imports stay inside the functions: what a program does with a finished plan needs no Hydra.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs import tables
from configs.checking import UserError
from configs.command_line import LAUNCHER, check_arguments, quoted, split_flags
from configs.plan import CONFIGS, Plan
from configs.registered import NODES
from configs.regularizer_keys import with_plus, without_plus
from configs.regularizers import not_chosen
from configs.resolve import resolve_composed
from configs.schema import Config

BRACKETED = re.compile(r"""\[[^\]]*\]|'[^']*'|"[^"]*\"""")  # commas in lists and quotes make no grid


def plan_of(*overrides: str, grid: bool = False) -> Plan:
    """The plan of `python train.py OVERRIDES`: `plan_of("data=digits", "epochs=2")`.

    Args:
        overrides: as on the command line, without flags.
        grid: resolve as a job of a grid, where a knob that the regularizer ignores is no error.

    Raises:
        UserError: for an unknown key or an invalid value, in one line.
    """
    check_arguments(list(overrides))
    plan, notes = resolve_composed(config_of(*overrides), grid)
    return plan.made_by(overrides, notes)


def config_of(*overrides: str) -> DictConfig:
    """The composed configuration, unchecked.

    Raises:
        UserError: for what Hydra does not understand, in one line.
    """
    import hydra
    from hydra.errors import HydraException

    store_defaults(overrides)
    try:
        with hydra.initialize_config_dir(str(CONFIGS), **_before_1_4(version_base="1.3")):
            return hydra.compose("config", with_plus(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(str(error), overrides)) from error


def compose_jobs(
    arguments: Sequence[str], sweep: Path | None, each: Callable[[DictConfig, list[str], int], None]
) -> None:
    """Have Hydra compose the configuration of every job and call `each` with it, its overrides and its number.

    Args:
        arguments: the command line, flags included.
        sweep: directory of the sweep; None for a single run.
        each: called in the order of the jobs, by a launcher in another process.

    Raises:
        UserError: for what Hydra does not understand, in one line.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException

    def one(config: DictConfig) -> None:
        state = HydraConfig.get()
        each(config, without_plus(state.overrides.task), state.job.num if sweep is not None else 0)

    store_defaults(arguments)
    # launcher/ray.yaml stands before the plugin's own configuration of that name, and is meant to be checked by it.
    warnings.filterwarnings("ignore", r"\s*'hydra/launcher/ray' is validated against ConfigStore schema", UserWarning)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here, where they become one line
    flags, rest = split_flags(list(arguments))  # anywhere for us, in front for argparse
    sys.argv[1:] = [*flags, *with_plus(rest), *([f"hydra.sweep.dir={quoted(str(sweep))}"] if sweep else [])]
    try:
        hydra.main(config_path=str(CONFIGS), config_name="config", **_before_1_4(version_base="1.3"))(one)()
    except UserError:
        raise
    except SystemExit:  # after --help
        return
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(one_line(str(error), rest)) from error


def compose_without_trace(
    arguments: Sequence[str], grid: bool, each: Callable[[DictConfig, list[str], int], None]
) -> None:
    """`compose_jobs` in this process, whatever the launcher, in a directory that is removed; takes the same."""
    here = [argument for argument in arguments if not argument.startswith(LAUNCHER)]
    with tempfile.TemporaryDirectory() as folder:
        compose_jobs(here, Path(folder) if grid else None, each)


def store_defaults(overrides: Sequence[str]) -> None:
    """Give Hydra what has no file of its own: the schema's defaults, rows and tables, what a script registered."""
    from hydra.core.config_store import ConfigStore

    # Before each command of this process.
    again: dict[str, Any] = {} if _before_1_4(old=True) else {"replace": True}
    store = ConfigStore.instance()
    store.store("schema", _schema(), **again)
    for group, name, node in tables.nodes(overrides):
        store.store(name, node, group=group, package="_global_", **again)
    for name, values in NODES["model"].items():
        store.store(name, values, group="model", **again)
    for name, values in NODES["regularizer"].items():
        store.store(name, values, group="regularizer", package=f"regularizer.{name}", **again)


@cache
def _schema() -> Any:
    """The schema's defaults; making them takes as long as a sixth of composing a configuration."""
    return OmegaConf.to_container(OmegaConf.structured(Config))


def _before_1_4(**arguments: Any) -> dict[str, Any]:
    """The arguments for a Hydra older than 1.4, none for a newer one, which warns of them."""
    import hydra

    return arguments if hydra.__version__.startswith("1.3") else {}


def one_line(message: str, overrides: Sequence[str]) -> str:
    """Hydra's message as one line; where it blames commas, what to do about them."""
    if message.startswith("Ambiguous value"):
        several = [override for override in overrides if "," in BRACKETED.sub("", override)]
        return f"{' '.join(several)}: several values make a grid, which needs -m; a list is written [a,b]"
    other = re.match(r"Could not override 'regularizer\.(\w+)", message)
    return not_chosen(other[1]) if other else " ".join(message.split())
