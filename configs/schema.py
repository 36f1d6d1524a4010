"""What may stand in a configuration: the YAML of this folder as dataclasses, merged strictly, each error in one line.

`null` in a knob means "as the regularizer, data or recipe says"; `configs.resolve.resolve` turns the whole into a plan.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException


class UserError(ValueError):
    """A mistake of the user: its message is one line and the process ends with status 2."""

    exit_code = 2


@dataclass(frozen=True)
class ModelConfig:
    name: str = "???"
    library: str | None = None  # torchvision | timm: `name` is an architecture there
    width: int | None = None  # channels of the first group; null: as the data set says
    stem: str | None = None  # imagenet | stride2 (ResNets) | small; null: small up to 64 pixels
    zero_gamma: bool = True  # last BatchNorm of each block starts at 0 (PAPER: released code)
    pretrained: str | None = None  # weights file with torchvision's keys
    options: dict[str, Any] = field(default_factory=dict)  # what only this family has


Numbers: TypeAlias = list[float]  # DataConfig has a field `list`, which would hide the type
Names: TypeAlias = list[str]


@dataclass(frozen=True)
class DataConfig:
    name: str = "???"
    root: str | None = None  # where the files are, or are downloaded to
    image_size: int = 32
    val_fraction: float = 0.1  # share of the training set that is held out to choose by
    train_subset: int | None = None  # a fixed, stratified part of the training images
    model_width: int = 64  # width of the network on this data where nobody says
    download: bool = True
    on_bad_image: str = "error"
    decoder: str = "auto"
    prepared: bool = False  # root was written by scripts/prepare_shards.py: smaller photographs
    title: str | None = None  # name in run directories; null: `name`, and for one's own data the folder's name as well
    mean: Numbers | None = None  # of each channel, of values in [0, 1], for data of one's own; null: measured
    std: Numbers | None = None
    task: str = "classification"  # | segmentation | detection
    train_split: str | None = None  # names of the splits, of data sets that have several; null: the usual ones
    val_split: str | None = None  # null: val is cut from the training split
    test_split: str | None = None
    list: str | None = None  # training list of voc_segmentation: train | trainaug
    classes: Names | None = None  # of voc_detection, in the order of the labels; null: all in the training list

    def options(self) -> dict[str, Any]:
        """What only some data sets have, as far as it is given."""
        some = ("mean", "std", "list", "train_split", "val_split", "test_split", "classes")
        return {key: value for key in some if (value := getattr(self, key)) is not None}


@dataclass(frozen=True)
class AugmentConfig:
    crop_padding: int = 0
    flip: bool = False
    scale_min: float = 1.0  # of segmentation and detection: the longer side becomes U(min, max) * image_size
    scale_max: float = 1.0
    photometric: float = 0.0  # brightness, contrast and saturation times U(1 - p, 1 + p) each


@dataclass(frozen=True)
class RecipeConfig:
    name: str = "???"
    epochs: int = 1
    batch_size: int = 32
    eval_batch_size: int = 256
    accumulate: int = 1  # micro-batches per optimizer step; batch_size is their sum
    lr: float = 0.1  # peak, at this batch size
    lr_schedule: str = "cosine"
    warmup_epochs: float = 0.0
    milestones: list[float] = field(default_factory=list)  # epochs, for lr_schedule=step
    lr_decay: float = 0.1  # factor at a milestone of step, halving or exponential
    decay_epochs: float = 1.0  # epochs between the decays of lr_schedule=exponential
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = (
        1e-4  # on weights of convolutions and classifier, biases of the classifier; never on BatchNorm
    )
    grad_clip: float | None = None  # largest norm of all gradients together
    ema_decay: float | None = None  # evaluate an exponential moving average of the weights
    precision: str = "float32"
    sync_batchnorm: bool = False  # over the batches of all ranks together; GPUs only
    eval_every: int = 1  # epochs between evaluations; the last epoch always is one
    augment: AugmentConfig = field(default_factory=AugmentConfig)


@dataclass
class LayerConfig:
    """A layer at sites. A field that is null does not exist for this layer, and its knob is refused."""

    name: str = "???"
    keep_prob: float | None = None
    block_size: int | None = None
    groups: list[int] | None = None
    skip: bool | None = None  # on the shortcut as well as on the conv branch
    schedule: str | None = None
    group_divisor: float = 1.0  # the drop rate is divided by this once per group before the last
    group_shares: list[float] | None = None  # instead: the share of the drop rate that groups 1, 2, ... get


@dataclass
class InputConfig:
    cutout: float | None = None  # side of the square as a share of the image's
    autoaugment: str | None = None  # torchvision's policy imagenet | cifar10 | svhn; auto: by the size of the images


@dataclass
class LossConfig:
    label_smoothing: float | None = None


@dataclass
class RegularizerConfig:
    layer: LayerConfig | None = None
    input: InputConfig | None = None
    loss: LossConfig | None = None
    label: str = ""  # what reports and pictures call it; the name where it is empty
    colour: str | None = None  # of its rows in pictures, "#rrggbb"


@dataclass(frozen=True)
class PaperConfig:
    """The numbers of the paper that an experiment stands beside; absent ones are unknown.

    Args:
        place: table and row, or figure and line; differences are taken within one table or figure.
        certainty: where the numbers were read.
        metrics: [mean] or [mean, standard deviation] by the name of the metric, in its unit.
        curve: of a figure, by the name of the metric: its values by keep_prob.
    """

    place: str = ""
    certainty: str = ""
    metrics: dict[str, list[float]] = field(default_factory=dict)
    curve: dict[str, dict[float, float]] = field(default_factory=dict)


def paper_from(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a `PaperConfig`, also of runs from before its numbers were keyed by metric."""
    old = {"top1", "top1_std", "top5", "top5_std"} & set(values)
    curve = values.get("curve") or {}
    if not old and all(isinstance(points, dict) for points in curve.values()):
        return values
    metrics = {
        name: [number for number in (values.get(name), values.get(f"{name}_std")) if number is not None]
        for name in ("top1", "top5")
        if values.get(name) is not None
    }
    kept = {key: values.get(key) or "" for key in ("place", "certainty")}
    return {**kept, "metrics": metrics, "curve": {"top1": curve} if curve else {}}


