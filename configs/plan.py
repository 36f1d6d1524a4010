"""The plan: one run, complete and normalised. Everything behind the entry scripts sees the plan only."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from configs.schema import (
    AugmentConfig,
    DataConfig,
    ModelConfig,
    PaperConfig,
    RecipeConfig,
    UserError,
    check,
    paper_from,
)

CONFIGS = Path(__file__).parent
# Fields that came after the first runs: they are part of a plan's identity only where they differ from their default.
ADDED_LATER = {
    *("prepared", "title", "list", "mean", "std", "task", "train_split", "val_split", "test_split", "classes"),
    *("sync_batchnorm", "scale_min", "scale_max", "photometric"),
}


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
        recipe = plan["recipe"]
        parts = ((plan["data"], DataConfig()), (recipe, RecipeConfig()), (recipe["augment"], AugmentConfig()))
        for part, defaults in parts:
            for key in ADDED_LATER & part.keys():
                if part[key] == getattr(defaults, key):
                    del part[key]
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
        place = f"{self.data.title or self.data.name}-{network}"
        return Path(self.runtime.output_root, place, f"{self.variant}-{self.hash()}", f"seed-{self.seed}")


def plan_from(values: dict[str, Any]) -> Plan:
    """A plan from the nested plain values that `dataclasses.asdict` made of one, each part checked.

    Raises:
        UserError: if a key or a value does not belong there.
    """
    parts = {"model": ModelConfig, "data": DataConfig, "recipe": RecipeConfig, "layer": LayerPlan}
    parts |= {"paper": PaperConfig, "runtime": Runtime}
    values = {**values, "paper": paper_from(values.get("paper") or {})}
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
