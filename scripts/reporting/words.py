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


def told(knob: str, value: Any) -> str:
    """A knob in words."""
    if knob == "groups":
        return f"group{'s' if len(value) > 1 else ''} {'+'.join(map(str, value))}"
    if knob == "skip":
        return "conv+skip" if value else "conv"
    if knob == "schedule":
        return {"linear": "linear schedule", "constant": "fixed keep_prob"}.get(value, value)
    return f"{ {'block_size': 'block'}.get(knob, knob) } {value:g}"
