"""The plan: the resolved configuration of one run. Code downstream of the entry scripts sees nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar

from configs import tables
from configs.checking import UserError, check, load_yaml
from configs.paper import PaperConfig, paper_from
from configs.registered import names_of
from configs.schema import DataConfig, LayerConfig, ModelConfig, RecipeConfig, RunOptions

CONFIGS = Path(__file__).parent
PARTS: dict[str, type] = {"model": ModelConfig, "data": DataConfig, "recipe": RecipeConfig}


@dataclass(frozen=True)
class Runtime(RunOptions):
    """How a run is carried out, and where its data are; no part of its identity."""

    data_root: str | None = None
    download: bool = True


@dataclass(frozen=True)
class Plan:
    """One training run, every value decided."""

    model: ModelConfig
    data: DataConfig
    recipe: RecipeConfig
    regularizer: list[str]
    layer: LayerConfig | None = None
    companions: list[LayerConfig] = field(default_factory=list)  # layers of further regularizers
    cutout: int = 0  # side in pixels
    autoaugment: str | None = None
    label_smoothing: float = 0.0
    seed: int = 1
    experiment: str | None = None
    paper: PaperConfig = field(default_factory=PaperConfig)
    runtime: Runtime = field(default_factory=Runtime)
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

    def identity(self) -> dict[str, Any]:
        """What the run computes: the plan without what may change on resume, and without the names it goes by."""
        return _without_names(asdict(self))

    def hash(self) -> str:
        """Six hexadecimal digits that all seeds of this plan share.

        Taken over what differs from the defaults of the dataclasses: a field that is added later renames no run.
        """
        changed = _without_names(_changed(self))
        changed.pop("seed", None)
        return hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()[:6]

    @property
    def variant(self) -> str:
        """The short readable name of what is tried; the hash behind it tells apart what the name leaves out.

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


def own_title(name: str, root: str) -> str:
    """The name of one's own data in run and sweep directories: the reader's, and that of the folder."""
    readable = re.sub(r"[^\w.-]+", "-", Path(os.path.expanduser(root)).absolute().name).strip("-.")
    return f"{name}-{readable or 'data'}"


def shortened(name: str, longest: int = LONGEST_NAME) -> str:
    """A name that a file system takes; of a long one the beginning, and a hash of the whole."""
    if len(name.encode()) <= longest:
        return name
    return f"{name.encode()[:longest].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"


# Of the data. An image that is left out is listed in the record, whatever the run was asked to do about one.
NOT_OF_IDENTITY = ("root", "download", "model_width", "on_bad_image")


def _without_names(plan: dict[str, Any]) -> dict[str, Any]:
    """The nested values of a plan without what is no part of its identity."""
    kept = {key: value for key, value in plan.items() if key not in ("runtime", "experiment", "paper")}
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
    """A plan from the nested plain values that `dataclasses.asdict` made of one; fields of later versions get defaults.

    Raises:
        UserError: if a key or a value does not belong there.
    """
    parts = {**PARTS, "layer": LayerConfig, "paper": PaperConfig, "runtime": Runtime}
    values = {**values, "paper": paper_from(values.get("paper") or {})}
    try:
        built = {k: check(v, parts[k]) if k in parts and v is not None else v for k, v in values.items()}
        built["companions"] = [check(layer, LayerConfig) for layer in values.get("companions", [])]
        return Plan(**built)
    except TypeError as error:
        raise UserError(f"not a plan of this version: {error}") from error


def choices(group: str) -> list[str]:
    """The names of a configuration group: its YAML files, the rows of tables, and what a script added."""
    if group in ("experiment", "sweep"):
        return sorted(tables.rows()) if group == "experiment" else tables.sweeps()
    folder = CONFIGS / group
    files = {str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml")}
    return sorted(files.union(names_of(group)))


def written(group: str, name: str) -> Any:
    """A model, data set or recipe as its YAML file has it, the defaults filled in."""
    values = load_yaml(CONFIGS / group / f"{name}.yaml")
    return check({key: value for key, value in values.items() if key != "defaults"}, PARTS[group])
