"""How the setting of a sweep differs from the paper's, read from the configurations of both."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from configs.plan import PARTS, choices, written
from scripts.reporting.sweep import Sweep, flattened

# The paper's experiments by task, as files of this project; a task whose files are not all here has no deviations.
PAPER = {
    "classification": {"data": "imagenet", "model": "resnet50", "recipe": "imagenet_270"},
    "detection": {"data": "coco", "model": "retinanet", "recipe": "coco_scratch_150"},
    "segmentation": {"data": "voc_segmentation", "model": "segmentation_fpn", "recipe": "voc_scratch_500"},
}
NAMES_OF = {
    "classification": "ImageNet, ResNet-50, peak",
    "detection": "COCO, RetinaNet ResNet-50, partly unverified",
    "segmentation": "VOC 2012, FPN ResNet-101, partly unverified",
}
RUNS_A_ROW = {"classification": 3}  # of the paper, where it is stated
BASIC_BLOCKS = ("resnet18", "resnet34")
# Where the files are, and what follows from another value that is listed: no deviations of their own.
SILENT = ("root", "download", "model_width", "on_bad_image", "decoder", "eval_batch_size", "decay_epochs")
WHOLE = ("data.train_subset",)
MICRO_BATCH = "micro-batch of a device, over which BatchNorm and DropBlock normalise"
SILENT_PAPER = (
    "Where the paper does not state a value, such as the length of the warm-up, its column has that of the authors' "
    "released code."
)
NAMES = {"data.name": "data", "model.name": "model", "recipe.name": "recipe", "data.train_subset": "training images"}


def task_of(sweep: Sweep) -> str:
    return str(sweep.runs[0].plan["data"].get("task") or "classification")


def paper_setting_text(sweep: Sweep) -> str:
    """The paper's data and network, for the axes of its numbers."""
    return NAMES_OF.get(task_of(sweep), "the paper's setting")


def paper_setting(task: str) -> dict[str, Any]:
    """The paper's values by dotted name; {} where this project has no configuration of them."""
    names = PAPER.get(task, {})
    if not names or any(name not in choices(part) for part, name in names.items()):
        return {}
    files = {part: asdict(written(part, name)) for part, name in names.items()}
    return {**not_silent(files), "model.width": 64, "model.stem": "imagenet", "data.train_subset": "all"}


def not_silent(values: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted name, but for those that are no deviations of their own."""
    return {key: value for key, value in flattened(values).items() if not {*key.split(".")} & {*SILENT, "defaults"}}


def deviations(sweep: Sweep) -> list[tuple[str, str, str]]:
    """(what, here, in the paper) for everything in which the runs of a sweep differ from the paper's setting.

    None where no row stands beside one of the paper's.
    """
    paper_values = paper_setting(task_of(sweep))
    if not paper_values or not any(row.paper.get("place") for row in sweep.rows):
        return []
    defaults = not_silent({part: asdict(schema()) for part, schema in PARTS.items()})  # of keys newer than a run
    settings = [{**defaults, **not_silent({part: run.plan[part] for part in PARTS})} for run in sweep.runs]
    found = []
    for key, paper in paper_values.items():
        values = [setting.get(key) for setting in settings]
        here = list(dict.fromkeys("all" if key in WHOLE and v is None else shown(v) for v in values))
        if here != [shown(paper)]:
            found.append((NAMES.get(key, key), ", ".join(here), shown(paper)))
    seeds = sorted({len(row.runs) for row in sweep.rows})
    stated = RUNS_A_ROW.get(task_of(sweep))
    if seeds != [stated]:
        made = " to ".join(str(n) for n in dict.fromkeys((seeds[0], seeds[-1])))
        found.append(("runs a row", made, str(stated or "not known")))
    return found + beyond_the_configuration(sweep)


def beyond_the_configuration(sweep: Sweep) -> list[tuple[str, str, str]]:
    """Deviations that no key names."""
    plans = [run.plan for run in sweep.runs]
    found = []
    bodies = {plan["model"]["options"].get("body", plan["model"]["name"]) for plan in plans}
    if bodies & {*BASIC_BLOCKS}:
        sites = "of basic blocks, this project's choice"
        found.append(("sites of a block", sites, "four in a bottleneck; the released code passes basic blocks over"))
    ranks = [max(environment.get("world_size", 1) for environment in run.environments) for run in sweep.runs]
    recipes = [plan["recipe"] for plan in plans]
    batches = {r["batch_size"] // (r["accumulate"] * n) for r, n in zip(recipes, ranks, strict=True)}
    if task_of(sweep) == "classification" and batches != {128}:
        text = ", ".join(map(str, sorted(batches)))
        found.append((MICRO_BATCH, text, "128 (a core)"))
    cutouts = sorted({(plan["cutout"], plan["data"]["image_size"]) for plan in plans if plan["cutout"]})
    if cutouts:
        sides = ", ".join(f"{side} of {image} pixels" for side, image in cutouts)
        found.append(("side of Cutout's square", sides, "not known"))
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
