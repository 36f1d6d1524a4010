"""From the composed configuration to the plan: every `null` decided, what does not apply left out."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, fields, replace
from typing import Any

from omegaconf import DictConfig

from configs import tables
from configs.checking import UserError, check
from configs.paper import PaperConfig
from configs.plan import LONGEST_FOLDER, OWN_DATA, Plan, Runtime, own_title, shortened, written
from configs.ranges import check_fields, check_values
from configs.regularizers import as_written, check_chosen, layers_of, merged, refuse_unchosen
from configs.schema import (
    LAYER_KNOBS,
    RECIPE_KNOBS,
    Config,
    DataConfig,
    InputConfig,
    LossConfig,
    ModelConfig,
    RecipeConfig,
    RunOptions,
)

SHORT_NAMES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}  # of precisions
TIMES_OF = {"step": ("milestones",), "exponential": ("decay_epochs",)}  # what else of a recipe is counted in epochs


def resolve(config: Config, grid: bool = False) -> tuple[Plan, list[str]]:
    """Decide every `null`, check every value, drop what does not apply.

    Args:
        config: the composed and merged configuration.
        grid: whether the run is a job of a grid, where a knob that the regularizer ignores is reported, not refused.

    Returns:
        the plan, and notes for the user.

    Raises:
        UserError: one line that names the key.
    """
    if grid and config.run_dir:
        raise UserError(f"run_dir={config.run_dir}: all runs of a grid would share this directory; omit it")
    check_chosen(config)
    _require_weights(config)
    tried, notes = _tried(config, grid)
    places = {name: _expanded(getattr(config, name)) for name in ("output_root", "run_dir")}
    plan = Plan(
        model=_model(config),
        data=_data(config.data),
        recipe=_recipe(config, notes),
        regularizer=list(config.regularizer),
        **tried,
        seed=config.seed,
        experiment=config.experiment,
        paper=_paper(config, tried, notes),
        runtime=Runtime(
            **{f.name: getattr(config, f.name) for f in fields(RunOptions)} | places,
            data_root=config.data.root,
            download=config.data.download,
        ),
    )
    check_values(plan)
    return plan, notes


def _expanded(place: str | None) -> str | None:
    return None if place is None else os.path.expanduser(place)


def resolve_composed(composed: DictConfig, grid: bool = False) -> tuple[Plan, list[str]]:
    """`resolve` of what Hydra composed; groups=3, epochs=1e1 and recipe.precision=bf16 are read as they are meant."""
    refuse_unchosen(composed.regularizer)
    config = composed.copy()
    if isinstance(config.groups, int | str):
        config.groups = [config.groups]
    for key in ("epochs", "batch_size", "block_size", "seed", "log_every", "checkpoint_every"):
        if isinstance(config[key], float) and config[key].is_integer():
            config[key] = int(config[key])
    if config.recipe.precision in SHORT_NAMES:
        config.recipe.precision = SHORT_NAMES[config.recipe.precision]
    return resolve(check(config, Config, takes_grid=True), grid)


def _tried(config: Config, grid: bool) -> tuple[dict[str, Any], list[str]]:
    """The fields of the plan that the regularizers and their knobs decide."""
    layers, notes = layers_of(config, grid)
    inputs, loss = merged(config.regularizer, "input", InputConfig), merged(config.regularizer, "loss", LossConfig)
    check_fields(inputs)
    smoothing = loss.label_smoothing if config.label_smoothing is None else config.label_smoothing
    tried = {
        "layer": layers[0] if layers else None,
        "companions": layers[1:],
        "cutout": round((inputs.cutout or 0.0) * config.data.image_size),
        "autoaugment": _policy(inputs.autoaugment, config.data.image_size),
        "label_smoothing": smoothing or 0.0,
    }
    return tried, notes


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
    """One's own data are named after their folder, so that two folders do not meet in one run directory."""
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

    What the user wrote in epochs, other than the recipe's own value, is meant in epochs, whatever the length.
    """
    own = written("recipe", config.recipe.name)
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
    notes += idle(recipe, own)
    if recipe.warmup_epochs >= recipe.epochs:
        warmup = f"recipe.warmup_epochs={recipe.warmup_epochs:g}"
        notes.append(f"{warmup}: the run of epochs={recipe.epochs} is all warm-up and never reaches lr={recipe.lr:g}")
    return recipe


def idle(recipe: RecipeConfig, own: RecipeConfig) -> list[str]:
    """A note for every value that another one leaves without effect, if it is not the recipe's own; and milestones."""
    by_schedule = f"lr_schedule={recipe.lr_schedule}"
    cases = (
        ("milestones", recipe.lr_schedule != "step", by_schedule),
        ("lr_decay", recipe.lr_schedule not in ("step", "halving", "exponential"), by_schedule),
        ("decay_epochs", recipe.lr_schedule != "exponential", by_schedule),
        ("warmup_from", recipe.warmup_epochs == 0, "recipe.warmup_epochs=0"),
        ("ema_warmup", recipe.ema_decay is None, "recipe.ema_decay=null"),
        ("nesterov", recipe.optimizer != "sgd", f"recipe.optimizer={recipe.optimizer}"),
    )
    return [
        f"recipe.{name}={getattr(recipe, name)} does nothing with {why}"
        for name, is_idle, why in cases
        if is_idle and getattr(recipe, name) and (name == "milestones" or getattr(recipe, name) != getattr(own, name))
    ]


