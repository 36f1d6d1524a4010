"""Every key of the configuration, declared once: name, type, default, meaning, valid values.

The composed YAML starts from these defaults (`configs.compose`), the files of the groups say what differs from them,
`--help` prints them, and `configs.ranges` checks a plan against them.

A default never changes: a plan's hash is taken over what differs from the defaults, so another default would rename run
directories. A new field may be added at any time, with a default that means "as before".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from configs.paper import PaperConfig

Numbers: TypeAlias = list[float]  # DataConfig has a field `list`, which would hide the type
Names: TypeAlias = list[str]
Levels: TypeAlias = list[int]

TASKS = ("classification", "segmentation", "detection")
# The metrics that may choose the best epoch, the task's own first. What each is, the task declares (engine/tasks).
HEADLINES = {
    "classification": ("top1", "macro_accuracy", "loss", "brier"),
    "segmentation": ("miou", "pixel_accuracy", "loss"),
    "detection": ("ap", "ap50", "voc_ap50"),
}
KINDS = ("layer", "image", "batch", "loss")  # of regularizers, in the order in which those of a list act
SCHEDULES = ("linear", "constant", "cosine", "early", "late", "ramp", "curriculum")
SCHEDULE_LIMITS = {"early": "schedule_end", "late": "schedule_start", "ramp": "schedule_end"}  # that they need
DEPTH_RULES = ("group", "linear")
LR_SCHEDULES = ("cosine", "step", "exponential", "halving", "constant")
OPTIMIZERS = ("sgd", "rmsprop", "adamw")
PRECISIONS = ("float32", "tf32", "bfloat16", "float16")
DECODERS = ("auto", "simplejpeg", "pillow", "pil")
EXIF = ("ignore", "apply")
ON_BAD_IMAGE = ("error", "skip")
STEMS = ("small", "stride2", "imagenet")
LIBRARIES = ("torchvision", "timm")
CORRUPTIONS = ("gaussian_noise", "defocus_blur", "brightness", "contrast", "jpeg")  # data/corruptions.py


def option(
    default: Any,
    meaning: str,
    choices: Sequence[str] = (),
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
) -> Any:
    """A field with its default, what it means, and its valid values: one of `choices`, or a range of numbers.

    Args:
        default: lists and dictionaries are copied for each instance.
        meaning: what `--help` prints.
        choices: names it may have.
        least, most: inclusive bounds.
        above: exclusive lower bound; the value is finite then.
    """
    metadata = {"meaning": meaning, "choices": tuple(choices), "least": least, "most": most, "above": above}
    if isinstance(default, list | dict):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ModelConfig:
    name: str = option("???", "network; of a library: its architecture")
    library: str | None = option(None, "where the network comes from; null: this repository", LIBRARIES)
    width: int | None = option(None, "channels of the first group; null: as the data set says", least=1)
    stem: str | None = option(None, "first layers; null: small up to 64 pixels", STEMS)
    zero_gamma: bool = option(True, "last BatchNorm of each block starts at 0 (the authors' released code)")
    pretrained: str | None = option(
        None, "file of weights with torchvision's keys; all have to match, so a classifier keeps its number of classes"
    )
    options: dict[str, Any] = option({}, "what only this family of networks has")


@dataclass(frozen=True)
class DataConfig:
    name: str = option("???", "data set")
    root: str | None = option(None, "where the files are, or are downloaded to; null: ~/.cache/dropblock-repro")
    image_size: int = option(32, "side of the images in pixels", least=8)
    val_fraction: float = option(
        0.1, "share of the training set held out as val, where the data have no val of their own", least=0, most=0.5
    )
    train_subset: int | None = option(None, "use this many of the training images, stratified", least=1)
    model_width: int = option(64, "width of the network on this data set, unless model.width is set", least=1)
    download: bool = option(True, "whether missing files may be downloaded")
    on_bad_image: str = option("error", "what to do about an unreadable image", ON_BAD_IMAGE)
    decoder: str = option(
        "auto",
        "JPEG decoder; auto: simplejpeg where it is installed, else pillow; pil: that of torchvision's recipe",
        DECODERS,
    )
    prepared: bool = option(False, "root was written by scripts/prepare_shards.py")
    title: str | None = option(None, "name in run directories; null: name, and for own data the folder's name")
    mean: Numbers | None = option(
        None,
        "of each channel, values in [0, 1], for own data; null: measured (images not kept in memory: ImageNet's)",
    )
    std: Numbers | None = option(None, "standard deviation, as mean")
    task: str = option("classification", "what is learned", TASKS)
    train_split: str | None = option(None, "name of the training split, of data sets that have several")
    val_split: str | None = option(None, "null: cut from the training split")
    test_split: str | None = option(None, "null: the official evaluation set")
    list: str | None = option(None, "training list of voc_segmentation: train | trainaug")
    classes: Names | None = option(None, "of voc_detection, in the order of the labels; null: all in the lists")
    exif: str = option(
        "ignore",
        "EXIF orientation of image files; apply: turn them as viewers do, ignore: take them as stored",
        EXIF,
    )
    mask_values: Levels | None = option(
        None, "gray levels of the masks, one for each class in its order, as [0,255]; null: they are class indices"
    )

    def options(self) -> dict[str, Any]:
        """Those given of the keys that only some data sets have."""
        some = ("mean", "std", "list", "train_split", "val_split", "test_split", "classes", "mask_values")
        return {key: value for key in some if (value := getattr(self, key)) is not None}


@dataclass(frozen=True)
class AugmentConfig:
    crop_padding: int = option(0, "random crop after zero-padding by this many pixels; photographs: resized crop")
    flip: bool = option(False, "mirror half of the images")
    scale_min: float = option(1.0, "segmentation, detection: the longer side becomes U(min, max) * image_size")
    scale_max: float = option(1.0, "see scale_min")
    photometric: float = option(0.0, "brightness, contrast and saturation times U(1 - p, 1 + p) each")


@dataclass(frozen=True)
class RecipeConfig:
    name: str = option("???", "recipe")
    epochs: int = option(1, "passes over the training set", least=1)
    batch_size: int = option(32, "images of an optimizer step, over all ranks and micro-batches", least=2)
    eval_batch_size: int = option(256, "images of a forward pass in evaluation", least=1)
    accumulate: int = option(1, "micro-batches per optimizer step", least=1)
    lr: float = option(0.1, "peak learning rate, at this batch size", above=0)
    lr_schedule: str = option("cosine", "learning rate over the run", LR_SCHEDULES)
    warmup_epochs: float = option(0.0, "linear warm-up of the learning rate", least=0)
    milestones: list[float] = option([], "epochs at which lr_schedule=step decays")
    lr_decay: float = option(0.1, "factor of a decay of step, halving or exponential", above=0, most=1)
    decay_epochs: float = option(1.0, "epochs between the decays of lr_schedule=exponential", above=0)
    optimizer: str = option("sgd", "optimizer", OPTIMIZERS)
    momentum: float = option(0.9, "of sgd and rmsprop; beta1 of adamw", least=0, most=0.9999)
    nesterov: bool = option(True, "of sgd")
    weight_decay: float = option(1e-4, "on all parameters but those of normalization layers", least=0)
    grad_clip: float | None = option(None, "largest norm of all gradients together", above=0)
    ema_decay: float | None = option(None, "evaluate an exponential moving average", least=0, most=0.999999)
    precision: str = option(
        "float32", "of the forward pass (autocast; tf32: float32, products on a GPU in TF32)", PRECISIONS
    )
    sync_batchnorm: bool = option(False, "BatchNorm over the batches of all ranks together; GPUs only")
    eval_every: int = option(1, "epochs between evaluations; the last epoch always is one", least=1)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    warmup_from: float = option(
        0.0, "learning rate at the start of the warm-up, as a share of the peak", least=0, most=1
    )
    ema_warmup: bool = option(False, "the average decays by min(ema_decay, (1 + t) / (10 + t)) after t steps")
    score_threshold: float = option(0.05, "detections below it are not evaluated", least=0, most=1)


@dataclass  # not frozen: OmegaConf could not fill one where `RegularizerConfig` has None
class LayerConfig:
    """Layer at sites. A knob that is null in its YAML does not exist for it; in a plan everything is decided."""

    name: str = option("???", "layer")
    keep_prob: float | None = option(None, "share of units kept, in the last group", least=0, most=1)
    block_size: int | None = option(None, "side of the dropped squares, in units of the feature map", least=1)
    groups: list[int | str] | None = option(None, "groups (stages) that get layers: [3,4], [3,4,head]")
    skip: bool | None = option(None, "on the shortcut as well as on the conv branch")
    schedule: str | None = option(None, "the drop rate over the run", SCHEDULES)
    group_divisor: float = option(1.0, "the drop rate is divided by this once per group before the last", least=1)
    group_shares: list[float] | None = option(None, "instead: share of the drop rate of groups 1, 2, ...")
    schedule_start: float | None = option(
        None, "share of the run at which `late` starts, which needs it", least=0, most=1
    )
    schedule_end: float | None = option(
        None, "share of the run at which `early` and `ramp` end, which need it", least=0, most=1
    )
    head_share: float = option(1.0, "share of the drop rate that a head gets", least=0, most=1)
    depth_rule: str = option("group", "how the drop rate is divided over the depth", DEPTH_RULES)
    options: dict[str, Any] = option({}, "further knobs, of this layer alone")


@dataclass(frozen=True)
class MethodConfig:
    """Regularizer of a plan that is no layer: what its class is called with."""

    name: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass  # not frozen, as LayerConfig
class TuneList:
    """The one knob of a regularizer that `tune=default` chooses, and from which values."""

    knob: str = option("???", "a knob of its layer, or one of its options")
    values: list[Any] = option([], "candidates")
    source: str = option("", "where these values come from")


@dataclass(frozen=True)
class RegularizerConfig:
    """Declaration of a regularizer: what its YAML file says, or the script that registered it."""

    kind: str = option("???", "what it acts on", ("none", *KINDS))
    layer: LayerConfig | None = option(None, "knobs that every layer has, of kind layer alone")
    options: dict[str, dict[str, Any]] = option(
        {}, "by name: default (null: that of the class, no part of the plan), meaning; choices or least, most, above"
    )
    tasks: list[str] = option([], "tasks that it suits; none: all")
    networks: list[str] = option([], "networks that it was made for; none: all")
    excludes: list[str] = option([], "regularizers that it does not go with; two of kind batch or loss never do")
    corruptions: list[str] = option([], "corruptions of evaluate.py that its operations amount to")
    label: str = option("", "name in reports and pictures; empty: that of the file")
    colour: str | None = option(None, 'of its rows in pictures, "#rrggbb"')
    tune: TuneList | None = option(None, "what tune=default chooses; null: nothing")


@dataclass(frozen=True)
class TuneConfig:
    """Tuning of the rows of a grid or table on val, each by equally many pilot runs, before they are compared."""

    knobs: Any = option(
        None, "default: each row by the list of its regularizer; or {KNOB: [..]}; tune=X is short for tune.knobs=X"
    )
    lr: Numbers = option([], "learning rates that every row is tried at as well, those without a regularizer too")
    seeds: list[int] = option([100], "seeds of the pilots; none of those that are compared")
    epochs: int | None = option(None, "epochs of a pilot; null: as many as the runs that are compared", least=1)
    allow_untuned: bool = option(False, "{KNOB: [..]} may leave rows that have a knob untuned; the report says so")


@dataclass(frozen=True)
class RunOptions:
    """Options that change nothing of what is computed, so they may change on resume."""

    device: str = option("auto", "auto | cpu | cuda | cuda:N")
    workers: int | None = option(
        None, "loader processes per rank, for image folders; null: one for each of the run's cores", least=0
    )
    compile: bool = option(False, "torch.compile")
    cudnn_benchmark: bool = option(False, "cuDNN keeps the fastest of its algorithms; resumes may differ in rounding")
    log_every: int = option(10, "steps between log entries", least=1)
    checkpoint_every: int = option(
        0, "steps between checkpoints, beside the one at the end of every epoch; 0: none", least=0
    )
    progress: bool = option(True, "progress bar")
    rank_timeout: float = option(600.0, "seconds that a rank waits for the others", least=1)
    output_root: str = option("outputs", "parent of all run directories")
    run_dir: str | None = option(None, "another directory for this run")
    evaluations: Names = option(
        [],
        "evaluations of the finished run, in the words of evaluate.py, into evaluations.json: "
        "\"evaluations=[temperature,corruption,'samples=20']\"",
    )
    fresh: bool = option(False, "move an earlier run of the same plan aside and start over")


@dataclass(frozen=True)
class Config(RunOptions):
    """The composed configuration. A null knob means: as the regularizer, the data set or the recipe says."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    regularizer: dict[str, Any] = field(default_factory=dict)  # by name the declaration, and the values given to it
    experiment: str | None = None
    paper: PaperConfig = field(default_factory=PaperConfig)
    keep_prob: float | None = None
    block_size: int | None = None
    groups: list[int | str] | None = None
    skip: bool | None = None
    schedule: str | None = None
    schedule_start: float | None = None
    schedule_end: float | None = None
    depth_rule: str | None = None
    head_share: float | None = None
    label_smoothing: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    lr_schedule: str | None = None
    seed: int = option(1, "of weights, order of the data, augmentation and masks", least=0)
    headline: str | None = option(
        None, "the metric that chooses the best epoch, as macro_accuracy; null: the task's own"
    )
    estimate: bool = option(False, "print hours, memory and disk of the runs, from a few real steps; train nothing")
    jobs: str = option("1", "runs of a sweep at a time; auto: one per GPU, or one per core")
    num_cpus: float = option(1.0, "cores of a run, for hydra/launcher=ray", above=0)
    num_gpus: float = option(0.0, "GPUs of a run, for hydra/launcher=ray; 0.5: two runs share one", least=0)
    plan: bool = option(False, "print the resolved plan and the sites table; train nothing")
    tune: TuneConfig = field(default_factory=TuneConfig)
    pilot: bool = option(False, "this run chooses a value on val; it is no row of a report")


# The short names of what is varied most; of these dataclasses.
LAYER_KNOBS = (
    "keep_prob",
    "block_size",
    "groups",
    "skip",
    "schedule",
    "schedule_start",
    "schedule_end",
    "depth_rule",
    "head_share",
)
RECIPE_KNOBS = ("epochs", "batch_size", "lr", "lr_schedule")