@dataclass(frozen=True)
class ClaimConfig:
    """A claim that the rows of a sweep speak to: rows that are alike but for one column are a cell.

    Args:
        says: the claim, in words, such as "block 7 beats block 1".
        column: a column of the report's runs.csv.
        better, worse: the values of that column whose difference is taken, as runs.csv spells them.
        where: columns and values of the rows it is about; empty for all.
    """

    says: str = ""
    column: str = ""
    better: str = ""
    worse: str = ""
    where: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyConfig:
    """What a sweep declares before its first run, for its report; no part of any run.

    Args:
        headline: which number is the result, in words.
        margin: differences within +- this many points are of no interest ("equivalent").
        keep_prob: the candidates that each method's keep_prob is chosen from, on val.
        pilot_seed: the seed of the runs that choose; they enter no row.
        pilot_sweep: the sweep that has them, where it is another one.
        limitations: sentences that the report ends with.
        claims: what the rows are to answer.
    """

    headline: str = ""
    margin: float = 0.5
    keep_prob: list[float] = field(default_factory=list)
    pilot_seed: int | None = None
    pilot_sweep: str = ""
    limitations: list[str] = field(default_factory=list)
    claims: list[ClaimConfig] = field(default_factory=list)


@dataclass
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    regularizer: dict[str, RegularizerConfig] = field(default_factory=dict)
    experiment: str | None = None
    paper: PaperConfig = field(default_factory=PaperConfig)
    study: StudyConfig = field(default_factory=StudyConfig)  # of a sweep
    # Knobs
    keep_prob: float | None = None
    block_size: int | None = None
    groups: list[int] | None = None
    skip: bool | None = None
    schedule: str | None = None
    label_smoothing: float | None = None
    seed: int = 1
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    lr_schedule: str | None = None
    # How it is run: none of these changes what is computed, so they may change on resume
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
    estimate: bool = False
    jobs: str = "1"  # runs of a sweep at a time: a number, or auto


