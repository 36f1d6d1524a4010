"""Hydra composes the YAML groups and the overrides of a command line; the only file that imports hydra.

Its imports stay inside the functions: what a program does with a finished plan needs no Hydra.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.checking import UserError
from configs.command_line import Arguments, check_arguments, quoted
from configs.groups import CONFIGS, NODES, choices, for_hydra, table_nodes
from configs.plan import Plan
from configs.resolve import resolve_composed
from configs.schema import Config

BRACKETED = re.compile(r"""\[[^\]]*\]|'[^']*'|"[^"]*\"""")  # commas in lists and quotes make no grid
PLAIN = re.compile(r"""[\w./+-]+|'[^']*'|"[^"]*\"""")  # what Hydra's grammar reads as one element of a list
CHOICE = re.compile(r"[+~]*(hydra|data|model|recipe|regularizer|experiment|table)\b(?!\.)")  # of a group
_bases: dict[tuple[Any, ...], DictConfig] = {}  # what was composed for a choice of groups


def plan_of(*overrides: str, grid: bool = False) -> Plan:
    """The plan of `python train.py OVERRIDES`: `plan_of("data=digits", "epochs=2")`.

    Args:
        overrides: those of the command line, without flags.
        grid: resolve as a job of a grid, where a knob that the regularizer ignores is no error.

    Raises:
        UserError: for an unknown key or an invalid value, in one line.
    """
    check_arguments(overrides)
    return resolve_composed(config_of(*overrides), overrides, grid)


def config_of(*overrides: str) -> DictConfig:
    """The composed configuration of one run, unchecked.

    Raises:
        UserError: for what Hydra does not understand, in one line.
    """
    with _hydra(overrides) as hydra:
        return _composed(hydra, for_hydra(overrides))


def compose_jobs(arguments: Arguments) -> list[tuple[list[str], DictConfig]]:
    """The overrides and the composed configuration of every job of a command line, in Hydra's order.

    Raises:
        UserError: for what Hydra does not understand, in one line.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    overrides = [override for override in arguments.overrides if not override.startswith(("hydra", "tune"))]
    with _hydra(arguments.overrides) as hydra:
        jobs = [overrides]
        if arguments.is_grid:
            # The values that the sweep's file varies come first; the command line replaces them in their place.
            words = [*(f"{key}={values}" for key, values in arguments.varied.items()), *overrides]
            parsed = OverridesParser.create(Names()).parse_overrides(words)  # type: ignore[arg-type]
            jobs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
        composed = [(job, _composed(hydra, for_hydra(job))) for job in jobs]

        # regularizer=none,dropblock regularizer.dropblock.block_size=3,5: the knob is that of the jobs that have the
        # method; the others are without it, and so the same, once.
        chosen = [{name for name, of in config.regularizer.items() if of and "kind" in of} for _, config in composed]
        found: dict[tuple[str, ...], DictConfig] = {}
        for (job, config), own in zip(composed, chosen, strict=True):
            others = set().union(*chosen) - own
            kept = tuple(word for word in job if of_regularizer(word) not in others)
            if kept not in found:
                found[kept] = config if len(kept) == len(job) else _composed(hydra, for_hydra(list(kept)))
        return [(list(job), config) for job, config in found.items()]


def of_regularizer(override: str) -> str | None:
    """The regularizer that an override sets something of, as in `regularizer.dropblock.block_size=3`."""
    named = re.match(r"\+*regularizer\.(\w+)\.", override)
    return named and named[1]


def overrides_of(values: Mapping[str, Any]) -> list[str]:
    """Values as overrides of the command line: numbers in their shortest spelling."""
    words = {True: "true", False: "false", None: "null"}
    spelled = {key: words[of] if of is None or isinstance(of, bool) else of for key, of in values.items()}
    return [
        f"{key}={value:.12g}" if isinstance(value, int | float) else f"{key}={value}" for key, value in spelled.items()
    ]


class Names:
    """The names that glob() chooses from: all of a group, those in sub-directories (table1/dropblock) included."""

    def get_group_options(self, group_name: str, **_: Any) -> list[str]:
        return choices(group_name)


def launch_jobs(
    arguments: Arguments, sweep: Path, jobs: Sequence[list[str]], run: Callable[[int, DictConfig], None]
) -> None:
    """Give jobs to the launcher plugin that a command line chooses (`hydra/launcher=`), and wait for them.

    Args:
        arguments: the command line.
        sweep: directory of the sweep.
        jobs: the overrides of each.
        run: called in a process of the launcher's with the number of a job and the configuration composed there.
    """
    from hydra._internal.callbacks import Callbacks
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode

    def task(config: DictConfig) -> None:
        run(HydraConfig.get().job.num, config)

    # launcher/ray.yaml stands before the plugin's own configuration of that name, and is meant to be checked by it.
    warnings.filterwarnings("ignore", r"\s*'hydra/launcher/ray' is validated against ConfigStore schema", UserWarning)
    overrides = [*for_hydra(arguments.overrides), f"hydra.sweep.dir={quoted(str(sweep))}", "hydra.mode=MULTIRUN"]
    with _hydra(arguments.overrides) as hydra:
        config = hydra.compose_config("config", overrides, RunMode.MULTIRUN, with_log_configuration=True)
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(config)),
            task_function=task,
            config=config,
        )
        for result in launcher.launch([for_hydra(job) for job in jobs], initial_job_idx=0):
            _ = result.return_value  # raises what the job raised


def show(arguments: Arguments) -> None:
    """Carry out a flag of Hydra's own: `--cfg job`, `--info defaults`, `-sc install=bash`."""
    flag, _, what = arguments.shows.partition("=")
    words = for_hydra(arguments.overrides)
    with _hydra(arguments.overrides) as hydra:
        if flag == "--cfg":
            hydra.show_cfg("config", words, what, package=None, resolve="--resolve" in arguments.flags)
        elif flag == "--info":
            hydra.show_info(what, "config", words)
        else:
            hydra.shell_completion("config", words)


