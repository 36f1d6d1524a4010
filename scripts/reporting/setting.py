"""How the setting of a sweep differs from the paper's, read from the configurations of both."""

from __future__ import annotations

from typing import Any

from configs.checking import load_yaml
from configs.plan import CONFIGS
from scripts.reporting.sweep import Sweep, flattened

# The paper's ImageNet experiments, as files of this project.
PAPER = {"data": "imagenet", "model": "resnet50", "recipe": "imagenet_270"}
# Where the files are, and what follows from another value that is listed: no deviations of their own.
SILENT = ("root", "download", "model_width", "on_bad_image", "decoder", "options", "eval_batch_size", "decay_epochs")
WHOLE = ("data.train_subset",)
NAMES = {"data.name": "data", "model.name": "model", "recipe.name": "recipe", "data.train_subset": "training images"}


def paper_setting() -> dict[str, Any]:
    """The paper's values by dotted name."""
    files = {part: load_yaml(CONFIGS / part / f"{name}.yaml") for part, name in PAPER.items()}
    return {**not_silent(files), "model.width": 64, "model.stem": "imagenet", "data.train_subset": "all"}


def not_silent(values: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted name, but for those that are no deviations of their own."""
    return {key: value for key, value in flattened(values).items() if not {*key.split(".")} & {*SILENT, "defaults"}}


def deviations(sweep: Sweep) -> list[tuple[str, str, str]]:
    """(what, here, in the paper) for everything in which the runs of a sweep differ from the paper's setting."""
    settings = [not_silent({part: run.plan[part] for part in PAPER}) for run in sweep.runs]
    found = []
    for key, paper in paper_setting().items():
        values = [setting.get(key) for setting in settings]
        here = list(dict.fromkeys("all" if key in WHOLE and v is None else shown(v) for v in values))
        if here != [shown(paper)]:
            found.append((NAMES.get(key, key), ", ".join(here), shown(paper)))
    seeds = sorted({len(row.runs) for row in sweep.rows})
    if seeds != [3]:
        found.append(("runs a row", " to ".join(str(n) for n in dict.fromkeys((seeds[0], seeds[-1]))), "3"))
    return found


def shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float | int):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(shown(item) for item in value) or "none"
    return str(value)
