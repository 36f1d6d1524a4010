"""The chosen regularizers: their layers with the user's knobs, and what they change of the input and the loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from functools import cache
from typing import Any, TypeVar

from configs.checking import UserError, check, load_yaml
from configs.plan import CONFIGS
from configs.registered import NODES
from configs.schema import LAYER_KNOBS, SCHEDULE_LIMITS, Config, InputConfig, LayerConfig, LossConfig, RegularizerConfig

T = TypeVar("T", InputConfig, LossConfig)


@cache
def as_written(name: str) -> RegularizerConfig:
    """A regularizer as its YAML file, or the script that registered it, has it; an empty one for any other name."""
    if name in NODES["regularizer"]:
        return check(NODES["regularizer"][name], RegularizerConfig)
    path = CONFIGS / "regularizer" / f"{name}.yaml"
    return check(load_yaml(path), RegularizerConfig) if path.exists() else RegularizerConfig()


def styles_of(names: Iterable[str]) -> dict[str, dict[str, str | None]]:
    """Label and colour of each regularizer, for the record of a run: a later process may not know those of a script."""
    return {name: {"label": as_written(name).label, "colour": as_written(name).colour} for name in names}


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
        for part, knobs in (("layer", LAYER_KNOBS), ("loss", ("label_smoothing",))):
            for knob in knobs:
                own = getattr(getattr(as_written(name), part), knob, None)
                nested, top = getattr(getattr(regularizer, part), knob, None), getattr(config, knob)
                if nested != own and top is not None and top != nested:
                    key = f"regularizer.{name}.{part}.{knob}"
                    raise UserError(f"{key}={nested}: {knob}={top} is set as well, and wins; write {knob}={nested}")


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
    layers = [regularizer.layer for regularizer in config.regularizer.values() if regularizer.layer is not None]
    notes: list[str] = []
    for knob in LAYER_KNOBS:
        value = getattr(config, knob)
        if value is None:
            continue
        owners = [layer for layer in layers if _has(layer, knob)]
        if len(owners) > 1:
            names = " and ".join(layer.name for layer in owners)
            raise UserError(f"{knob}={value}: {names} both have it; write regularizer.NAME.layer.{knob}={value}")
        if not owners:
            schedules = [f"schedule={layer.schedule}" for layer in layers if knob in SCHEDULE_LIMITS.values()]
            chosen = " ".join(schedules) or f"regularizer={','.join(config.regularizer)}"
            notes.append(f"{knob}={value} does not apply to {chosen}")
            if not grid:
                raise UserError(notes[-1])
        layers = [replace(layer, **{knob: value}) if layer in owners else layer for layer in layers]
    return [_complete(layer) for layer in layers], notes


def _has(layer: LayerConfig, knob: str) -> bool:
    """Whether a layer has a knob: it is not null, or it is the one that its schedule needs."""
    if knob in SCHEDULE_LIMITS.values():
        return SCHEDULE_LIMITS.get(str(layer.schedule)) == knob
    return getattr(layer, knob) is not None


def _complete(layer: LayerConfig) -> LayerConfig:
    if layer.keep_prob is None or layer.groups is None or layer.schedule is None:
        raise UserError(f"regularizer {layer.name}: its layer needs keep_prob, groups and schedule")
    limit = SCHEDULE_LIMITS.get(layer.schedule)
    if limit is not None and getattr(layer, limit) is None:
        raise UserError(f"schedule={layer.schedule}: needs {limit}, such as {limit}=0.5 for half of the run")
    return replace(layer, groups=sorted(set(layer.groups), key=lambda group: (isinstance(group, str), group)))
