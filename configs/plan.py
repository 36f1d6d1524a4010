"""The plan: one run, complete and normalised. Everything behind the doors sees the plan only."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from configs.schema import (
    Config,
    DataConfig,
    LayerConfig,
    ModelConfig,
    PaperConfig,
    RecipeConfig,
    RegularizerConfig,
    UserError,
    check,
    load_yaml,
    one_of,
)

CONFIGS = Path(__file__).parent
SCHEDULES = ("linear", "constant")
LR_SCHEDULES = ("cosine", "step", "exponential", "halving", "constant")
OPTIMIZERS = ("sgd", "rmsprop")
PRECISIONS = ("float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda")
POLICIES = ("imagenet", "cifar10", "svhn")
LAYER_KNOBS = ("keep_prob", "block_size", "groups", "skip", "schedule")
RECIPE_KNOBS = ("epochs", "batch_size", "lr", "lr_schedule")


@dataclass(frozen=True)
class LayerPlan:
    """The layer at the sites. `None` marks what this kind of layer does not have."""

    name: str
    keep_prob: float
    block_size: int | None
    groups: list[int]
    skip: bool | None
    schedule: str
    group_divisor: float
    group_shares: list[float] | None = None


@dataclass(frozen=True)
class Runtime:
    """How a run is carried out; may change when it is resumed, and is no part of its identity."""

    device: str = "auto"
    workers: int | None = None
    compile: bool = False
    log_every: int = 10
    checkpoint_every: int = 0
    progress: bool = True
    rank_timeout: float = 600.0
    output_root: str = "outputs"
    run_dir: str | None = None
    fresh: bool = False
    data_root: str | None = None
    download: bool = True


@dataclass(frozen=True)
class Plan:
    """One training run, every value decided."""

    model: ModelConfig
    data: DataConfig
    recipe: RecipeConfig
    regularizer: list[str]
    layer: LayerPlan | None = None
    companions: list[LayerPlan] = field(default_factory=list)  # layers of further regularizers
    cutout: int = 0
    autoaugment: str | None = None
    label_smoothing: float = 0.0
    seed: int = 1
    experiment: str | None = None
    paper: PaperConfig = field(default_factory=PaperConfig)
    runtime: Runtime = field(default_factory=Runtime)

    def identity(self) -> dict[str, Any]:
        """What the run computes: the plan without what may change on resume, and without the names it goes by."""
        plan = asdict(self)
        for name in ("runtime", "experiment", "paper"):
            del plan[name]
        for name in ("root", "download", "model_width"):
            del plan["data"][name]
        for part, switch in (("data", "prepared"), ("recipe", "sync_batchnorm")):
            if not plan[part][switch]:  # runs from before there was a choice keep their folders
                del plan[part][switch]
        return plan

    def hash(self) -> str:
        """Six hexadecimal digits that all seeds of this plan share."""
        identity = self.identity()
        del identity["seed"]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:6]

    @property
    def variant(self) -> str:
        """The short readable name of what is tried: regularizer, block size and keep_prob."""
        words = ["+".join(self.regularizer)]
        if self.layer is not None:
            words += [f"b{self.layer.block_size}"] if self.layer.block_size else []
            words += [f"kp{self.layer.keep_prob:g}"]
        return "-".join(words)

    def run_dir(self) -> Path:
        """The folder of this run: a function of the plan, so equal plans meet in one folder."""
        if self.runtime.run_dir:
            return Path(self.runtime.run_dir)
        network = f"{self.model.library}-{self.model.name}" if self.model.library else self.model.name
        place = f"{self.data.name}-{network}"
        return Path(self.runtime.output_root, place, f"{self.variant}-{self.hash()}", f"seed-{self.seed}")


def plan_from(values: dict[str, Any]) -> Plan:
    """A plan from the nested plain values that `dataclasses.asdict` made of one, each part checked.

    Raises:
        UserError: if a key or a value does not belong there.
    """
    parts = {"model": ModelConfig, "data": DataConfig, "recipe": RecipeConfig, "layer": LayerPlan}
    parts |= {"paper": PaperConfig, "runtime": Runtime}
    try:
        built = {k: check(v, parts[k]) if k in parts and v is not None else v for k, v in values.items()}
        built["companions"] = [check(layer, LayerPlan) for layer in values.get("companions", [])]
        return Plan(**built)
    except TypeError as error:
        raise UserError(f"not a plan of this version: {error}") from error


def choices(group: str) -> list[str]:
    """The names of a configuration group: its YAML files, sub-folders included."""
    folder = CONFIGS / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


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
        data=config.data,
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
    _check_values(plan)
    return plan, remarks


def _recipe(config: Config, remarks: list[str]) -> RecipeConfig:
    """The recipe with the user's knobs; a run of another length keeps the shape of its learning-rate curve."""
    asked = {knob: getattr(config, knob) for knob in RECIPE_KNOBS if getattr(config, knob) is not None}
    recipe = replace(config.recipe, **asked)
    if recipe.epochs != config.recipe.epochs and config.recipe.epochs > 0:
        scale = recipe.epochs / config.recipe.epochs
        remarks.append(f"epochs={recipe.epochs}: warm-up and milestones of the recipe scaled by {scale:.3g}")
        recipe = replace(
            recipe,
            warmup_epochs=recipe.warmup_epochs * scale,
            milestones=[m * scale for m in recipe.milestones],
            decay_epochs=recipe.decay_epochs * scale,
        )
    if recipe.lr_schedule != "step" and recipe.milestones:
        remarks.append(f"recipe.milestones={recipe.milestones} does nothing with lr_schedule={recipe.lr_schedule}")
    return recipe