def nodes(overrides: Sequence[str]) -> None:
    """Register with Hydra what has no file of its own: the schema's defaults, rows and tables, what a script added.

    Args:
        overrides: those of the command; only rows and tables that they name are registered.
    """
    from hydra.core.config_store import ConfigStore

    again: dict[str, Any] = {} if _before_1_4(old=True) else {"replace": True}
    store = ConfigStore.instance()
    store.store("schema", _schema(), **again)
    for group, name, node in table_nodes(overrides):
        store.store(name, node, group=group, package="_global_", **again)
    for name, values in NODES["model"].items():
        store.store(name, values, group="model", **again)
    for name, values in NODES["regularizer"].items():
        store.store(name, values, group="regularizer", package=f"regularizer.{name}", **again)


@cache
def _schema() -> Any:
    """The schema's defaults; making them takes as long as a sixth of composing a configuration."""
    return OmegaConf.to_container(OmegaConf.structured(Config))


@contextmanager
def _hydra(overrides: Sequence[str]) -> Iterator[Any]:
    """Hydra on the groups of this package; its errors become a UserError of one line.

    Args:
        overrides: those of the user, for the message.
    """
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come here, where they become one line
    nodes(overrides)
    try:
        with hydra.initialize_config_dir(str(CONFIGS), job_name="train", **_before_1_4(version_base="1.3")):
            yield GlobalHydra.instance().hydra
    except UserError:
        raise
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise UserError(one_line(error, overrides)) from error


def _composed(hydra: Any, overrides: Sequence[str]) -> DictConfig:
    """One configuration, without the part that is Hydra's own.

    The groups that are chosen decide which files are read. That takes a fifth of a second, so it is done once for each
    choice, and the values are set in a copy, by Hydra's own rule and with its own errors.
    """
    from hydra import compose
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode

    chosen = [override for override in overrides if CHOICE.match(override)]
    values = OverridesParser.create().parse_overrides([o for o in overrides if not CHOICE.match(o)])
    hydra.config_loader.validate_sweep_overrides_legal(values, run_mode=RunMode.RUN, from_shell=False)
    files = tuple((str(path), path.stat().st_mtime_ns) for path in sorted(CONFIGS.rglob("*.yaml")))
    key = (files, repr(NODES), repr(list(table_nodes(overrides))), *chosen)
    if key not in _bases:
        if len(_bases) == 100:
            _bases.clear()
        _bases[key] = compose("config", chosen)
    config = _bases[key].copy()
    ConfigLoaderImpl._apply_overrides_to_config(values, config)
    return config


def _before_1_4(**arguments: Any) -> dict[str, Any]:
    """The arguments for a Hydra older than 1.4, none for a newer one, which warns of them."""
    import hydra

    return arguments if hydra.__version__.startswith("1.3") else {}


def one_line(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's message as one line; where its grammar or commas are the reason, the spelling that works."""
    message, unread = str(error), getattr(error, "override", None)
    if message.startswith("Ambiguous value"):
        several = [override for override in overrides if "," in BRACKETED.sub("", override)]
        return f"{' '.join(several)}: several values make a grid, which needs -m; a list is written [a,b]"
    if not isinstance(unread, str):
        return " ".join(message.split())

    # What the grammar takes for more than a text: spaces, =, brackets within it.
    key, _, value = unread.partition("=")
    bare = re.sub(r"'[^']*'|\"[^\"]*\"", "", value)
    if any(bare.count(left) != bare.count(right) for left, right in ("[]", "{}", "()")) or "'" in bare or '"' in bare:
        return f"{unread}: a bracket or quote of {key} has no counterpart"
    if value.startswith("[") and value.endswith("]"):
        parts = [part.strip() for part in value[1:-1].split(",")]
        value = f"[{','.join(p if re.fullmatch(PLAIN, p) else quoted(p) for p in parts)}]"
    else:
        value = quoted(value)
    return f'{unread}: a text with spaces, = or brackets stands in quotes: "{key}={value}"'
