"""The values of one regularizer on the command line: regularizer.dropblock.layer.keep_prob=0.8."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields

from configs.checking import UserError, nearest, one_of
from configs.plan import choices
from configs.regularizers import written_values
from configs.schema import InputConfig, LayerConfig, LossConfig, RegularizerConfig

PARTS = {"layer": LayerConfig, "input": InputConfig, "loss": LossConfig}
# What every layer has, whether its file names it or not; another knob that a file leaves out does not exist for it.
OF_EVERY_LAYER = (
    *("schedule_start", "schedule_end", "head_share"),
    *("group_divisor", "group_shares", "depth_rule", "options"),
)


def check_key(key: str) -> None:
    """Refuse a key that a regularizer does not have.

    Raises:
        UserError: one line, with the nearest key that there is.
    """
    _, name, *rest = key.split(".")
    one_of("regularizer", name, choices("regularizer"))
    if not rest:
        return
    part, *path = rest
    parts = [f.name for f in fields(RegularizerConfig)]
    if part not in parts:
        raise UserError(f"unknown key '{key}'{nearest(part, parts)}")
    known = [f.name for f in fields(PARTS[part])] if part in PARTS else []
    if path and path[0] not in known:
        raise UserError(f"unknown key '{key}'{nearest(path[0], known)}")
    own = (written_values(name) or {}).get(part) or {}
    if path and path[0] not in own and not (own and part == "layer" and path[0] in OF_EVERY_LAYER):
        raise UserError(f"{key}: {name} has no {path[0] if own else part}")


def with_plus(overrides: Sequence[str]) -> list[str]:
    """Overrides as Hydra takes them: with ++ (set or add) where it is not known whether a regularizer has the key.

    `+sweep=NAME` becomes `+table=NAME`, see `configs.tables.nodes`.
    """
    named = [re.sub(r"^\+\+?sweep=", "+table=", override) for override in overrides]
    return [f"++{override}" if _of_every_layer(override) else override for override in named]


def without_plus(overrides: Sequence[str]) -> list[str]:
    """The inverse of `with_plus` for the name of a sweep."""
    return [re.sub(r"^\+table=", "+sweep=", override) for override in overrides]


def _of_every_layer(override: str) -> bool:
    group, _, part, *path = [*override.partition("=")[0].split("."), "", ""]
    return (group, part) == ("regularizer", "layer") and path[0] in OF_EVERY_LAYER