def _require_weights(config: Config) -> None:
    """Refuse an experiment that starts from trained weights (`model.pretrained: ???`) and is given none."""
    own = tables.rows()[config.experiment] if config.experiment else {}
    if own.get("model.pretrained") == "???" and config.model.pretrained is None:
        raise UserError(f"experiment={config.experiment} starts from ImageNet weights: give model.pretrained=FILE")


def _paper(config: Config, tried: dict[str, Any], notes: list[str]) -> PaperConfig:
    """The paper's numbers of an experiment; without them where what is tried is not what the experiment says."""
    paper = config.paper
    if not config.experiment or not (paper.metrics or paper.curve):
        return paper
    own = tables.rows()[config.experiment]
    chosen = own.get("regularizer", list(config.regularizer))
    names = chosen if isinstance(chosen, list) else [chosen]
    changed = [f"regularizer={','.join(config.regularizer)}"] if list(config.regularizer) != names else []
    if not changed:
        knobs: dict[str, Any] = {
            f.name: own.get(f.name) for f in fields(Config) if f.name in (*LAYER_KNOBS, "label_smoothing")
        }
        plain = replace(config, regularizer={name: as_written(name) for name in names}, **knobs)
        theirs, ours = _flat(_tried(plain, grid=True)[0]), _flat(tried)
        swept = ("layer.keep_prob",) if paper.curve else ()
        changed = [
            f"{key.removeprefix('layer.')}={ours.get(key)}"
            for key in {**ours, **theirs}
            if ours.get(key) != theirs.get(key) and key not in swept
        ]
    if not changed:
        return paper
    notes.append(f"{', '.join(changed)}: not the paper's {paper.place}, whose numbers are left out")
    return PaperConfig(place=paper.place)


def _flat(tried: dict[str, Any]) -> dict[str, Any]:
    """The fields of what is tried, those of its first layer one by one."""
    layer = asdict(tried["layer"]) if tried["layer"] else {}
    rest = {key: value for key, value in tried.items() if key != "layer"}
    return {**{f"layer.{key}": value for key, value in layer.items()}, **rest}


def _policy(name: str | None, image_size: int) -> str | None:
    """AutoAugment's policy; `auto` is the one that was found on images of this kind."""
    if name == "auto":
        return "imagenet" if image_size > 64 else "cifar10"
    return name
