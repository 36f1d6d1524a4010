"""The chosen regularizers: their layers with the user's knobs, and what they change of the input and the loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from functools import cache
from typing import Any, TypeVar

from omegaconf import DictConfig

from configs import tables
from configs.checking import UserError, check, load_yaml, one_of
from configs.plan import CONFIGS, choices
from configs.registered import NODES
from configs.schema import LAYER_KNOBS, SCHEDULE_LIMITS, Config, InputConfig, LayerConfig, LossConfig, RegularizerConfig

# Values of a layer that its schedule or its groups may have no use for, and what they are then.
IDLE_WITHOUT: dict[str, Any] = {"schedule_start": None, "schedule_end": None, "head_share": 1.0}

T = TypeVar("T", InputConfig, LossConfig)


@cache
def as_written(name: str) -> RegularizerConfig:
    """A regularizer as its YAML file, or the script that registered it, has it; an empty one for any other name."""
    values = written_values(name)
    return RegularizerConfig() if values is None else check(values, RegularizerConfig)


def written_values(name: str) -> dict[str, Any] | None:
    """What the file of a regularizer, or the script that registered it, says; None where there is neither."""
    path = CONFIGS / "regularizer" / f"{name}.yaml"
    return NODES["regularizer"].get(name) or (load_yaml(path) if path.exists() else None)


def styles_of(names: Iterable[str]) -> dict[str, dict[str, str | None]]:
    """Label and colour of each regularizer, for the record of a run: a later process may not know those of a script."""
    return {name: {"label": as_written(name).label, "colour": as_written(name).colour} for name in names}


def refuse_unchosen(regularizers: DictConfig) -> None:
    """Refuse values of a regularizer that no group brought into the composed configuration.

    Raises:
        UserError: one line.
    """
    for name, values in regularizers.items():
        one_of("regularizer", str(name), choices("regularizer"))
        written = written_values(str(name)) or {}
        if values is None or not written.keys() <= set(values):  # what is there is a value of its own
            raise UserError(not_chosen(str(name)))


def check_chosen(config: Config) -> None:
    """Refuse a choice of regularizers that means nothing, and nested values that a top-level knob would hide.

    Raises:
        UserError: one line.
    """
    names = list(config.regularizer)
    if not names:
        raise UserError("regularizer=[]: choose at least one; 'none' is the baseline")
    if "none" in names and len(names) > 1:
        raise UserError(f"regularizer=[{','.join(names)}]: 'none' stands alone")
    for name, regularizer in config.regularizer.items():
        if as_written(name).layer is not None and regularizer.layer is None:
            raise UserError(f"regularizer.{name}.layer=null: leaves nothing of it; the baseline is regularizer=none")
        for part, knobs in (("layer", LAYER_KNOBS), ("loss", ("label_smoothing",))):
            for knob in knobs:
                own = getattr(getattr(as_written(name), part), knob, None)
                nested, top = getattr(getattr(regularizer, part), knob, None), getattr(config, knob)
                if nested != own and top is not None and top != nested:
                    key = f"regularizer.{name}.{part}.{knob}"
                    raise UserError(f"{key}={nested}: {knob}={top} is set as well, and wins; write {knob}={nested}")


def not_chosen(name: str) -> str:
    """The message about values of a regularizer that the run does not have."""
    return f"regularizer.{name}: {name} is not chosen, or not whole; choose it by regularizer=[...,{name}]"


def merged(regularizers: dict[str, RegularizerConfig], part: str, schema: type[T]) -> T:
    """What the regularizers change of one part (`input`, `loss`), field by field; two may not set the same field."""
    values: dict[str, Any] = {}
    setter: dict[str, str] = {}
    for name, regularizer in regularizers.items():
        for f in fields(schema):
            value = getattr(getattr(regularizer, part), f.name, None)
            if value is None:
                continue
            if f.name in values:
                raise UserError(f"regularizer=[{setter[f.name]},{name}]: both set the {f.name}; choose one of them")
            values[f.name], setter[f.name] = value, name
    return schema(**values)


def layers_of(config: Config, grid: bool) -> tuple[list[LayerConfig], list[str]]:
    """The layers with the user's knobs, each given to the one layer that has it, every value decided.

    A knob that none has is refused (single run) or reported (grid); one that several have is refused.
    """
    layers = {name: of.layer for name, of in config.regularizer.items() if of.layer is not None}
    notes: list[str] = []
    for knob in LAYER_KNOBS:
        value = getattr(config, knob)
        if value is None:
            continue
        owners = {name: layer for name, layer in layers.items() if _has(layer, knob)}
        if len(owners) > 1:
            names = " and ".join(layer.name for layer in owners.values())
            raise UserError(f"{knob}={value}: {names} both have it; write regularizer.NAME.layer.{knob}={value}")
        if not owners:
            by = f" (of experiment={config.experiment}; {knob}=null drops it)" if of_experiment(config, knob) else ""
            notes.append(f"{knob}={value}{by} does not apply to {without(knob, layers, config.regularizer)}")
            if not grid:
                raise UserError(notes[-1])
        layers |= {name: replace(layer, **{knob: value}) for name, layer in owners.items()}
    return [_complete(_without_idle(name, layer, grid, notes)) for name, layer in layers.items()], notes


def of_experiment(config: Config, knob: str) -> bool:
    """Whether a knob has its value from the experiment's file."""
    if config.experiment is None:
        return False
    return bool(tables.rows()[config.experiment].get(knob) == getattr(config, knob))


def without(knob: str, layers: Mapping[str, LayerConfig], names: Iterable[str]) -> str:
    """What of the choice has no use for a knob."""
    if layers and knob in SCHEDULE_LIMITS.values():
        return " ".join(f"schedule={layer.schedule}" for layer in layers.values())
    if layers and knob == "head_share":
        return " ".join(f"groups={layer.groups}" for layer in layers.values()).replace("'", "")
    return f"regularizer={','.join(names)}"


def _has(layer: LayerConfig, knob: str) -> bool:
    """Whether a layer has a knob: it is not null, or it is the one that its schedule or its groups need."""
    if knob in SCHEDULE_LIMITS.values():
        return SCHEDULE_LIMITS.get(str(layer.schedule)) == knob
    if knob == "head_share":
        return "head" in (layer.groups or [])
    return getattr(layer, knob) is not None


def _without_idle(name: str, layer: LayerConfig, grid: bool, notes: list[str]) -> LayerConfig:
    """A layer without the values that its schedule or its groups have no use for.

    One that the regularizer's own file has is reported; one that the user wrote is, in a single run, refused.
    """
    own = as_written(name).layer
    for knob, unset in IDLE_WITHOUT.items():
        value = getattr(layer, knob)
        if value == unset or _has(layer, knob):
            continue
        notes.append(
            f"regularizer.{name}.layer.{knob}={value} does not apply to {without(knob, {name: layer}, [name])}"
        )
        if not grid and (own is None or value != getattr(own, knob)):
            raise UserError(notes[-1])
        layer = replace(layer, **{knob: unset})
    return layer


def _complete(layer: LayerConfig) -> LayerConfig:
    if layer.keep_prob is None or layer.groups is None or layer.schedule is None:
        raise UserError(f"regularizer {layer.name}: its layer needs keep_prob, groups and schedule")
    limit = SCHEDULE_LIMITS.get(layer.schedule)
    if limit is not None and getattr(layer, limit) is None:
        raise UserError(f"schedule={layer.schedule}: needs {limit}, such as {limit}=0.5 for half of the run")
    return replace(layer, groups=sorted(set(layer.groups), key=lambda group: (isinstance(group, str), group)))
