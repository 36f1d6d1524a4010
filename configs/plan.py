"""The plan: the resolved configuration of one run. Code downstream of the entry scripts sees nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from configs.checking import UserError, check
from configs.groups import PARTS, in_order
from configs.paper import PaperConfig, paper_from
from configs.schema import KINDS, DataConfig, LayerConfig, MethodConfig, ModelConfig, RecipeConfig, RunOptions


@dataclass(frozen=True)
class Runtime(RunOptions):
    """Options that change nothing of what is computed, and the place of the data; no part of a run's identity."""

    data_root: str | None = None
    download: bool = True


@dataclass(frozen=True)
class Plan:
    """One training run, every value decided.

    Args:
        regularizer: the chosen names, in the order in which they act.
        layer, companions: the layers of these, the first one's name and knobs being the run's.
        methods: what they change of images, batches and the loss, in this order.
        headline: the metric that chooses the best epoch; None: the task's own.
        revision: number of the last change of the code that moved the numbers of this plan (see REVISIONS).
        pilot: the run chooses a value on val, and is no row of a report.
    """

    model: ModelConfig
    data: DataConfig
    recipe: RecipeConfig
    regularizer: list[str]
    layer: LayerConfig | None = None
    companions: list[LayerConfig] = field(default_factory=list)
    methods: list[MethodConfig] = field(default_factory=list)
    headline: str | None = None
    seed: int = 1
    experiment: str | None = None
    paper: PaperConfig = field(default_factory=PaperConfig)
    runtime: Runtime = field(default_factory=Runtime)
    revision: int = 1
    pilot: bool = False
    # How this very plan was made. No fields: a plan that `replace` makes of it is not what these overrides make.
    overrides: ClassVar[tuple[str, ...]] = ()
    notes: ClassVar[tuple[str, ...]] = ()

    def made_by(self, overrides: Sequence[str], notes: Sequence[str]) -> Plan:
        """This plan, with the overrides that made it and what its resolution noted for the user."""
        object.__setattr__(self, "overrides", tuple(overrides))
        object.__setattr__(self, "notes", tuple(notes))
        return self

    @property
    def layers(self) -> list[LayerConfig]:
        """All layers, the first one's name and knobs being the run's."""
        return [*([self.layer] if self.layer else []), *self.companions]

    def options_of(self, kind: str) -> dict[str, dict[str, Any]]:
        """The methods of a kind by name, each with the options that its class is called with."""
        return {method.name: method.options for method in self.methods if method.kind == kind}

    def values(self) -> dict[str, Any]:
        """Nested plain values, as plan.yaml and summary.json hold them; `plan_from` reads them."""
        values = asdict(self)
        methods = values.pop("methods")
        if self.revision == 1:
            del values["revision"]
        if not self.pilot:
            del values["pilot"]
        return {**values, **_under_old_keys(self, methods)}

    def identity(self) -> dict[str, Any]:
        """Everything that decides what the run computes; neither what may change on resume nor the names it goes by."""
        return _without_names(self.values())

    def hash(self) -> str:
        """Six hexadecimal digits that all seeds of this plan share.

        Taken over what differs from the defaults of the dataclasses: a field that is added later renames no run.
        """
        changed = _without_names(_changed(self))
        for key in ("seed", "methods"):
            changed.pop(key, None)
        methods = _under_old_keys(self, [asdict(method) for method in self.methods])
        changed |= {key: value for key, value in methods.items() if value}
        return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:6]

    @property
    def variant(self) -> str:
        """Short readable name of what is tried; the hash behind it tells apart what the name leaves out.

        Regularizers, block size and keep_prob; groups, branches and schedule where they are not the paper's; epochs.
        """
        parts, layer = ["+".join(self.regularizer)], self.layer
        if layer is not None:
            parts += [f"b{layer.block_size}"] if layer.block_size else []
            parts += [f"kp{layer.keep_prob:g}"]
            parts += ["g" + "".join(map(str, layer.groups or []))] if layer.groups not in ([3, 4], [0]) else []
            parts += ["conv"] if layer.skip is False else []
            parts += [str(layer.schedule)] if layer.schedule != "linear" else []
        return "-".join([*parts, f"e{self.recipe.epochs}"])

    def run_dir(self) -> Path:
        """The run directory: a function of the plan, so equal plans meet in one."""
        if self.runtime.run_dir:
            return Path(self.runtime.run_dir)
        network = f"{self.model.library}-{self.model.name}" if self.model.library else self.model.name
        place = f"{self.data.title or self.data.name}-{network}"
        return Path(self.runtime.output_root, place, f"{self.variant}-{self.hash()}", f"seed-{self.seed}")


