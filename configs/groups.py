"""Names of the configuration groups and what each stands for: YAML files, rows of tables, what a script registered.

Only Python adds names (`experiment.register_model` and the like): nothing that a YAML file or a command line says is
imported, so a configuration from elsewhere runs no code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

from configs import tables
from configs.checking import UserError, check, load_yaml, nearest, one_of
from configs.paper import StudyConfig
from configs.schema import KINDS, DataConfig, LayerConfig, ModelConfig, RecipeConfig, RegularizerConfig

CONFIGS = Path(__file__).parent
PARTS: dict[str, type] = {"model": ModelConfig, "data": DataConfig, "recipe": RecipeConfig}

# What scripts registered: group -> name -> the values that a YAML file of that name would have; names of schedules.
NODES: dict[str, dict[str, dict[str, Any]]] = {"model": {}, "regularizer": {}}
SCHEDULES: list[str] = []

# Knobs that a layer has only where its YAML gives them a value; the others of LayerConfig every layer has.
OF_SOME_LAYERS = ("keep_prob", "block_size", "groups", "skip", "schedule")


def choices(group: str) -> list[str]:
    """The names of a configuration group."""
    if group in ("experiment", "sweep"):
        return sorted(tables.rows()) if group == "experiment" else tables.sweeps()
    folder = CONFIGS / group
    files = {str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml")}
    return sorted(files.union(NODES.get(group, {})))


def add(group: str, name: str, values: dict[str, Any], taken: Iterable[str]) -> None:
    """Add a name to a group, or give one that was added before other values.

    Args:
        group: `model` or `regularizer`.
        name: letters, digits and _, as it will stand in run directories.
        values: what a YAML file of that name would hold.
        taken: names that are not a script's to change.

    Raises:
        UserError: for a name that is taken or cannot be one.
    """
    check_name(group, name, set(taken) - NODES[group].keys())
    NODES[group][name] = values
    declared.cache_clear()


def check_name(what: str, name: str, taken: Iterable[str]) -> None:
    """Refuse a name that is taken, or that no command line could hold."""
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise UserError(f"{what} {name!r}: a name consists of letters, digits and _, and starts with a letter")
    if name in taken:
        raise UserError(f"{what} {name}: there is one of this name already; choose another")


def named(group: str, name: str) -> Any:
    """The model, data set or recipe of a name, the defaults filled in."""
    values = load_yaml(CONFIGS / group / f"{name}.yaml")
    return check({key: value for key, value in values.items() if key != "defaults"}, PARTS[group])


@cache
def declared(name: str) -> RegularizerConfig:
    """The declaration of a regularizer; an empty one for a name that only a script of another process knows.

    Raises:
        UserError: for a file that is no declaration.
    """
    path = CONFIGS / "regularizer" / f"{name}.yaml"
    values = NODES["regularizer"].get(name) or (load_yaml(path) if path.exists() else {"kind": "none"})
    try:
        found = check(values, RegularizerConfig)
        one_of("kind", found.kind, ("none", *KINDS))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if (found.layer is not None) != (found.kind == "layer"):
        raise UserError(f"{path}: a regularizer of kind layer has knobs under layer:, and no other has")
    if found.layer is not None and found.layer.options:
        raise UserError(f"{path}: layer.options: declare them beside layer, options: {{NAME: {{default: VALUE}}}}")
    has = [*found.options, *(f.name for f in fields(LayerConfig) if found.layer is not None)]
    if found.tune is not None and (found.tune.knob not in has or len(found.tune.values) < 2):
        raise UserError(f"{path}: tune: write {{knob: NAME, values: [..], source: TEXT}}; of {', '.join(has)}")
    for option, of in found.options.items():
        registered = name in NODES["regularizer"]
        if not isinstance(of, dict) or "default" not in of or ("meaning" not in of and not registered):
            raise UserError(f"{path}: options.{option}: write {{default: VALUE, meaning: TEXT}}")
    return found


def in_order(names: Iterable[str]) -> list[str]:
    """Regularizers in the order in which they act: layers as given, then image, batch and loss, each by name."""
    kinds = {name: KINDS.index(kind) if (kind := declared(name).kind) in KINDS else 0 for name in names}
    return sorted(kinds, key=lambda name: (kinds[name], name if kinds[name] else ""))


def option_of(key: str) -> tuple[str, str]:
    """Regularizer and option of a key of the command line: regularizer.dropblock.keep_prob.

    The older spellings regularizer.NAME.layer.KEY, .layer.options.KEY, .input.KEY and .loss.KEY are the same.

    Raises:
        UserError: for a key that the regularizer does not have, with the nearest one that it has.
    """
    _, name, *path = key.split(".")
    one_of("regularizer", name, choices("regularizer"))
    for part in (("layer", "input", "loss"), ("options",)):
        if len(path) > 1 and path[0] in part:
            path = path[1:]
    of, every = declared(name), [f.name for f in fields(LayerConfig) if f.name not in ("name", "options")]
    known = [*of.options]
    if of.layer is not None:
        known += [knob for knob in every if knob not in OF_SOME_LAYERS or getattr(of.layer, knob) is not None]
    if not path:
        raise UserError(f"{key}: leave it out, or choose among regularizers by regularizer=NAME; the baseline is none")
    if len(path) > 1 or path[0] not in known:
        if path[0] in every:
            raise UserError(f"{key}: {name} has no {path[0]}")
        parts = ("layer", "options") if len(path) > 1 else ()
        has = f"; it has {', '.join(known)}" if known else "; it has no options"
        raise UserError(f"unknown key '{key}'{nearest(path[0], [*known, *parts]) or has}")
    return name, path[0]


def given_key(key: str) -> str:
    """The place in the composed configuration of a regularizer's value that the user or a table gives."""
    name, option = option_of(key)
    return f"regularizer.{name}.given.{option}"