def _paper(config: Config, layers: list[LayerConfig], remarks: list[str]) -> PaperConfig:
    """The paper's numbers of an experiment; without them where a knob says that this is another experiment."""
    paper = config.paper
    if not config.experiment or (paper.top1 is None and not paper.curve):
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


def _check_values(plan: Plan) -> None:
    """Ranges and names, before any data is touched or any network is built."""
    recipe = plan.recipe
    if plan.model.library is None:
        one_of("model.name", plan.model.name, choices("model"))
        one_of("model.stem", str(plan.model.stem), ("small", "imagenet"))
    else:
        one_of("model.library", plan.model.library, ("torchvision", "timm"))
    one_of("data.name", plan.data.name, choices("data"))
    one_of("lr_schedule", recipe.lr_schedule, LR_SCHEDULES)
    one_of("recipe.optimizer", recipe.optimizer, OPTIMIZERS)
    one_of("recipe.precision", recipe.precision, PRECISIONS)
    one_of("device", plan.runtime.device, DEVICES)
    one_of("data.on_bad_image", plan.data.on_bad_image, ("error", "skip"))
    one_of("data.decoder", plan.data.decoder, ("auto", "simplejpeg", "pillow", "pil"))
    for key, value, least in (
        ("model.width", plan.model.width, 1),
        ("data.image_size", plan.data.image_size, 8),
        ("data.train_subset", plan.data.train_subset, 1),
        ("epochs", recipe.epochs, 1),
        ("batch_size", recipe.batch_size, 2),
        ("recipe.eval_batch_size", recipe.eval_batch_size, 1),
        ("recipe.accumulate", recipe.accumulate, 1),
        ("recipe.eval_every", recipe.eval_every, 1),
        ("recipe.warmup_epochs", recipe.warmup_epochs, 0),
        ("recipe.weight_decay", recipe.weight_decay, 0),
        ("seed", plan.seed, 0),
        ("cutout", plan.cutout, 0),
        ("workers", plan.runtime.workers, 0),
        ("log_every", plan.runtime.log_every, 1),
        ("checkpoint_every", plan.runtime.checkpoint_every, 0),
        ("rank_timeout", plan.runtime.rank_timeout, 1),
    ):
        if value is not None and not value >= least:
            raise UserError(f"{key}={value}: must be at least {least}")
    for key, share, top in (
        ("label_smoothing", plan.label_smoothing, 0.99),
        ("data.val_fraction", plan.data.val_fraction, 0.5),
        ("recipe.momentum", recipe.momentum, 0.9999),
        ("recipe.ema_decay", recipe.ema_decay, 0.999999),
    ):
        if share is not None and not 0.0 <= share <= top:
            raise UserError(f"{key}={share}: must lie between 0 and {top:g}")
    for key, value in (
        ("lr", recipe.lr),
        ("recipe.grad_clip", recipe.grad_clip),
        ("recipe.decay_epochs", recipe.decay_epochs),
    ):
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{key}={value}: must be above 0")
    if not 0 < recipe.lr_decay <= 1:
        raise UserError(f"recipe.lr_decay={recipe.lr_decay}: must lie above 0 and not above 1")
    if recipe.lr_schedule == "step" and not recipe.milestones:
        raise UserError("lr_schedule=step: name the epochs at which the rate falls: recipe.milestones=[60,120,160]")
    if recipe.lr_schedule == "exponential" and recipe.lr_decay ** (recipe.epochs / recipe.decay_epochs) < 1e-6:
        raise UserError(
            f"lr_schedule=exponential: times {recipe.lr_decay:g} every {recipe.decay_epochs:g} epochs leaves nothing; "
            "say how fast it falls, such as recipe.lr_decay=0.97 recipe.decay_epochs=2.4"
        )
    if recipe.batch_size % recipe.accumulate:
        raise UserError(f"recipe.accumulate={recipe.accumulate}: must divide batch_size={recipe.batch_size}")
