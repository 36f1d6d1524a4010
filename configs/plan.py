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
    companions: list[LayerPlan] = field(default_factory=list)  # layers of further regularizers, without knobs
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
    layer, remarks = _layer(layers[0] if layers else None, config, grid)
    small = config.data.image_size <= 64
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
        layer=layer,
        companions=[_complete(companion) for companion in layers[1:]],
        cutout=_pixels(cutout, config.data.image_size),
        autoaugment=_policy(autoaugment, config.data.image_size),
        label_smoothing=smoothing if config.label_smoothing is None else config.label_smoothing,
        seed=config.seed,
        experiment=config.experiment,
        paper=config.paper,
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
    return recipe


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


def _layer(layer: LayerConfig | None, config: Config, grid: bool) -> tuple[LayerPlan | None, list[str]]:
    """The first layer, with the user's knobs; knobs it does not have are refused (single run) or reported (grid)."""
    asked = {knob: getattr(config, knob) for knob in LAYER_KNOBS if getattr(config, knob) is not None}
    ignored = [knob for knob in asked if layer is None or getattr(layer, knob) is None]
    names = ",".join(config.regularizer)
    remarks = [f"{knob}={asked[knob]} does not apply to regularizer={names}" for knob in ignored]
    if ignored and not grid:
        raise UserError(remarks[0])
    if layer is None:
        return None, remarks
    return _complete(replace(layer, **{knob: value for knob, value in asked.items() if knob not in ignored})), remarks


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
    if not 0 < recipe.lr < float("inf"):
        raise UserError(f"lr={recipe.lr}: must be above 0")
    if recipe.batch_size % recipe.accumulate:
        raise UserError(f"recipe.accumulate={recipe.accumulate}: must divide batch_size={recipe.batch_size}")
