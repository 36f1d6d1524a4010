"""The tables of docs/CONFIGURE.md: every key from the schema, every name of a group from the head of its YAML file."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Any

from configs import schema
from configs.plan import CONFIGS, choices
from scripts.reporting.tables import markdown_table

SECTIONS: dict[str, tuple[str, type]] = {
    "model": ("model.", schema.ModelConfig),
    "data": ("data.", schema.DataConfig),
    "recipe": ("recipe.", schema.RecipeConfig),
    "augment": ("recipe.augment.", schema.AugmentConfig),
    "layer": ("regularizer.NAME.layer.", schema.LayerConfig),
    "input": ("regularizer.NAME.input.", schema.InputConfig),
    "loss": ("regularizer.NAME.loss.", schema.LossConfig),
    "run": ("", schema.RunOptions),
}
ESCAPED = str.maketrans({"*": "\\*", "<": "&lt;"})  # and the table escapes "|"


def text_of(name: str) -> str:
    """The table of this name: `knobs`, `command`, `names/GROUP`, or a key of SECTIONS.

    Raises:
        ValueError: for another name.
    """
    if name.startswith("names/"):
        return names_table(name.removeprefix("names/"))
    if name == "knobs":
        return knobs_table()
    if name == "command":
        own = {f.name for f in fields(schema.Config)} - {f.name for f in fields(schema.RunOptions)}
        return table([row("", schema.Config, f.name) for f in fields(schema.Config) if f.name in own and f.metadata])
    if name in SECTIONS:
        prefix, part = SECTIONS[name]
        return table([row(prefix, part, f.name) for f in fields(part) if f.metadata])
    raise ValueError(f"no configuration table '{name}'")


def row(prefix: str, part: type, name: str, default: str | None = None) -> list[str]:
    """One key: its name, its default, its valid values, its meaning."""
    declared = {f.name: f for f in fields(part)}[name]
    metadata = dict(declared.metadata)
    return [
        f"`{prefix}{name}`",
        shown(getattr(part(), name)) if default is None else default,
        valid(metadata),
        str(metadata["meaning"]).translate(ESCAPED),
    ]


def valid(metadata: dict[str, Any]) -> str:
    """The valid values of a key: names, or a range."""
    if metadata["choices"]:
        return ", ".join(metadata["choices"])
    least, most, above = metadata["least"], metadata["most"], metadata["above"]
    low = f"≥ {least:g}" if least is not None else f"> {above:g}" if above is not None else ""
    return f"{low}{', ' if low and most is not None else ''}{f'≤ {most:g}' if most is not None else ''}"


def shown(value: Any) -> str:
    """A default as it would be written on the command line."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return "(by name)" if value == "???" else f"{value:g}" if isinstance(value, float) else str(value)


def knobs_table() -> str:
    """The short names of what is varied most, and where each one stands."""
    rows = [row("", schema.LayerConfig, knob, "the regularizer's") for knob in schema.LAYER_KNOBS]
    rows.append(row("", schema.LossConfig, "label_smoothing", "the regularizer's"))
    rows += [row("", schema.RecipeConfig, knob, "the recipe's") for knob in schema.RECIPE_KNOBS]
    return table(rows)


def names_table(group: str) -> str:
    """The names of a group, each with the first sentence of its YAML file."""
    return markdown_table(
        [f"`{group}=`", "what it is"], [[f"`{name}`", opening(group, name)] for name in choices(group)], left=2
    )


def opening(group: str, name: str) -> str:
    """The first sentence of the comment that a YAML file opens with."""
    lines = (CONFIGS / group / f"{name}.yaml").read_text().splitlines()
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        if not line.startswith(("# @package", "#   ")):
            comment.append(line.removeprefix("#").strip())
    sentence = re.split(r"(?<!\bal)\. +(?=[A-Za-z\d])", " ".join(comment))[0]
    return sentence.rstrip(".:").translate(ESCAPED)


def table(rows: list[list[str]]) -> str:
    return markdown_table(["key", "default", "valid", "meaning"], rows, left=4)
