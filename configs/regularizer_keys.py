"""The values of one regularizer on the command line: regularizer.dropblock.layer.keep_prob=0.8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from configs.checking import UserError, load_yaml, nearest, one_of
from configs.plan import CONFIGS, choices
from configs.registered import NODES
from configs.schema import InputConfig, LayerConfig, LossConfig, RegularizerConfig

PARTS = {"layer": LayerConfig, "input": InputConfig, "loss": LossConfig}


def check_key(key: str) -> None:
    """Refuse a key that no regularizer has.

    Raises:
        UserError: one line with the nearest one that there is.
    """
    _, name, *rest = key.split(".")
    one_of("regularizer", name, choices("regularizer"))
    parts = {f.name: PARTS.get(f.name) for f in fields(RegularizerConfig)}
    schema = parts.get(rest[0]) if rest else None
    if rest and rest[0] not in parts:
        raise UserError(f"unknown key '{key}'{nearest(rest[0], parts)}")
    own = [f.name for f in fields(schema)] if schema else []
    if len(rest) > 1 and rest[1] not in own:
        raise UserError(f"unknown key '{key}'{nearest(rest[1], own)}")


def with_plus(overrides: Sequence[str]) -> list[str]:
    """Overrides as Hydra takes them: with a + where the file of a regularizer leaves a key of the schema out."""
    return [f"+{override}" if _left_out(override) else override for override in overrides]


def _left_out(override: str) -> bool:
    key, _, _ = override.partition("=")
    if not key.startswith("regularizer.") or key.count(".") < 2:
        return False
    name, *path = key.split(".")[1:]
    written = CONFIGS / "regularizer" / f"{name}.yaml"
    if name not in NODES["regularizer"] and not written.exists():
        return False
    values = NODES["regularizer"].get(name) or load_yaml(written)
    for part in path:
        if not isinstance(values, dict) or part not in values:
            return True
        values = values[part]
    return False
