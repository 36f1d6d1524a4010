"""Every key of the configuration with its default, its valid values and its meaning: the text of `train.py --help`.

The tables of docs/CONFIGURE.md have the same entries (`scripts/pages.py`).
"""

from __future__ import annotations

import textwrap
from dataclasses import fields
from typing import Any, NamedTuple

from configs import schema
from configs.groups import choices, declared

GROUPS = ("model", "data", "recipe", "regularizer", "experiment", "sweep")

# Section -> (prefix of its keys on the command line, the part of the schema that declares them).
PARTS: dict[str, tuple[str, type]] = {
    "run": ("", schema.RunOptions),
    "model": ("model.", schema.ModelConfig),
    "data": ("data.", schema.DataConfig),
    "recipe": ("recipe.", schema.RecipeConfig),
    "augment": ("recipe.augment.", schema.AugmentConfig),
    "layer": ("regularizer.NAME.", schema.LayerConfig),
    "tune": ("tune.", schema.TuneConfig),
    "declaration": ("", schema.RegularizerConfig),  # a regularizer's YAML file; no keys of the command line
}
OPTIONS = "regularizer."  # the prefix of what a regularizer declares itself
USAGE = """\
python train.py KEY=VALUE ...            one run
python train.py -m KEY=VALUE,VALUE ...   a grid
python train.py +sweep=NAME ...          a table or figure
Flags: -m, --multirun; --cfg job (the composed configuration), --info defaults; -sc install=bash; -h, --help.
plan=true prints what would run, estimate=true what it would cost.
A value with other characters than letters, digits and /-_.+ stands in quotes: "output_root='out ü'"."""


class Key(NamedTuple):
    """A key as help and documentation show it.

    Args:
        name: without the prefix of its section.
        default: its spelling on the command line.
        choices: the valid names, if it takes names.
        limits: the valid range of a number, or "".
        meaning: one phrase, with the unit.
    """

    name: str
    default: str
    choices: tuple[str, ...]
    limits: str
    meaning: str


def keys_of(section: str) -> list[Key]:
    """The keys of a section: `knobs`, `command`, `options` (of single regularizers) or one of PARTS.

    Raises:
        ValueError: for another section.
    """
    if section == "knobs":  # the short names of what is varied most, each with the place its default comes from
        knobs = [_key(schema.LayerConfig, knob, "the regularizer's") for knob in schema.LAYER_KNOBS]
        smoothing = declared("label_smoothing").options["label_smoothing"]
        knobs.append(_key_of("label_smoothing", "the regularizer's", smoothing))
        return knobs + [_key(schema.RecipeConfig, knob, "the recipe's") for knob in schema.RECIPE_KNOBS]
    if section == "command":  # what the root of the configuration has beside the options of a run
        inherited = {f.name for f in fields(schema.RunOptions)}
        return [_key(schema.Config, f.name) for f in fields(schema.Config) if f.metadata and f.name not in inherited]
    if section == "options":
        return [
            _key_of(f"{name}.{option}", key_text(of["default"]), of)
            for name in choices("regularizer")
            for option, of in declared(name).options.items()
        ]
    if section not in PARTS:
        raise ValueError(f"no section '{section}' of the configuration")
    part = PARTS[section][1]
    aside = ("name", "options") if section == "layer" else ()
    return [_key(part, f.name) for f in fields(part) if f.metadata and f.name not in aside]


def _key(part: type, name: str, default: str | None = None) -> Key:
    declaration = dict(next(f for f in fields(part) if f.name == name).metadata)
    return _key_of(name, key_text(getattr(part(), name)) if default is None else default, declaration)


def _key_of(name: str, default: str, declaration: dict[str, Any]) -> Key:
    least, most, above = (declaration.get(limit) for limit in ("least", "most", "above"))
    low = f"≥ {least:g}" if least is not None else f"> {above:g}" if above is not None else ""
    limits = ", ".join(filter(None, (low, "" if most is None else f"≤ {most:g}")))
    return Key(name, default, tuple(declaration.get("choices") or ()), limits, str(declaration.get("meaning", "")))


def key_text(value: Any) -> str:
    """A default as it would be written on the command line."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(key_text, value))}]"
    return "(by name)" if value == "???" else f"{value:g}" if isinstance(value, float) else str(value)


def help_text() -> str:
    """Usage, the names of every group, then the keys."""
    indent = " " * 15
    names = [textwrap.fill(", ".join(choices(group)), 104, initial_indent=f"  {group:12} ", subsequent_indent=indent)
             for group in GROUPS]  # fmt: skip
    parts = [USAGE, "Groups: GROUP=NAME (regularizer also [a,b]; a sweep is +sweep=NAME)\n" + "\n".join(names)]

    # The knobs first, then how a run is carried out, then every part of the configuration under its prefix.
    titles = {"Knobs": ["knobs"], "How it is run": ["run", "command"]}
    titles |= {prefix: [section] for section, (prefix, _) in PARTS.items() if prefix}
    titles[OPTIONS] = ["options"]
    for title, sections in titles.items():
        lines = [title]
        for key in (key for section in sections for key in keys_of(section)):
            valid = f" [{' | '.join(key.choices)}]" if key.choices else f" [{key.limits}]" if key.limits else ""
            lines.append(f"  {key.name:18} {key.meaning}{valid} (default: {key.default})")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)
