"""From the composed configuration to the plan: every `null` decided, what does not apply left out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from configs import tables
from configs.checking import UserError, check, one_of
from configs.groups import choices, declared, in_order, named, option_of
from configs.paper import PaperConfig
from configs.plan import LONGEST_FOLDER, OWN_DATA, Plan, Runtime, own_title, revision_of, shortened
from configs.ranges import check_values
from configs.schema import (
    HEADLINES,
    LAYER_KNOBS,
    RECIPE_KNOBS,
    SCHEDULE_LIMITS,
    Config,
    DataConfig,
    LayerConfig,
    MethodConfig,
    ModelConfig,
    RecipeConfig,
    RunOptions,
)

KNOBS = (*LAYER_KNOBS, "label_smoothing")  # of regularizers, at the top of the configuration
SHORT_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}  # of precisions
TIMES_OF = {"step": ("milestones",), "exponential": ("decay_epochs",)}  # what else of a recipe is counted in epochs
# Values of a layer that its schedule or its groups may not need, and what they are then.
IDLE_WITHOUT: dict[str, Any] = {"schedule_start": None, "schedule_end": None, "head_share": 1.0}

Given = Mapping[str, Mapping[str, Any]]  # regularizer -> the values that the user gave to it alone


def resolve_composed(composed: DictConfig, overrides: Sequence[str] = (), grid: bool = False) -> Plan:
    """`resolve` what Hydra composed of some overrides; the plan keeps these, and the notes.

    groups=3, epochs=1e1 and recipe.precision=bf16 are read as they are meant.
    """
    config = composed.copy()
    if isinstance(config.groups, int | str):
        config.groups = [config.groups]
    for key in ("epochs", "batch_size", "block_size", "seed", "log_every", "checkpoint_every"):
        if isinstance(config[key], float) and config[key].is_integer():
            config[key] = int(config[key])
    if config.recipe.precision in SHORT_NAMES:
        config.recipe.precision = SHORT_NAMES[config.recipe.precision]
    plan, notes = resolve(check(config, Config, takes_grid=True), grid)
    return plan.made_by(overrides, notes)


def resolve(config: Config, grid: bool = False) -> tuple[Plan, list[str]]:
    """Decide every `null`, check every value, drop what does not apply.

    Args:
        config: the composed and merged configuration.
        grid: True for a job of a grid, where a knob that the regularizer ignores is reported, not refused.

    Returns:
        the plan, and notes for the user.

    Raises:
        UserError: one line that names the key.
    """
    if grid and config.run_dir:
        raise UserError(f"run_dir={config.run_dir}: all runs of a grid would share this directory; omit it")
    check_run_dir(config.run_dir)
    row = tables.rows()[config.experiment] if config.experiment else {}
    if row.get("model.pretrained") == "???" and config.model.pretrained is None:
        raise UserError(f"experiment={config.experiment} starts from ImageNet weights: give model.pretrained=FILE")

    given = _chosen(config.regularizer)
    knobs = {knob: getattr(config, knob) for knob in KNOBS}
    layers, methods, notes = _regularizers(given, knobs, row, config.experiment, grid)
    run_dir = None if config.run_dir is None else os.path.expanduser(config.run_dir)
    paths = {"output_root": os.path.expanduser(config.output_root), "run_dir": run_dir}
    plan = Plan(
        model=_model(config),
        data=_data(config.data),
        recipe=_recipe(config, notes),
        regularizer=list(given),
        layer=layers[0] if layers else None,
        companions=layers[1:],
        methods=methods,
        headline=_headline(config),
        seed=config.seed,
        experiment=config.experiment,
        pilot=config.pilot,
        runtime=Runtime(
            **{f.name: getattr(config, f.name) for f in fields(RunOptions)} | paths,
            data_root=config.data.root,
            download=config.data.download,
        ),
    )
    check_values(plan)
    plan = replace(plan, paper=_paper(config.paper, plan, row, notes))
    return replace(plan, revision=revision_of(plan)), notes


def check_run_dir(place: str | None) -> None:
    """Refuse a directory that is no run's: files would be mixed in, and fresh=true would move all of it.

    Raises:
        UserError: for the root, the home directory, and one with other files than those of a run.
    """
    if place is None:
        return
    path = Path(os.path.expanduser(place)).absolute()
    if path.resolve() in (Path(path.anchor), Path(os.path.expanduser("~")).resolve()):
        raise UserError(f"run_dir={place}: a run needs a directory of its own")
    is_run = any((path / name).exists() for name in ("status.json", "plan.yaml"))
    if is_run or not path.is_dir():
        return
    # A process that was killed may have left the lock, or a file being written, and nothing else.
    foreign = [child.name for child in path.iterdir() if child.name != ".lock" and ".tmp." not in child.name]
    if foreign:
        raise UserError(f"run_dir={place}: not a run, it holds {min(foreign)}; name an empty or a new directory")


def _chosen(regularizer: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The chosen regularizers in the order in which they act, each with the values given to it alone."""
    for name, values in regularizer.items():
        one_of("regularizer", name, choices("regularizer"))
        if not values or "kind" not in values:  # its file was not composed: only values of it are there
            raise UserError(f"regularizer.{name}: {name} is not chosen; choose it by regularizer=[...,{name}]")
    if not regularizer:
        raise UserError("regularizer=[]: choose at least one; 'none' is the baseline")
    if "none" in regularizer and len(regularizer) > 1:
        raise UserError(f"regularizer=[{','.join(regularizer)}]: 'none' stands alone")
    return {name: dict(regularizer[name].get("given") or {}) for name in in_order(regularizer)}


