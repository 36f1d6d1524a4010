"""From the composed configuration to the plan: every `null` decided, what does not apply left out."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.plan import CONFIGS, LayerPlan, Plan, Runtime
from configs.ranges import POLICIES, SCHEDULES, check_values
from configs.schema import (
    Config,
    DataConfig,
    LayerConfig,
    PaperConfig,
    RecipeConfig,
    RegularizerConfig,
    UserError,
    load_yaml,
    one_of,
)

LAYER_KNOBS = ("keep_prob", "block_size", "groups", "skip", "schedule")
RECIPE_KNOBS = ("epochs", "batch_size", "lr", "lr_schedule")
TIMES_OF = {"step": ("milestones",), "exponential": ("decay_epochs",)}  # what else of a recipe is counted in epochs


def resolve(config: Config, grid: bool = False) -> tuple[Plan, list[str]]:
    """Decide every `null`, check every value, drop what does not apply.

    Args:
        config: the composed and merged configuration.
        grid: whether the run is a job of a grid, where a knob that the regularizer ignores is reported, not refused.

    Returns:
        the plan, and remarks for the user.

    Raises:
        UserError: one line that names the key.
    """
    autoaugment, cutout, smoothing = _slots(config.regularizer)
    layers = [regularizer.layer for regularizer in config.regularizer.values() if regularizer.layer is not None]
    layers, remarks = _with_knobs(layers, config, grid)
    complete = [_complete(layer) for layer in layers]
    small = config.data.image_size <= 64
    for knob in ("width", "stem"):
        if config.model.library and getattr(config.model, knob) is not None:
            raise UserError(f"model.{knob}: the networks of {config.model.library} have no such choice; leave it out")
    width = None if config.model.library else config.model.width
    model = replace(
        config.model,
        width=config.data.model_width if width is None and not config.model.library else width,
        stem=None if config.model.library else config.model.stem or ("small" if small else "imagenet"),
    )
    plan = Plan(
        model=model,
        data=_data(config.data),
        recipe=_recipe(config, remarks),
        regularizer=list(config.regularizer),
        layer=complete[0] if complete else None,
        companions=complete[1:],
        cutout=_pixels(cutout, config.data.image_size),
        autoaugment=_policy(autoaugment, config.data.image_size),
        label_smoothing=smoothing if config.label_smoothing is None else config.label_smoothing,
        seed=config.seed,
        experiment=config.experiment,
        paper=_paper(config, layers, remarks),
        runtime=Runtime(
            **{name: getattr(config, name) for name in Runtime.__dataclass_fields__ if hasattr(config, name)},
            data_root=config.data.root,
            download=config.data.download,
        ),
    )
    check_values(plan)
    return plan, remarks


# A layout of folders rather than one data set: VOC's serves many.
OWN_DATA = ("folder", "segmentation_folder", "voc_detection")


def _data(data: DataConfig) -> DataConfig:
    """One's own data are named after their folder, so that two folders do not meet in one run directory."""
    if data.name not in OWN_DATA:
        return data
    if data.root is None:
        raise UserError(f"data={data.name}: name your folder by data.root=PATH")
    if data.title is not None:
        return data
    folder = Path(data.root).expanduser().absolute().name
    readable = re.sub(r"[^\w.-]+", "-", folder).strip("-.") or "data"
    return replace(data, title=f"{data.name}-{readable}")


def _recipe(config: Config, remarks: list[str]) -> RecipeConfig:
    """The recipe with the user's knobs; a run of another length keeps the shape of its learning-rate curve.

    What the user wrote in epochs is meant in epochs, whatever the length.
    """
    asked = {knob: getattr(config, knob) for knob in RECIPE_KNOBS if getattr(config, knob) is not None}
    recipe = replace(config.recipe, **asked)
    if recipe.epochs != config.recipe.epochs and config.recipe.epochs > 0:
        scale, own = recipe.epochs / config.recipe.epochs, load_yaml(CONFIGS / "recipe" / f"{recipe.name}.yaml")
        scaled: dict[str, Any] = {}
        for key in ("warmup_epochs", *TIMES_OF.get(recipe.lr_schedule, ())):
            value = getattr(recipe, key)
            if value and value == own[key]:
                scaled[key] = [m * scale for m in value] if key == "milestones" else value * scale
        recipe = replace(recipe, **scaled)
        if scaled:
            remarks.append(f"epochs={recipe.epochs}: {', '.join(scaled)} of the recipe scaled by {scale:.3g}")
    if recipe.lr_schedule != "step" and recipe.milestones:
        remarks.append(f"recipe.milestones={recipe.milestones} does nothing with lr_schedule={recipe.lr_schedule}")
    return recipe