# Bytes of a name within a directory's, and of a directory's own; file systems take 255, and names of files are added.
LONGEST_NAME, LONGEST_FOLDER = 100, 200
# A layout of folders rather than one data set: VOC's serves many.
OWN_DATA = ("folder", "segmentation_folder", "voc_detection")
# Data sets that need no files of the user's, so that data.root has nothing to say.
MADE_DATA = ("digits", "fake", "digit_masks", "digit_boxes")


def own_title(name: str, root: str) -> str:
    """The name of one's own data in run and sweep directories: the reader's, and that of the folder."""
    readable = re.sub(r"[^\w.-]+", "-", Path(os.path.expanduser(root)).absolute().name).strip("-.")
    return f"{name}-{readable or 'data'}"


def shortened(name: str, longest: int = LONGEST_NAME) -> str:
    """A name that a file system takes; of a long one the beginning, and a hash of the whole."""
    if len(name.encode()) <= longest:
        return name
    return f"{name.encode()[:longest].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


# DataConfig fields excluded from the hash. on_bad_image: skipped images are recorded anyway.
NOT_OF_IDENTITY = ("root", "download", "model_width", "on_bad_image")


COARSEST_STRIDE = {"imagenet": 32, "stride2": 16, "small": 8}  # of the last group of a ResNet with this stem
BRANCHES = ("drop_path", "stochastic_depth", "shakedrop")  # layers that drop whole residual branches

# Changes of the code that moved the numbers of some plans: the revision, what changed, and the plans that it concerns.
# These get a directory of their own; what was trained before keeps its revision, and its number.
REVISIONS: list[tuple[int, str, Callable[[Plan], bool]]] = [
    (
        2,
        "recipe.accumulate: micro-batches count by their labelled pixels or positive anchors, not by their images",
        lambda plan: plan.recipe.accumulate > 1 and plan.data.task != "classification",
    ),
    (
        3,
        "segmentation_fpn: levels of the pyramid meet by position, not by their corners, another network where "
        "image_size - 1 is no multiple of the coarsest stride",
        lambda plan: (
            plan.model.name.startswith("segmentation_fpn")
            and (plan.data.image_size - 1) % COARSEST_STRIDE[plan.model.stem or "imagenet"] != 0
        ),
    ),
    (
        4,
        "layers in a head: every level of the pyramid has a mask of its own, also where two levels have one size",
        lambda plan: (
            plan.model.name.startswith(("segmentation_fpn", "retinanet"))
            and any("head" in (layer.groups or []) for layer in plan.layers)
        ),
    ),
    (
        5,
        "drop path, stochastic depth, ShakeDrop and depth_rule=linear in EfficientNet, MobileNet and the like: a unit "
        "without a shortcut is no branch to drop",
        lambda plan: (
            plan.model.library is not None
            and not any(name in plan.model.name for name in ("resne", "regnet", "densenet", "convnext", "vgg"))
            and any(layer.name in BRANCHES or layer.depth_rule == "linear" for layer in plan.layers)
        ),
    ),
]
OF_THE_NETWORK = (3,)  # those that move what given weights compute


def revision_of(plan: Plan) -> int:
    """The revision of the code that this plan would be trained with today."""
    return max((revision for revision, _, concerns in REVISIONS if concerns(plan)), default=1)


