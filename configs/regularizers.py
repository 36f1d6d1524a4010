"""The chosen regularizers: their layers with the user's knobs, and what they change of the input and the loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace
from functools import cache
from typing import Any, TypeVar

from omegaconf import DictConfig

from configs.checking import UserError, check, load_yaml, one_of
from configs.plan import CONFIGS, choices
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


def refuse_unchosen(regularizers: DictConfig) -> None:
    """Refuse values of a regularizer that no group brought into the composed configuration.

    Raises:
        UserError: one line.
    """
    for name, values in regularizers.items():
        one_of("regularizer", str(name), choices("regularizer"))
        if as_written(str(name)).label and not values.get("label"):  # a value of its own is all that there is
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
    return f"regularizer.{name}: {name} is not chosen; add it, such as regularizer=[dropblock,{name}]"


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
            by = f" (of experiment={config.experiment}; {knob}=null drops it)" if of_experiment(config, knob) else ""
            notes.append(f"{knob}={value}{by} does not apply to {without(knob, layers, list(config.regularizer))}")
            if not grid:
                raise UserError(notes[-1])
        layers = [replace(layer, **{knob: value}) if layer in owners else layer for layer in layers]
    return [_complete(layer) for layer in layers], notes


def of_experiment(config: Config, knob: str) -> bool:
    """Whether a knob has its value from the experiment's file."""
    if config.experiment is None:
        return False
    return bool(load_yaml(CONFIGS / "experiment" / f"{config.experiment}.yaml").get(knob) == getattr(config, knob))


def without(knob: str, layers: list[LayerConfig], names: list[str]) -> str:
    """What of the choice has no use for a knob."""
    if layers and knob in SCHEDULE_LIMITS.values():
        return " ".join(f"schedule={layer.schedule}" for layer in layers)
    if layers and knob == "head_share":
        return " ".join(f"groups={layer.groups}" for layer in layers).replace("'", "")
    return f"regularizer={','.join(names)}"


def _has(layer: LayerConfig, knob: str) -> bool:
    """Whether a layer has a knob: it is not null, or it is the one that its schedule or its groups need."""
    if knob in SCHEDULE_LIMITS.values():
        return SCHEDULE_LIMITS.get(str(layer.schedule)) == knob
    if knob == "head_share":
        return "head" in (layer.groups or [])
    return getattr(layer, knob) is not None


def _complete(layer: LayerConfig) -> LayerConfig:
    if layer.keep_prob is None or layer.groups is None or layer.schedule is None:
        raise UserError(f"regularizer {layer.name}: its layer needs keep_prob, groups and schedule")
    limit = SCHEDULE_LIMITS.get(layer.schedule)
    if limit is not None and getattr(layer, limit) is None:
        raise UserError(f"schedule={layer.schedule}: needs {limit}, such as {limit}=0.5 for half of the run")
    for knob, unset in (*((knob, None) for knob in sorted(SCHEDULE_LIMITS.values())), ("head_share", 1.0)):
        if getattr(layer, knob) != unset and not _has(layer, knob):
            raise UserError(f"{knob}={getattr(layer, knob)} does not apply to {without(knob, [layer], [layer.name])}")
    return replace(layer, groups=sorted(set(layer.groups), key=lambda group: (isinstance(group, str), group)))