def _paper(config: Config, layers: list[LayerConfig], remarks: list[str]) -> PaperConfig:
    """The paper's numbers of an experiment; without them where a knob says that this is another experiment."""
    paper = config.paper
    if not config.experiment or not (paper.metrics or paper.curve):
        return paper
    own = load_yaml(CONFIGS / "experiment" / f"{config.experiment}.yaml")
    swept = ("keep_prob",) if paper.curve else ()
    changed = [
        f"{knob}={asked}"
        for knob in (*LAYER_KNOBS, "label_smoothing")
        if (asked := getattr(config, knob)) is not None
        and asked != own.get(knob)
        and knob not in swept
        and (knob == "label_smoothing" or any(getattr(layer, knob) is not None for layer in layers))
    ]
    names = [entry["override /regularizer"] for entry in own.get("defaults", []) if "override /regularizer" in entry]
    regularizers = list(names[0]) if names and isinstance(names[0], list) else names
    if names and list(config.regularizer) != regularizers:
        changed.append(f"regularizer={','.join(config.regularizer)}")
    if not changed:
        return paper
    remarks.append(f"{', '.join(changed)}: not the paper's {paper.place}, whose numbers are left out")
    return PaperConfig(place=paper.place)


def _pixels(cutout: float, image_size: int) -> int:
    """The side of Cutout's square, given as a share of the image's side."""
    if not 0.0 <= cutout <= 2.0:
        raise UserError(f"cutout={cutout}: a share of the side of the image, between 0 and 2")
    return round(cutout * image_size)


def _policy(name: str | None, image_size: int) -> str | None:
    """AutoAugment's policy; `auto` is the one that was found on images of this kind."""
    if name == "auto":
        return "imagenet" if image_size > 64 else "cifar10"
    if name is not None:
        one_of("autoaugment", name, ("auto", *POLICIES))
    return name


def _slots(regularizers: dict[str, RegularizerConfig]) -> tuple[str | None, float, float]:
    """What the chosen regularizers change besides layers; two may not fill the same slot."""
    filled: dict[str, tuple[str, Any]] = {}

    def fill(slot: str, regularizer: str, value: Any) -> None:
        if value is None:
            return
        if slot in filled:
            raise UserError(f"regularizer=[{filled[slot][0]},{regularizer}]: both set the {slot}; choose one of them")
        filled[slot] = (regularizer, value)

    if not regularizers:
        raise UserError("regularizer=[]: choose at least one; 'none' is the baseline")
    if "none" in regularizers and len(regularizers) > 1:
        raise UserError(f"regularizer=[{','.join(regularizers)}]: 'none' stands alone")
    for name, regularizer in regularizers.items():
        if regularizer.input is not None:
            fill("cutout", name, regularizer.input.cutout)
            fill("autoaugment", name, regularizer.input.autoaugment)
        if regularizer.loss is not None:
            fill("label_smoothing", name, regularizer.loss.label_smoothing)
    values: dict[str, Any] = {"autoaugment": None, "cutout": 0.0, "label_smoothing": 0.0}
    values |= {slot: value for slot, (_, value) in filled.items()}
    return values["autoaugment"], values["cutout"], values["label_smoothing"]


def _with_knobs(layers: list[LayerConfig], config: Config, grid: bool) -> tuple[list[LayerConfig], list[str]]:
    """The layers with the user's knobs, each given to the one layer that has it.

    A knob that none has is refused (single run) or reported (grid); one that several have is refused.
    """
    remarks: list[str] = []
    for knob in LAYER_KNOBS:
        asked = getattr(config, knob)
        owners = [layer for layer in layers if getattr(layer, knob) is not None]
        if asked is None:
            continue
        if len(owners) > 1:
            names = " and ".join(layer.name for layer in owners)
            raise UserError(f"{knob}={asked}: {names} both have it; write regularizer.NAME.layer.{knob}={asked}")
        if not owners:
            remarks.append(f"{knob}={asked} does not apply to regularizer={','.join(config.regularizer)}")
            if not grid:
                raise UserError(remarks[-1])
        layers = [replace(layer, **{knob: asked}) if layer in owners else layer for layer in layers]
    return layers, remarks


def _complete(layer: LayerConfig) -> LayerPlan:
    """A layer with every value decided and in its range."""
    if layer.keep_prob is None or layer.groups is None or layer.schedule is None:
        raise UserError(f"regularizer {layer.name}: its layer needs keep_prob, groups and schedule")
    if not 0.0 <= layer.keep_prob <= 1.0:
        raise UserError(f"keep_prob={layer.keep_prob}: must lie between 0 and 1")
    if layer.block_size is not None and layer.block_size < 1:
        raise UserError(f"block_size={layer.block_size}: must be at least 1")
    if not layer.group_divisor >= 1:
        raise UserError(f"group_divisor={layer.group_divisor}: must be at least 1")
    if not layer.groups or min(layer.groups) < 0:
        raise UserError(f"groups={layer.groups}: name at least one group of the network")
    one_of("schedule", layer.schedule, SCHEDULES)
    return LayerPlan(
        name=layer.name,
        keep_prob=layer.keep_prob,
        block_size=layer.block_size,
        groups=sorted(set(layer.groups)),
        skip=layer.skip,
        schedule=layer.schedule,
        group_divisor=layer.group_divisor,
        group_shares=layer.group_shares,
    )
