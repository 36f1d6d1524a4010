"""Rows of tables, jobs of sweeps and kept runs: where each runs and which number of the paper stands beside it.

    python -m tests.golden.test_tables          # writes tests/golden/tables.json anew

Run it only for a change that is meant to move them, and say in CHANGELOG.md which moved and why.
"""

from __future__ import annotations

import json
import tarfile
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from configs.command_line import check_arguments
from configs.compose import compose_jobs, plan_of
from configs.groups import CONFIGS, choices
from configs.plan import plan_from
from configs.resolve import resolve_composed

FILE = Path(__file__).with_name("tables.json")
KEPT = CONFIGS.parent / "docs" / "results"

ROOT = "data.root=/data"
OWN = ("data=folder", ROOT, "data.exif=ignore", "model=resnet18", "recipe=cifar_subset")
# The data, network and recipe that the rows of a table are meant for.
SETTING: dict[str, tuple[str, ...]] = {
    "amoebanet": ("data=imagenet", ROOT, "data.image_size=331", "recipe=amoebanet"),
    "bccd": ("data=voc_detection", ROOT, "data.exif=ignore", "model=retinanet_small"),
    "camvid": ("data=camvid", ROOT),
    "coco": ("data=coco", ROOT, "recipe=coco_scratch_150"),
    "cutmix_table3": ("data=imagenet", ROOT, "recipe=cutmix_imagenet"),
    "cutmix_table5": ("data=cifar100", "model=pyramidnet200", "recipe=cutmix_cifar"),
    "fig3": ("data=imagenet", ROOT, "recipe=imagenet_270"),
    "fig4": ("data=imagenet", ROOT, "recipe=imagenet_270"),
    "fig5": ("data=imagenet", ROOT, "recipe=imagenet_270"),
    "findings_small": OWN,
    "fractalnet": ("data=cifar10", "recipe=fractalnet"),
    "imagenette_table": ("data=imagenette", ROOT, "data.prepared=true"),
    "rivals": ("data=digits",),
    "schedules_overfit": OWN,
    "schedules_underfit": OWN,
    "table1": ("data=imagenet", ROOT, "recipe=imagenet_270"),
    "table1_small": OWN,
    "voc": ("data=voc_segmentation", ROOT),
    "where": ("data=digit_masks",),
}
# What a row needs beside its table's setting.
NEEDS = {
    "coco/finetune": ("data=coco", ROOT, "model.pretrained=/weights.pth"),
    **{
        f"fractalnet/{name}_cifar100": ("data=cifar100", "recipe=fractalnet")
        for name in ("fractal20", "fractal20_regularized", "fractal40")
    },
}
OWN_ROOT = ("bccd", "camvid", "findings", "imagenette", "keep_prob", "photographs", "schedules", "table1_small", "voc")


def row(name: str) -> dict[str, Any]:
    """The directory of `experiment=NAME`, and the paper's numbers beside it."""
    plan = plan_of(f"experiment={name}", *NEEDS.get(name, SETTING[name.partition("/")[0]]))
    return {"run_dir": str(plan.run_dir()), "experiment": plan.experiment, "paper": asdict(plan.paper)}


def jobs(sweep: str) -> list[list[str]]:
    """The jobs of `+sweep=NAME` for one of its seeds: directory, experiment, and overrides in alphabetical order."""
    found = []
    root = [ROOT] if sweep.startswith(OWN_ROOT) else []
    for overrides, config in compose_jobs(check_arguments([f"+sweep={sweep}", *root, "seed=2"])):
        plan = resolve_composed(config, grid=True)
        found.append([str(plan.run_dir()), str(plan.experiment), " ".join(sorted(overrides))])
    return found


def kept_plans(folder: Path) -> dict[str, dict[str, Any]]:
    """Run directory -> plan.yaml, one seed of each configuration of a kept sweep."""
    plans: dict[str, dict[str, Any]] = {}
    with tarfile.open(folder / "finished_runs.tar.xz") as archive:
        for member in archive:
            place = PurePosixPath(member.name)
            if place.name == "plan.yaml" and not any(str(place.parent.parent) in known for known in plans):
                file = archive.extractfile(member)
                assert file is not None
                plans[str(place.parent)] = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return plans


def committed(part: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(FILE.read_text())[part]
    return values


def sampled(names: list[str], short: list[str]) -> list[Any]:
    """Parameters of a test, those that are not in the short form marked slow."""
    return [pytest.param(name, marks=[] if name in short else [pytest.mark.slow]) for name in names]


def last_of_each_table(names: list[str]) -> list[str]:
    """The last row of every table."""
    return [*{name.partition("/")[0]: name for name in names}.values()]


ROWS = list(committed("rows")) if FILE.exists() else []
SWEEPS = list(committed("sweeps")) if FILE.exists() else []


def test_every_row_and_sweep_is_listed() -> None:
    assert set(ROWS) == set(choices("experiment"))
    assert set(SWEEPS) == set(choices("sweep"))


@pytest.mark.parametrize("name", sampled(ROWS, last_of_each_table(ROWS)))
def test_a_row_keeps_its_directory_and_the_papers_number(name: str) -> None:
    assert json.loads(json.dumps(row(name))) == committed("rows")[name]


@pytest.mark.parametrize("name", sampled(SWEEPS, ["photographs_small"]))
def test_a_sweep_keeps_its_jobs(name: str) -> None:
    assert jobs(name) == committed("sweeps")[name]


@pytest.mark.parametrize("folder", sorted(path.parent.name for path in KEPT.glob("*/finished_runs.tar.xz")))
def test_kept_plans_load_and_keep_their_directory(folder: str) -> None:
    plans = kept_plans(KEPT / folder)
    assert plans
    for place, values in plans.items():
        own = {**values, "runtime": {**values["runtime"], "output_root": "outputs", "run_dir": None}}
        assert str(plan_from(own).run_dir()) == place


if __name__ == "__main__":
    measured = {
        "rows": {name: row(name) for name in choices("experiment")},
        "sweeps": {name: jobs(name) for name in choices("sweep")},
    }
    FILE.write_text(json.dumps(measured, indent=1) + "\n")