def _regularizers(
    given: Given, knobs: Mapping[str, Any], row: tables.Row, experiment: str | None, grid: bool
) -> tuple[list[LayerConfig], list[MethodConfig], list[str]]:
    """The layers and methods of the chosen regularizers, every value decided, and notes for the user.

    Args:
        given: the chosen ones with the values given to each alone.
        knobs: the short names at the top of the configuration, null for "as the regularizer says".
        row, experiment: what the experiment sets, and its name; a message says where a knob comes from.
        grid: a knob that none of them has is reported instead of refused.
    """
    notes: list[str] = []
    layers: dict[str, LayerConfig] = {}
    methods: list[MethodConfig] = []
    # Each as its file declares it, with the values given to it alone.
    for name, values in given.items():
        of = declared(name)
        for knob, value in values.items():
            top = knobs.get(knob)
            if top is not None and value != top:
                raise UserError(
                    f"regularizer.{name}.{knob}={value}: {knob}={top} is set as well; leave one of the two out"
                )
        values = {knob: value for knob, value in values.items() if value is not None}  # null: as the file says
        options = {option: values.get(option, declaration["default"]) for option, declaration in of.options.items()}
        # null in the file: as the class has it, and not in the plan, so that a new option renames no run.
        options = {k: v for k, v in options.items() if v is not None or "meaning" not in of.options[k]}
        for option, value in options.items():  # 1 and 1.0 are one run
            if isinstance(of.options[option]["default"], float) and type(value) is int:
                options[option] = float(value)
        if of.layer is not None:
            own_knobs = {knob: value for knob, value in values.items() if knob not in of.options}
            layers[name] = _layer(name, {**asdict(of.layer), **own_knobs, "options": options})
        elif of.kind != "none":
            methods.append(MethodConfig(name, of.kind, options))

    # A short name goes to the one layer that has it. Label smoothing needs no regularizer of that name.
    for knob in LAYER_KNOBS:
        value = knobs[knob]
        if value is None:
            continue
        owners = {name: layer for name, layer in layers.items() if _has(layer, knob)}
        if len(owners) > 1:
            names = " and ".join(layer.name for layer in owners.values())
            raise UserError(f"{knob}={value}: {names} both have it; write regularizer.NAME.{knob}={value}")
        if not owners:
            by = f" (of experiment={experiment}; {knob}=null drops it)" if row.get(knob) == value else ""
            notes.append(f"{knob}={value}{by} does not apply to {_idle_with(knob, layers, given)}")
            if not grid:
                raise UserError(notes[-1])
        layers |= {name: replace(layer, **{knob: value}) for name, layer in owners.items()}
    if knobs["label_smoothing"] is not None:
        methods = [method for method in methods if method.name != "label_smoothing"]
    if knobs["label_smoothing"]:
        methods.append(MethodConfig("label_smoothing", "loss", {"label_smoothing": knobs["label_smoothing"]}))

    # A value that the schedule or the groups do not need is dropped: reported if the file has it, else refused.
    for name, layer in layers.items():
        for knob, unset in IDLE_WITHOUT.items():
            value = getattr(layer, knob)
            if value == unset or _has(layer, knob):
                continue
            without = _idle_with(knob, {name: layer}, [name])
            notes.append(f"regularizer.{name}.{knob}={value} does not apply to {without}")
            if not grid and value != getattr(declared(name).layer, knob):
                raise UserError(notes[-1])
            layer = replace(layer, **{knob: unset})
        if layer.keep_prob is None or layer.groups is None or layer.schedule is None:
            raise UserError(f"regularizer {name}: its layer needs keep_prob, groups and schedule")
        limit = SCHEDULE_LIMITS.get(layer.schedule)
        if limit is not None and getattr(layer, limit) is None:
            raise UserError(f"schedule={layer.schedule}: needs {limit}, such as {limit}=0.5 for half of the run")
        numbers_first = sorted(set(layer.groups), key=lambda group: (isinstance(group, str), group))
        layers[name] = replace(layer, groups=numbers_first)
    return list(layers.values()), methods, notes