T = TypeVar("T")


def nearest(word: str, known: Iterable[str]) -> str:
    """' (did you mean 'x'?)' for the most similar known word, or ''."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""


def one_of(key: str, value: str, known: Iterable[str]) -> None:
    """Raise UserError unless `value` is one of the known names."""
    known = list(known)
    if value not in known:
        raise UserError(f"{key}={value}: unknown{nearest(value, known)}; choose one of {', '.join(known)}")


def check(config: Any, schema: type[T]) -> T:
    """Merge a composed configuration into its dataclass: no other key, every value of its type.

    A plain structured config lets `+typo=1` through; merging into a fresh one does not.

    Raises:
        UserError: one line that names the key, and the nearest valid one.
    """
    try:
        target = OmegaConf.structured(schema)
        _make_writable(target)
        merged = OmegaConf.merge(target, config)
        missing = sorted(OmegaConf.missing_keys(merged))
        if missing:
            raise UserError(f"{missing[0]} has no value")
        result = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(explain(error, schema)) from error
    assert isinstance(result, schema)
    return result


def _make_writable(node: Any) -> None:
    """Frozen dataclasses come as read-only nodes, which a merge could not fill."""
    if isinstance(node, DictConfig) and not node._is_none():
        OmegaConf.set_readonly(node, False)
        for key in node:
            _make_writable(node._get_node(key))


_EXPECTED = {  # a part of OmegaConf's message -> what the user should have given
    "to Float": "a number",
    "to Integer": "a whole number",
    "valid bool": "true or false",
    "is not a ListConfig": "a list such as [3,4]",
    "not a primitive": "a single value",
}


def explain(error: OmegaConfBaseException, schema: type) -> str:
    """OmegaConf's message as one line that names the key and, for an unknown one, the nearest valid key."""
    key = getattr(error, "full_key", None) or ""
    first = str(error).splitlines()[0]
    if "not in" in first and re.match(r"Key '", first):
        parent, _, name = key.rpartition(".")
        return f"unknown key '{key}'{nearest(name, keys_under(schema, parent))}"
    value = re.search(r"[Vv]alue:? '?(?!assigned)([^' ]*)'?", first)
    for sign, wanted in _EXPECTED.items():
        if sign in first and key:
            return f"{key}={value[1]}: expected {wanted}" if value else f"{key}: expected {wanted}"
    return f"{key}: {first}" if key else first


def keys_under(schema: type, parent: str = "") -> list[str]:
    """The names valid one level below a dotted path of the schema ('' for the top level)."""
    node: Any = schema()
    for part in filter(None, parent.split(".")):
        node = getattr(node, part, None)
        if node is None:
            return []
    return [f.name for f in fields(node)] if is_dataclass(node) else []


def all_keys(schema: type = Config) -> list[str]:
    """Every dotted key of the schema."""
    return _dotted(schema(), "")


def _dotted(node: Any, prefix: str) -> list[str]:
    names = []
    for f in fields(node):
        names.append(prefix + f.name)
        value = getattr(node, f.name)
        if is_dataclass(value):
            names += _dotted(value, f"{prefix}{f.name}.")
    return names


def load_yaml(path: Path) -> dict[str, Any]:
    """The plain values of a YAML file.

    Raises:
        UserError: if the file is missing or damaged.
    """
    try:
        values = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except Exception as error:
        raise UserError(f"{path}: not a readable YAML file ({str(error).splitlines()[0]})") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a configuration")
    return {str(key): value for key, value in values.items()}
