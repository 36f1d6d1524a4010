"""A network, a regularizer or a schedule from a Python script, without a change to the packages.

What is registered here is known by its name from then on, in this process: `plan_of("model=my_net")` and
`plan_of("regularizer=my_layer")` take it like any other. A plan holds the name and not the code: give changed code
another name, or its runs meet the old ones in their directory.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from configs.groups import SCHEDULES as OWN_SCHEDULES
from configs.groups import add, check_name, choices
from configs.plan import Plan
from configs.schema import ModelConfig
from data.batch_regularizers import BATCH_REGULARIZERS
from data.image_regularizers import IMAGE_REGULARIZERS
from dropblock import LAYERS, SCHEDULES, DropLayer, Place, Site
from dropblock.kinds import Kind, on_branches, on_maps
from dropblock.schedule import Schedule
from engine.tasks.losses import LOSSES
from models import MODELS
from models.outside import declared


def register_model(name: str, make: Callable[..., nn.Module], places: Sequence[Place] | None = None) -> None:
    """Make a network known as `model=NAME`.

    Args:
        name: letters, digits and _; it stands in run directories.
        make: a class or function with the argument `num_classes`, and of `in_channels`, `width`, `stem` those it wants;
            what else it takes is `model.options.KEY` of the configuration. Called after the seed is set.
        places: where layers may sit (`dropblock.Place`). None: at the `dropblock.Site` modules that the network has,
            or else at the known places of its family.

    Raises:
        ValueError: for a name that is taken, or if `make` has no argument `num_classes`.
    """
    signature = inspect.signature(make)
    if "num_classes" not in signature.parameters:
        raise ValueError(f"model {name}: its function or class needs an argument num_classes")

    def build(**shape: Any) -> nn.Module:
        return declared(make(**shape), shape["num_classes"], places)

    build.__signature__ = signature  # type: ignore[attr-defined]
    add("model", name, {"name": name, "zero_gamma": False}, [*choices("model"), *MODELS])
    MODELS[name] = build


def register_layer(
    name: str,
    layer: Callable[..., DropLayer],
    *,
    keep_prob: float,
    groups: Sequence[int | str] = (3, 4),
    skip: bool | None = None,
    schedule: str = "linear",
    group_divisor: float = 1.0,
    sits_at: str | Callable[[Site], bool] = "maps",
    label: str = "",
    colour: str | None = None,
    **options: Any,
) -> None:
    """Make a layer known as `regularizer=NAME`.

    Args:
        name: letters, digits and _; it stands in run directories.
        layer: a `dropblock.DropLayer`, or a function that returns one; called with `keep_prob=` and the options.
        keep_prob, groups, schedule, group_divisor: what `regularizer.NAME` has where nothing is asked for.
        skip: the same for shortcuts; None where they are no choice.
        sits_at: `maps` (wherever parts of feature maps may be dropped), `branches` (at the end of residual branches),
            or a function that says which sites it suits.
        label, colour: name and "#rrggbb" of its rows in reports; kept in the record of each run.
        options: its own knobs with their defaults. `block_size` is set by `block_size=7`, any other one by
            `regularizer.NAME.KEY=VALUE`.

    Raises:
        ValueError: for a name that is taken, an unknown `sits_at`, or another form of colour.
    """
    places: dict[str, Callable[[Site], bool]] = {"maps": on_maps, "branches": on_branches}
    if isinstance(sits_at, str) and sits_at not in places:
        raise ValueError(f"layer {name}: sits_at must be {' or '.join(places)} or a function, not '{sits_at}'")
    _check_colour(name, colour)

    # As in dropblock/kinds.py: the options of a layer are the keywords of its `make`.
    def make(site: Site, keep_prob: float, **values: Any) -> DropLayer:
        return layer(keep_prob=keep_prob, **values)

    parameters = list(inspect.signature(make).parameters.values())[:2]
    knobs = [inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=value) for key, value in options.items()]
    make.__signature__ = inspect.Signature([*parameters, *knobs])  # type: ignore[attr-defined]

    # What a YAML file in configs/regularizer would hold.
    values = {"name": name, "keep_prob": keep_prob, "groups": list(groups), "skip": skip, "schedule": schedule}
    values |= {"group_divisor": group_divisor, "block_size": options.pop("block_size", None)}
    own = {option: {"default": default} for option, default in options.items()}
    node = {"kind": "layer", "layer": values, "options": own, "label": label, "colour": colour}
    add("regularizer", name, node, [*choices("regularizer"), *LAYERS])
    LAYERS[name] = Kind(make, places[sits_at] if isinstance(sits_at, str) else sits_at)


def register_regularizer(
    name: str,
    kind: str,
    make: Callable[..., Any],
    *,
    tasks: Sequence[str] = ("classification",),
    label: str = "",
    colour: str | None = None,
    **options: Any,
) -> None:
    """Make a regularizer of any kind known as `regularizer=NAME`.

    Args:
        name: letters, digits and _; it stands in run directories.
        kind: `image`, `batch` or `loss`: see `data.image_regularizers`, `data.batch_regularizers` and
            `engine.tasks.losses` for what an instance does; or `layer`, see `register_layer`.
        make: a class, or a function that returns an instance; called with the options.
        tasks: those it suits.
        label, colour: name and "#rrggbb" of its rows in reports; kept in the record of each run.
        options: its options with their defaults, set by `regularizer.NAME.KEY=VALUE`; of a layer what `register_layer`
            takes as well.

    Raises:
        ValueError: for a name that is taken, an unknown kind, or another form of colour.
    """
    if kind == "layer":
        register_layer(name, make, label=label, colour=colour, **options)
        return
    registries = {"image": IMAGE_REGULARIZERS, "batch": BATCH_REGULARIZERS, "loss": LOSSES}
    if kind not in registries:
        raise ValueError(f"regularizer {name}: kind must be layer, {' or '.join(registries)}, not '{kind}'")
    _check_colour(name, colour)
    own = {option: {"default": default} for option, default in options.items()}
    node = {"kind": kind, "options": own, "tasks": list(tasks), "label": label, "colour": colour}
    add("regularizer", name, node, [*choices("regularizer"), *registries[kind]])
    registries[kind][name] = make


def _check_colour(name: str, colour: str | None) -> None:
    if colour is not None and not re.fullmatch("#[0-9a-fA-F]{6}", colour):
        raise ValueError(f"regularizer {name}: a colour is written #rrggbb, not '{colour}'")


def register_schedule(name: str, share: Callable[[float], float]) -> None:
    """Make a keep_prob schedule known as `schedule=NAME`.

    Args:
        name: letters, digits and _.
        share: progress of training in [0, 1] -> share of the drop rate in force then, in [0, 1]. `lambda t: t` is the
            paper's linear schedule.

    Raises:
        ValueError: for a name that is taken, or a share outside [0, 1].
    """
    check_name("schedule", name, SCHEDULES.keys() - OWN_SCHEDULES)
    for step in range(101):
        if not 0.0 <= share(step / 100) <= 1.0:
            raise ValueError(f"schedule {name}: a share must lie in [0, 1], not {share(step / 100)} at {step / 100}")
    if name not in OWN_SCHEDULES:
        OWN_SCHEDULES.append(name)
    SCHEDULES[name] = Schedule(lambda progress, start, end: share(progress))


def with_model(plan: Plan, make: Callable[..., nn.Module]) -> Plan:
    """The plan with a network of the user's, registered under the name of its class or function.

    Raises:
        ValueError: for a callable without a name, or a plan whose weights or options would be for another network.
    """
    if not hasattr(make, "__name__"):
        raise ValueError(
            "model: give a class or a function with a name, such as `def net(num_classes, in_channels): ...`"
        )
    if plan.model.pretrained is not None or plan.model.options:
        raise ValueError("model: the plan's model.pretrained and model.options are for the network that it names")
    register_model(make.__name__, make)
    taken = inspect.signature(make).parameters
    width = plan.model.width if "width" in taken else None
    stem = plan.model.stem if "stem" in taken else None
    return replace(plan, model=ModelConfig(make.__name__, width=width, stem=stem, zero_gamma=False))