def for_hydra(overrides: Sequence[str]) -> list[str]:
    """Overrides in the form that Hydra composes.

    A value of a regularizer goes beside its declaration, under `given`; ++ sets or adds. `+sweep=NAME` becomes
    `+table=NAME`, see `table_nodes`.
    """
    found = []
    for override in overrides:
        key, _, value = override.partition("=")
        if key.partition(".")[0] == "tune":  # of the whole command, see `command_line.tune_of`
            continue
        if key.lstrip("+~").startswith("regularizer."):
            found.append(f"++{given_key(key.lstrip('+~'))}={'null' if key.startswith('~') else value}")
        else:
            found.append(re.sub(r"^\+\+?sweep=", "+table=", override))
    return found


def table_nodes(overrides: Sequence[str]) -> list[tuple[str, str, dict[str, Any]]]:
    """(group, name, node) of the rows and tables that overrides name, as Hydra would read them from files.

    A table's node is in the group `table`, since Hydra would take configs/sweep/NAME.yaml itself for the group `sweep`.
    """
    pairs = [override.lstrip("+").partition("=") for override in overrides]
    given = " ".join(value for key, _, value in pairs if key in ("experiment", "sweep", "table"))
    words = set(re.split(r"""[\s,()\[\]'"]+""", given))  # a name may have a point or a plus in it
    named = [sweep for sweep in tables.sweeps() if sweep in words] if given else []
    wanted = {experiment for sweep in named for experiment in tables.table_of(sweep).experiments()}
    for experiment in wanted:
        one_of("runs", experiment, tables.rows())
    found = []
    for experiment, row in tables.rows().items() if given else ():
        if experiment in wanted or experiment in given or "glob(" in given:
            prefix, _, name = experiment.rpartition("/")
            found.append((f"experiment/{prefix}", name, {**_node(row), "experiment": experiment}))
    for sweep in named:
        study = check(tables.table_of(sweep).study, StudyConfig)  # refused now, not by the report of finished runs
        evaluated = {"evaluations": study.evaluations} if study.evaluations else {}
        found.append(("table", sweep, _node({**evaluated, **tables.table_of(sweep).setting})))
    return found


def _node(values: tables.Row) -> dict[str, Any]:
    """KEY: VALUE as on the command line in the form of Hydra's files: choices apart, dotted keys nested."""
    node: dict[str, Any] = {"defaults": [{f"override /{key}": values[key]} for key in tables.CHOICES if key in values]}
    for key, value in values.items():
        if key not in tables.CHOICES:
            if key.startswith("regularizer."):
                key = given_key(key)
            inner = node
            *parents, last = key.split(".")
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = value
    return node


def styles_of(names: Iterable[str]) -> dict[str, dict[str, str | None]]:
    """Label and colour of each regularizer, for the record of a run: a later process may not know those of a script."""
    return {name: {"label": declared(name).label, "colour": declared(name).colour} for name in names}


def further_choices(key: str) -> tuple[str, ...]:
    """The names that scripts added to the valid values of a key of the schema."""
    return tuple(SCHEDULES) if key == "schedule" else ()
