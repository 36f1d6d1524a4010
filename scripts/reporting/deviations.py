"""Differences between the setting of a sweep and the paper's, read from the configurations of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from configs.groups import PARTS, choices, named
from scripts.reporting.names import label_of
from scripts.reporting.runs import Record, Sweep, flattened

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
# Paths, and what follows from another value that is listed: no deviations of their own.
SILENT = ("root", "download", "model_width", "on_bad_image", "decoder", "eval_batch_size", "decay_epochs")
WHOLE = ("data.train_subset",)
NAMES = {"data.name": "data", "model.name": "model", "recipe.name": "recipe", "data.train_subset": "training images"}


def deviations(sweep: Sweep) -> list[tuple[str, str, str]]:
    """(what, here, in the paper) for everything in which the runs of a sweep differ from the paper's setting.

    None where no row stands beside one of the paper's.
    """
    task = sweep.runs[0]["task"]
    paper_values = paper_setting(task)
    if not paper_values or not any(row["paper"].get("place") for row in sweep.rows):
        return []
    found = []

    # Every value of the paper's configuration that the runs do not have.
    defaults = not_silent({part: asdict(schema()) for part, schema in PARTS.items()})  # of keys newer than a run
    settings = [{**defaults, **not_silent({part: run["plan"][part] for part in PARTS})} for run in sweep.runs]
    for key, paper in paper_values.items():
        values = [setting.get(key) for setting in settings]
        here = list(dict.fromkeys("all" if key in WHOLE and v is None else shown(v) for v in values))
        if here != [shown(paper)]:
            found.append((NAMES.get(key, key), ", ".join(here), shown(paper)))

    counts = sorted({len(row["runs"]) for row in sweep.rows})
    stated = RUNS_A_ROW.get(task)
    if counts != [stated]:
        made = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
        found.append(("runs a row", made, str(stated or "not known")))

    # What no single key names.
    if any(body_of(run) in BASIC_BLOCKS for run in sweep.runs):
        sites = "of basic blocks, this project's choice"
        found.append(("sites of a block", sites, "four in a bottleneck; the released code passes basic blocks over"))
    batches = {micro_batch(run) for run in sweep.runs}
    if task == "classification" and batches != {128}:
        what = "micro-batch of a device, over which BatchNorm and DropBlock normalise"
        found.append((what, ", ".join(map(str, sorted(batches))), "128 (a core)"))
    for what, option in sorted({option for run in sweep.runs for option in unstated(run)}):
        found.append((what, option, "not known"))
    return found


def paper_setting(task: str) -> dict[str, Any]:
    """The paper's values by dotted name; {} where this project has no configuration of them."""
    names = PAPER.get(task, {})
    if not names or any(name not in choices(part) for part, name in names.items()):
        return {}
    files = {part: asdict(named(part, name)) for part, name in names.items()}
    return {**not_silent(files), "model.width": 64, "model.stem": "imagenet", "data.train_subset": "all"}


def not_silent(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted name, but for those that are no deviations of their own."""
    return {key: value for key, value in flattened(values).items() if not {*key.split(".")} & {*SILENT, "defaults"}}


def body_of(run: Record) -> str:
    return str(run["plan"]["model"]["options"].get("body", run["model"]))


def micro_batch(run: Record) -> int:
    ranks = max(environment.get("world_size", 1) for environment in run["environments"])
    recipe = run["plan"]["recipe"]
    return int(recipe["batch_size"] // (recipe["accumulate"] * ranks))


def unstated(run: Record) -> list[tuple[str, str]]:
    """(regularizer, its option here) for the numbers of image regularizers, of which the paper states none."""
    image = run["plan"]["data"]["image_size"]
    return [
        (label_of([method["name"]], run["styles"]), f"{key} {value:g}, images of {image} pixels")
        for method in run["methods"]
        for key, value in method["options"].items()
        if method["kind"] == "image" and isinstance(value, int | float)
    ]


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