def changed_since(plan: Plan, only: Sequence[int] | None = None) -> list[str]:
    """The changes of the code since a plan's revision that move its numbers. only: of these revisions."""
    found = [(revision, what) for revision, what, concerns in REVISIONS if concerns(plan)]
    return [what for revision, what in found if revision > plan.revision and (only is None or revision in only)]


def _under_old_keys(plan: Plan, methods: list[dict[str, Any]]) -> dict[str, Any]:
    """The methods of a plan under the keys that three of them had as fields of it, so that no run directory moves.

    Args:
        plan: the plan; Cutout's side was in pixels, and AutoAugment's policy decided by the size of its images.
        methods: plain values of them.
    """
    options = {method["name"]: method["options"] for method in methods}
    side, policy = options.get("cutout", {}).get("cutout", 0.0), options.get("autoaugment", {}).get("autoaugment")
    size = plan.data.image_size
    old = {
        "cutout": round(side * size),
        "autoaugment": ("imagenet" if size > 64 else "cifar10") if policy == "auto" else policy,
        "label_smoothing": float(options.get("label_smoothing", {}).get("label_smoothing", 0.0)),
    }
    others = [method for method in methods if method["name"] not in old]
    return {**old, "methods": others} if others else old


def _from_old_keys(values: dict[str, Any], image_size: int) -> list[MethodConfig]:
    """The inverse of `_under_old_keys`; takes the keys out of the values of a plan."""
    side, policy = values.pop("cutout", 0), values.pop("autoaugment", None)
    smoothing = values.pop("label_smoothing", 0.0)
    old = [
        MethodConfig("autoaugment", "image", {"autoaugment": policy}) if policy else None,
        MethodConfig("cutout", "image", {"cutout": side / image_size}) if side else None,
        MethodConfig("label_smoothing", "loss", {"label_smoothing": smoothing}) if smoothing else None,
    ]
    methods = [check(method, MethodConfig) for method in values.pop("methods", [])]
    return sorted([*filter(None, old), *methods], key=lambda method: (KINDS.index(method.kind), method.name))


def _without_names(plan: dict[str, Any]) -> dict[str, Any]:
    """The nested values of a plan without what is no part of its identity."""
    kept = {key: value for key, value in plan.items() if key not in ("runtime", "experiment", "paper", "pilot")}
    kept["data"] = {k: v for k, v in plan["data"].items() if k not in NOT_OF_IDENTITY}
    return kept


def _changed(value: Any) -> Any:
    """A dataclass as nested plain values, without the fields that have their default; one without default stays."""
    if isinstance(value, list):
        return [_changed(part) for part in value]
    if not is_dataclass(value):
        return value
    defaults = {f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields(value)}
    given = {f.name: getattr(value, f.name) for f in fields(value)}
    return {name: _changed(part) for name, part in given.items() if part != defaults[name]}


def plan_from(values: dict[str, Any]) -> Plan:
    """A plan from the nested plain values that `Plan.values` made of one; fields of later versions get defaults.

    Raises:
        UserError: if a key or a value does not belong there.
    """
    parts = {**PARTS, "layer": LayerConfig, "runtime": Runtime}
    try:
        built = {k: _part(parts[k], json.dumps(v)) if k in parts and v is not None else v for k, v in values.items()}
        built["paper"] = check(paper_from(values.get("paper") or {}), PaperConfig)  # whose curves have numbers as keys
        built["companions"] = [_part(LayerConfig, json.dumps(layer)) for layer in values.get("companions", [])]
        built["methods"] = _from_old_keys(built, built["data"].image_size)
        built["regularizer"] = in_order(built["regularizer"])
        return Plan(**built)
    except (KeyError, TypeError) as error:
        raise UserError(f"not a plan of this version: {error}") from error


@lru_cache(maxsize=1024)
def _part(schema: type, written: str) -> Any:
    """A part of a plan from its values in JSON, checked once: the runs of a sweep share most of theirs."""
    return check(json.loads(written), schema)