def _layer(name: str, values: dict[str, Any]) -> LayerConfig:
    """A layer with its values checked; an error names the key as it is typed."""
    try:
        return check(values, LayerConfig)
    except UserError as error:
        raise UserError(f"regularizer.{name}.{error}") from None


def _has(layer: LayerConfig, knob: str) -> bool:
    """True for a knob that the layer has: one that is not null, or that its schedule or its groups need."""
    if knob in SCHEDULE_LIMITS.values():
        return SCHEDULE_LIMITS.get(str(layer.schedule)) == knob
    if knob == "head_share":
        return "head" in (layer.groups or [])
    return getattr(layer, knob) is not None


def _idle_with(knob: str, layers: Mapping[str, LayerConfig], names: Iterable[str]) -> str:
    """Name the choice that leaves a knob without effect, for a message."""
    if layers and knob in SCHEDULE_LIMITS.values():
        return " ".join(f"schedule={layer.schedule}" for layer in layers.values())
    if layers and knob == "head_share":
        return " ".join(f"groups={layer.groups}" for layer in layers.values()).replace("'", "")
    return f"regularizer={','.join(names)}"


def _headline(config: Config) -> str | None:
    """The metric that chooses; None for the task's own, so that naming it makes no other run."""
    known = HEADLINES.get(config.data.task, ())
    if config.headline is None or config.headline in known[:1]:
        return None
    one_of("headline", config.headline, known)
    return config.headline


def _model(config: Config) -> ModelConfig:
    """The network with its width and stem decided; a library's has no such choice."""
    model = config.model
    if model.library:
        for knob in ("width", "stem"):
            if getattr(model, knob) is not None:
                raise UserError(f"model.{knob}: the networks of {model.library} have no such choice; leave it out")
        return model
    stem = model.stem or ("small" if config.data.image_size <= 64 else "imagenet")
    return replace(model, width=config.data.model_width if model.width is None else model.width, stem=stem)


def _data(data: DataConfig) -> DataConfig:
    """The data set; one's own is named after its folder, so that two folders do not meet in one run directory."""
    if data.title is not None and not re.fullmatch(r"\w[\w.+-]*", data.title):
        raise UserError(f"data.title={data.title}: it becomes a directory; letters, digits and _ . + - only")
    if data.title is not None and len(data.title.encode()) > LONGEST_FOLDER:
        raise UserError(f"data.title={data.title[:20]}...: it becomes a directory; at most {LONGEST_FOLDER} bytes")
    if data.name not in OWN_DATA:
        return data
    if data.root is None:
        raise UserError(f"data={data.name}: name your folder by data.root=PATH")
    if data.title is not None:
        return data
    return replace(data, title=shortened(own_title(data.name, data.root), LONGEST_FOLDER))


