"""Regularizers and their knobs in words."""

from __future__ import annotations

from typing import Any

METHODS = {
    "none": "no regularizer",
    "dropout": "dropout",
    "spatial_dropout": "SpatialDropout",
    "drop_path": "DropPath",
    "stochastic_depth": "stochastic depth",
    "drop_connect": "DropConnect",
    "cutout": "Cutout",
    "autoaugment": "AutoAugment",
    "label_smoothing": "label smoothing",
    "dropblock": "DropBlock",
}
KNOBS = ("keep_prob", "block_size", "groups", "skip", "schedule")
ALWAYS_TOLD = ("keep_prob", "block_size")  # the others where they tell rows apart


def told(name: str, value: Any) -> str:
    """A value of a regularizer in words."""
    if name == "groups":
        return f"group{'s' if len(value) > 1 else ''} {'+'.join(map(str, value))}"
    if name == "skip":
        return "conv+skip" if value else "conv"
    if name == "schedule":
        return {"linear": "linear schedule", "constant": "fixed keep_prob"}.get(value, value)
    short = {"block_size": "block"}.get(name, name.replace("label_", "label "))
    return f"{short} {value:g}" if isinstance(value, int | float) else f"{short} {value}"
