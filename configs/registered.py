"""Names that a Python script adds to the configuration, beside the YAML files.

Only Python adds to them (`experiment.register_model` and the like): nothing that a YAML file or a command line says is
imported, so a configuration from elsewhere runs no code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from configs.checking import UserError

# Group -> name -> the values that a YAML file of that name would have.
NODES: dict[str, dict[str, dict[str, Any]]] = {"model": {}, "regularizer": {}}
SCHEDULES: list[str] = []


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


def check_name(what: str, name: str, taken: Iterable[str]) -> None:
    """Refuse a name that is taken, or that no command line could hold."""
    if not re.fullmatch(r"[A-Za-z]\w*", name):
        raise UserError(f"{what} {name!r}: a name consists of letters, digits and _, and starts with a letter")
    if name in taken:
        raise UserError(f"{what} {name}: there is one of this name already; choose another")


def names_of(group: str) -> list[str]:
    """The names that were added to a configuration group."""
    return list(NODES.get(group, {}))


def further_choices(key: str) -> tuple[str, ...]:
    """What was added to the valid values of a key of the schema."""
    return tuple(SCHEDULES) if key == "schedule" else ()