def _recipe(config: Config, notes: list[str]) -> RecipeConfig:
    """The recipe with the user's knobs; a run of another length keeps the shape of its learning-rate curve.

    Times that the user wrote, other than the recipe's own, are in epochs whatever the length.
    """
    own = named("recipe", config.recipe.name)
    asked = {knob: getattr(config, knob) for knob in RECIPE_KNOBS if getattr(config, knob) is not None}
    recipe = replace(config.recipe, **asked)
    if recipe.epochs != own.epochs and own.epochs > 0:
        scale = recipe.epochs / own.epochs
        scaled: dict[str, Any] = {}
        for key in ("warmup_epochs", *TIMES_OF.get(recipe.lr_schedule, ())):
            value = getattr(recipe, key)
            if value and value == getattr(own, key):
                scaled[key] = [m * scale for m in value] if key == "milestones" else value * scale
        recipe = replace(recipe, **scaled)
        if scaled:
            notes.append(f"epochs={recipe.epochs}: {', '.join(scaled)} of the recipe scaled by {scale:.3g}")

    # A note for every value that another one leaves without effect, if it is not the recipe's own; and milestones.
    by_schedule = f"lr_schedule={recipe.lr_schedule}"
    idle = {
        "milestones": (recipe.lr_schedule != "step", by_schedule),
        "lr_decay": (recipe.lr_schedule not in ("step", "halving", "exponential"), by_schedule),
        "decay_epochs": (recipe.lr_schedule != "exponential", by_schedule),
        "warmup_from": (recipe.warmup_epochs == 0, "recipe.warmup_epochs=0"),
        "ema_warmup": (recipe.ema_decay is None, "recipe.ema_decay=null"),
        "nesterov": (recipe.optimizer != "sgd", f"recipe.optimizer={recipe.optimizer}"),
    }
    for name, (is_idle, why) in idle.items():
        value = getattr(recipe, name)
        if is_idle and value and (name == "milestones" or value != getattr(own, name)):
            notes.append(f"recipe.{name}={value} does nothing with {why}")
    if recipe.warmup_epochs >= recipe.epochs:
        warmup = f"recipe.warmup_epochs={recipe.warmup_epochs:g}"
        notes.append(f"{warmup}: the run of epochs={recipe.epochs} is all warm-up and never reaches lr={recipe.lr:g}")
    return recipe


def _paper(paper: PaperConfig, plan: Plan, row: tables.Row, notes: list[str]) -> PaperConfig:
    """The paper's numbers of an experiment; without them where the plan tries something else than its row says."""
    if not row or not (paper.metrics or paper.curve):
        return paper
    # What the row alone would come to, compared with the plan value by value.
    chosen = row.get("regularizer", plan.regularizer)
    chosen = chosen if isinstance(chosen, list) else [chosen]
    given: dict[str, dict[str, Any]] = {name: {} for name in in_order(chosen)}
    for key in row:
        if key.startswith("regularizer."):
            name, option = option_of(key)
            given[name][option] = row[key]
    layers, methods, _ = _regularizers(given, {knob: row.get(knob) for knob in KNOBS}, row, None, grid=True)
    theirs, ours = _flat(layers, methods), _flat(plan.layers, plan.methods)
    swept = ("keep_prob",) if paper.curve else ()
    changed = [
        f"{key}={ours.get(key)}" for key in {**ours, **theirs} if ours.get(key) != theirs.get(key) and key not in swept
    ]
    if sorted(chosen) != sorted(plan.regularizer):
        changed = [f"regularizer={','.join(plan.regularizer)}"]
    if not changed:
        return paper
    notes.append(f"{', '.join(changed)}: not the paper's {paper.place}, whose numbers are left out")
    return PaperConfig(place=paper.place)


def _flat(layers: list[LayerConfig], methods: list[MethodConfig]) -> dict[str, Any]:
    """The values of layers and methods one by one, those of the first layer by their short names."""
    first = asdict(layers[0]) if layers else {}
    options = {f"{method.name}.{key}": value for method in methods for key, value in method.options.items()}
    return {**first, "companions": layers[1:], **options}
