"""The text of `python train.py --help`: every key with its default, its valid values and its meaning."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from configs.plan import choices
from configs.schema import (
    LAYER_KNOBS,
    RECIPE_KNOBS,
    AugmentConfig,
    Config,
    DataConfig,
    InputConfig,
    LayerConfig,
    LossConfig,
    ModelConfig,
    RecipeConfig,
    RunOptions,
)

GROUPS = ("model", "data", "recipe", "regularizer", "experiment", "sweep")


def help_text() -> str:
    """Usage, the names of every group, then the keys."""
    names = "\n".join(f"  {group:12} {_wrapped(', '.join(choices(group)))}" for group in GROUPS)
    own = {f.name for f in fields(Config)} - {f.name for f in fields(RunOptions)}
    knobs = [
        *(_line(knob, LayerConfig, "as the regularizer says") for knob in LAYER_KNOBS),
        _line("label_smoothing", LossConfig, "as the regularizer says"),
        *(_line(knob, RecipeConfig, "as the recipe says") for knob in RECIPE_KNOBS),
    ]
    run = [*(_line(f.name, RunOptions) for f in fields(RunOptions))]
    run += [_line(f.name, Config) for f in fields(Config) if f.name in own and f.metadata]
    sections = {
        "Groups: GROUP=NAME (regularizer also [a,b]; a sweep is +sweep=NAME)": [names],
        "Knobs": knobs,
        "How it is run": run,
        "model.": [_line(f.name, ModelConfig) for f in fields(ModelConfig)],
        "data.": [_line(f.name, DataConfig) for f in fields(DataConfig)],
        "recipe.": [_line(f.name, RecipeConfig) for f in fields(RecipeConfig) if f.metadata],
        "recipe.augment.": [_line(f.name, AugmentConfig) for f in fields(AugmentConfig)],
        "regularizer.NAME.layer.": [_line(f.name, LayerConfig) for f in fields(LayerConfig)],
        "regularizer.NAME.input.": [_line(f.name, InputConfig) for f in fields(InputConfig)],
        "regularizer.NAME.loss.": [_line(f.name, LossConfig) for f in fields(LossConfig)],
    }
    usage = (
        "python train.py KEY=VALUE ...            one run\n"
        "python train.py -m KEY=VALUE,VALUE ...   a grid\n"
        "python train.py +sweep=NAME ...          a table or figure\n"
        "Flags: -m, --multirun; --cfg job (the composed configuration); -h, --help. plan=true prints what would run.\n"
        "A value with other characters than letters, digits and /-_.+ stands in quotes: \"output_root='out ü'\"."
    )
    return "\n\n".join([usage, *(f"{title}\n" + "\n".join(lines) for title, lines in sections.items())])


def _line(name: str, schema: type, default: str | None = None) -> str:
    declared = {f.name: f for f in fields(schema)}[name]
    metadata: dict[str, Any] = dict(declared.metadata)
    value = default or _shown(getattr(schema(), name))
    values = f" [{' | '.join(metadata['choices'])}]" if metadata["choices"] else ""
    return f"  {name:18} {metadata['meaning']}{values} (default: {value})"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return "required" if value == "???" else str(value)


def _wrapped(text: str, width: int = 104, indent: int = 15) -> str:
    lines = [""]
    for word in text.split(" "):
        if len(lines[-1]) + len(word) >= width - indent:
            lines.append("")
        lines[-1] += f"{word} "
    return ("\n" + " " * indent).join(line.rstrip() for line in lines)
