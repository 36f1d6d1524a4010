"""Each table and figure of the paper in one line: what it runs, at the smallest scale, through the entry script."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs import compose
from configs.checking import UserError, check, load_yaml
from configs.command_line import check_arguments, sweep_name, values_given
from configs.compose import config_of, plan_of
from configs.groups import CONFIGS
from configs.paper import PaperConfig
from configs.plan import Plan
from configs.resolve import resolve
from configs.schema import Config
from configs.tables import table_of
from experiment.command import jobs_of
from experiment.sweep import note_command
from scripts import inference_drop, report

SMALL, WHOLE = ("data=fake", "model=resnet18"), ("data=imagenet", "recipe=imagenet_270")
COCO = ("data=coco", "data.root=/coco")


@cache
def plans(sweep: str, scale: tuple[str, ...]) -> list[Plan]:
    """The plan of every job of a sweep, of its first seed alone.

    Hydra composes once an experiment, as it takes a fifth of a second; the sweep's other keys are set after that.
    """
    params = table_of(sweep).axes()
    axes = {key: [value.strip() for value in str(values).split(",")] for key, values in params.items()}
    if "seed" in axes:
        del axes["seed"][1:]
    composed = [config_of(f"+sweep={sweep}", f"experiment={name}", *scale) for name in axes.pop("experiment")]
    found = []
    for config, values in product(composed, product(*axes.values())):
        job = config.copy()
        for key, value in zip(axes, values, strict=True):
            OmegaConf.update(job, key, json.loads(value))
        found.append(resolve(check(job, Config), grid=True)[0])
    return found


# Runs of one seed: jobs that a baseline ignores a knob of meet in one.
RUNS = {"table1": 9, "fig3_keep_prob": 26, "fig4_block_size": 21, "fig4_block_size_small": 21, "fig5_inference": 3}
RUNS["coco_retinanet"] = 5
# The same of sweeps that have a setting of their own and no number of the paper beside them.
STUDIES = {
    "table1_small": 9,
    "findings_small": 10,
    "schedules_overfit": 5,
    "schedules_underfit": 5,
    "photographs_small": 2,
}
# Runs of one seed of sweeps of another task, on the data set that the sweep names or on these.
DENSE = {
    ("voc_segmentation", ("data.root=/data",)): 6,
    ("segmentation_where", ()): 4,
    ("segmentation_where", ("data=camvid", "data.root=/data")): 4,
    ("camvid_where", ("data.root=/data",)): 4,
    ("bccd_where", ("data.root=/data",)): 4,
    ("bccd_long", ("data.root=/data",)): 4,
}


# Composed in the short form as well; tests/golden/test_tables.py has the directory of every job of all.
SHORT = ("table1", "fig3_keep_prob", "fig5_inference", "coco_retinanet", "voc_segmentation", "schedules_underfit")


def cases(*values: Any) -> Any:
    """Parameters of a test, those of sweeps that are not in the short form marked slow."""
    sweep = values[0]
    return pytest.param(*values, marks=[] if sweep in SHORT else [pytest.mark.slow])


@pytest.mark.parametrize(("sweep", "scale"), [cases(*key) for key in DENSE])
def test_a_sweep_of_another_task_is_one_command(sweep: str, scale: tuple[str, ...]) -> None:
    found = plans(sweep, scale)
    assert len({plan.run_dir() for plan in found}) == DENSE[sweep, scale]
    assert {plan.data.task for plan in found} == {"detection" if sweep.startswith("bccd") else "segmentation"}
    assert all(plan.experiment for plan in found)


def test_rows_of_voc_are_the_papers() -> None:
    rows = {plan.run_dir(): plan for plan in plans("voc_segmentation", ("data.root=/data",))}.values()
    found = {(plan.experiment, plan.layer and plan.layer.block_size): plan for plan in rows}
    finetune = found.pop(("voc/finetune", None))
    assert finetune.model.pretrained == "/data/resnet101.pth"
    assert finetune.model.options["freeze_stem"]
    recipe = finetune.recipe
    assert (recipe.epochs, recipe.lr, recipe.milestones, recipe.weight_decay) == (45, 0.02, [25, 35], 1e-5)
    assert [plan.paper.metrics for plan in found.values()] == [{"miou": [47.2]}, {}, {}, {"miou": [53.4]}, {}]
    assert all(plan.recipe.epochs == 500 and plan.model.pretrained is None for plan in found.values())
    layers = [plan.layer for plan in found.values() if plan.layer]
    assert [(layer.block_size, layer.keep_prob, layer.groups) for layer in layers] == [
        (block, 0.2, ["head"]) for block in (1, 4, 16, 48)
    ]


@pytest.mark.parametrize("sweep", [cases(sweep) for sweep in STUDIES])
def test_a_study_is_one_command(sweep: str) -> None:
    found = plans(sweep, ("data.root=/data",))
    assert len({plan.run_dir() for plan in found}) == STUDIES[sweep]
    assert {plan.data.name for plan in found} == {"folder"}
    assert len({repr((plan.recipe, plan.model, plan.data)) for plan in found}) == 1
    values = table_of(sweep).study
    if "pilot_seed" in values:  # the seed that chooses is none of those reported
        assert values["pilot_seed"] not in {plan.seed for plan in found}


SCALES = [*((sweep, SMALL) for sweep in RUNS), ("table1", WHOLE), ("coco_retinanet", COCO)]


@pytest.mark.parametrize(("sweep", "scale"), [cases(*key) for key in SCALES])
def test_every_job_is_a_plan_at_any_scale(sweep: str, scale: tuple[str, ...]) -> None:
    found = plans(sweep, scale)
    assert len({plan.run_dir() for plan in found}) == RUNS[sweep]
    assert {plan.data.name for plan in found} == {scale[0].removeprefix("data=")}
    for plan in found:
        assert plan.experiment is not None
        assert plan.paper.place


def test_rows_of_table_1_are_the_papers() -> None:
    rows = {str(plan.experiment): plan for plan in plans("table1", WHOLE)}
    assert [plan.paper.metrics["top1"][0] for plan in rows.values()] == [
        *(76.51, 76.80, 77.10, 77.41, 76.52, 77.63, 77.17, 78.13, 78.35)
    ]
    layers = {name: plan.layer for name, plan in rows.items() if plan.layer is not None}
    assert {
        name.removeprefix("table1/"): (layer.name, layer.keep_prob, layer.groups) for name, layer in layers.items()
    } == {
        "dropout": ("dropout", 0.7, [3, 4]),
        "spatial_dropout": ("spatial_dropout", 0.9, [3, 4]),
        "drop_path": ("drop_path", 0.9, [4]),
        "dropblock": ("dropblock", 0.9, [3, 4]),
        "dropblock_label_smoothing": ("dropblock", 0.9, [3, 4]),
    }
    assert [name for name, layer in layers.items() if layer.group_divisor != 1.0] == [
        *("table1/dropblock", "table1/dropblock_label_smoothing")
    ]
    values = {name: plan.values() for name, plan in rows.items()}
    assert [values[f"table1/{name}"]["label_smoothing"] for name in ("dropblock", "label_smoothing")] == [0.0, 0.1]
    assert values["table1/cutout"]["cutout"] == 112  # half of 224
    assert values["table1/autoaugment"]["autoaugment"] == "imagenet"
    assert plans("table1", SMALL)[5].values()["autoaugment"] == "cifar10"  # 32 pixels


def test_rows_of_coco_are_the_papers() -> None:
    rows = {str(plan.experiment): plan for plan in plans("coco_retinanet", COCO)}
    assert {plan.recipe.name for plan in rows.values()} == {"coco_scratch_150"}
    assert [plan.paper.metrics["ap"] for plan in rows.values()] == [[36.8], [37.9], [38.3], [38.4], [38.2]]
    blocks = [plan.layer and (plan.layer.block_size, plan.layer.keep_prob) for plan in rows.values()]
    assert blocks == [None, (1, 0.9), (3, 0.9), (5, 0.9), (7, 0.9)]
    assert all("unverified" in plan.paper.certainty for plan in rows.values())  # of AP50 and AP75 at least


def test_fine_tuning_takes_weights_and_its_own_recipe() -> None:
    words = ("experiment=coco/finetune", *COCO)
    with pytest.raises(UserError, match=r"model\.pretrained"):
        plan_of(*words)
    plan = plan_of(*words, "model.pretrained=/weights.pth")
    assert (plan.recipe.name, plan.recipe.epochs, plan.recipe.milestones) == ("coco_finetune_28", 28, [16, 22])
    assert plan.model.options["freeze_stem"]
    assert plan.paper.metrics["ap"] == [36.5]


def test_one_run_serves_several_tables() -> None:
    dropblock = {plan.run_dir() for sweep in ("table1", "fig5_inference") for plan in plans(sweep, SMALL)}
    assert len(dropblock) == 9 + 1  # only block 1 is new


@pytest.mark.parametrize("path", sorted((CONFIGS / "sweep").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_table_says_what_it_claims(path: Path) -> None:
    head = [line for line in path.read_text().splitlines() if line.startswith("# ")]
    assert any(line.startswith("#   python train.py") for line in head)
    assert any(line.startswith("# Cost: ") for line in head)
    table = table_of(path.stem)
    assert not table.rows.keys() & {name.partition("/")[2] for name in table.runs or []} or table.prefix
    for name, row in table.rows.items():
        assert row["regularizer"], name
        paper = check(OmegaConf.create(row.get("paper", {})), PaperConfig)
        assert bool(paper.metrics or paper.curve) <= bool(paper.certainty), name
        if path.stem in RUNS and name != "finetune":  # it runs at any scale
            assert not {key.partition(".")[0] for key in row} & {"data", "recipe", "model", "epochs", "seed"}


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["+sweep=table1", "keep_prob=0.8"], "keep_prob=0.8"),
        (["+sweep=table1", "experiment=table1/dropout"], "experiment="),
        (["+sweep=table1", "regularizer=none"], "regularizer=none"),
        (["+sweep=fig4_block_size", "keep_prob=0.8"], "keep_prob=0.8"),
        (["+sweep=fig3_keep_prob", "regularizer.dropblock.layer.keep_prob=1"], "regularizer.dropblock"),
        (["+sweep=table1", "label_smoothing=0.2"], "label_smoothing=0.2"),
        (["+sweep=table1,fig5_inference"], "one sweep at a time"),
    ],
)
def test_what_a_sweep_varies_is_refused_in_one_line(words: list[str], culprit: str) -> None:
    with pytest.raises(UserError) as caught:
        check_arguments(words)
    assert culprit in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_knob_of_one_method_is_that_of_the_jobs_that_have_it() -> None:
    """The rows of a table differ in their method; `none` is trained once beside both blocks."""
    words = ["-m", "data=fake", "regularizer=none,dropblock", "regularizer.dropblock.block_size=3,5"]
    jobs = jobs_of(check_arguments(words))
    plans = [job.plan for job in jobs if job.plan is not None]
    assert [(plan.regularizer, plan.layer and plan.layer.block_size) for plan in plans] == [
        (["none"], None),
        (["dropblock"], 3),
        (["dropblock"], 5),
    ]
    nobody = jobs_of(check_arguments([*words[:2], "regularizer=none,dropout", words[3]]))
    assert len(nobody) == 4
    assert all("dropblock is not chosen" in job.refused for job in nobody)


def test_a_part_of_a_figure_has_a_folder_of_its_own() -> None:
    words = ["+sweep=fig3_keep_prob", "keep_prob=0.8,0.9"]
    assert sweep_name(check_arguments(words).given) == "fig3_keep_prob-digits-keep_prob-0.8_0.9"


def name_of(words: list[str]) -> str:
    return sweep_name(values_given(words))


def test_the_folder_of_a_sweep_tells_its_scale() -> None:
    words = [
        "+sweep=table1",
        "data=fashion_mnist",
        "model=resnet18",
        "data.train_subset=2000",
        "seed=1,2",
        "device=cpu",
    ]
    assert check_arguments(words).is_grid
    assert name_of(words) == "table1-fashion_mnist-train_subset-2000-resnet18"
    assert name_of([*words, "data.root=/somewhere", "hydra/launcher=basic"]) == name_of(words)
    assert name_of(["+sweep=table1", "seed=1"]) == "table1-digits"
    name = name_of(["+sweep=table1_small", "data.root=/somewhere/images"])  # the data set is the sweep's
    assert name == "table1_small-folder-images"


def test_an_output_root_in_quotes_is_that_of_the_sweep_and_its_jobs(tmp_path: Path) -> None:
    root = tmp_path / "out ü"
    arguments = check_arguments(["-m", "seed=1,2", f"output_root='{root}'"])
    assert arguments.sweep_folder is not None
    assert arguments.sweep_folder.parent == root / "sweeps"
    jobs = jobs_of(arguments)
    assert [job.plan and job.plan.runtime.output_root for job in jobs] == [str(root)] * 2
    assert [config_of(*job.overrides).output_root for job in jobs] == [str(root)] * 2  # as a launcher composes them


def test_a_command_is_composed_once(train: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each job once, whether it runs here or in a worker, and is not composed again to be shown or priced."""
    count: list[list[str]] = []
    composed = compose._composed
    monkeypatch.setattr("configs.compose._composed", lambda hydra, job: count.append(job) or composed(hydra, job))
    monkeypatch.setattr("experiment.run.run_plan", lambda *_: {"last": {}, "headline": "top1"})
    monkeypatch.setattr("experiment.command.run_pool", lambda *_: None)
    for more in ([], ["jobs=2"], ["plan=true"]):
        train("-m", "keep_prob=0.8,0.9", *more)
        assert len(count) == 2
        count.clear()


def test_a_sweep_lists_the_jobs_of_all_its_commands(tmp_path: Path) -> None:
    """By their run directories, before the first of them runs: what a report compares with the runs it finds."""
    commands = [
        check_arguments(["+sweep=fig5_inference", "data=fake", seeds, f"output_root={tmp_path}"])
        for seeds in ("seed=1,2", "seed=2,3")
    ]
    (folder,) = {arguments.sweep_folder for arguments in commands}
    assert folder is not None
    for arguments in commands:
        note_command(folder, arguments, jobs_of(arguments))
    listed = json.loads((folder / "jobs.json").read_text())
    assert len({entry["run"] for entry in listed}) == len(listed) == 9
    assert {(entry["experiment"], entry["seed"]) for entry in listed} == {
        *product(("fig5/baseline", "fig5/dropblock_b1", "fig5/dropblock_b7"), (1, 2, 3))
    }
    hydra = load_yaml(folder / "multirun.yaml")["hydra"]
    assert "fig5/dropblock_b7" in hydra["sweeper"]["params"]["experiment"]
    assert "seed=2,3" in hydra["overrides"]["task"]


def test_another_sweeper_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("hydra: {sweeper: {_target_: optuna}}\n")
    monkeypatch.setattr("configs.tables.FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"mine\.yaml"):
        table_of("mine")


def hparams_rows(run: Path) -> list[dict[str, object]]:
    """TensorBoard's view of one folder: the hyper-parameters of every session that starts in it."""
    from tensorboard.plugins.hparams import plugin_data_pb2

    events = EventAccumulator(str(run)).Reload()
    found = events.SummaryMetadata("_hparams_/session_start_info")
    data = plugin_data_pb2.HParamsPluginData.FromString(found.plugin_data.content)
    fields = {name: (value.WhichOneof("kind"), value) for name, value in data.session_start_info.hparams.items()}
    return [{name: getattr(value, kind) for name, (kind, value) in fields.items() if kind}]


def test_a_sweep_from_its_line_to_its_report(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("+sweep=fig5_inference", "epochs=1")
    assert train(*words) == 0
    assert "3 runs done, 0 not" in capsys.readouterr().out
    (folder,) = (tmp_path / "sweeps").iterdir()
    assert folder.name.startswith("fig5_inference-fake")
    notes = [json.loads(path.read_text()) for path in sorted((folder / "runs").iterdir())]
    assert {entry["experiment"] for entry in notes} == {"fig5/baseline", "fig5/dropblock_b1", "fig5/dropblock_b7"}

    runs = [path.parent for path in tmp_path.glob("fake-resnet18/*/seed-1/summary.json")]
    for run in runs:  # one run of TensorBoard a training, with a row in its table of hyper-parameters
        assert not [path for path in run.rglob("events*") if path.parent != run]
        (row,) = hparams_rows(run)
        plan = load_yaml(run / "plan.yaml")
        assert row["regularizer"] == "+".join(plan["regularizer"])
        assert row.get("block_size") == (plan["layer"] or {}).get("block_size")
        points = EventAccumulator(str(run)).Reload().Scalars("test/top1")
        assert [point.step for point in points] == [9]  # the table adds no point to a curve

    assert train(*words) == 0
    assert "3 of 3 runs already done" in capsys.readouterr().out

    assert inference_drop.main([str(folder), "device=cpu"]) == 0
    assert "3 runs measured, 0 not" in capsys.readouterr().out
    assert inference_drop.main([str(folder), "device=cpu"]) == 0
    assert capsys.readouterr().out.count("already measured") == 3
    assert report.main([str(folder)]) == 0
    assert (folder / "under_drop.png").exists()
    assert "tested with block" in (folder / "report.md").read_text()


def test_a_failing_job_is_reported_and_the_others_go_on(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("+sweep=fig5_inference", "epochs=1", "lr=1e30,0.1") == 1
    captured = capsys.readouterr()
    assert captured.err.count("not finite") == 3
    assert "3 runs done, 3 not" in captured.out
    (folder,) = (tmp_path / "sweeps").iterdir()
    assert report.main([str(folder)]) == 0
    printed, whole = capsys.readouterr().out, (folder / "report.md").read_text()
    assert "3 runs done, 3 not (table Not in the numbers)." in printed
    # The terminal gets what stands before the details: results, and what is missing from them.
    assert whole.startswith(printed.partition("\n\nthe whole report: ")[0])
    for title, shown in (("Results", True), ("Not in the numbers", True), ("Each row in detail", False)):
        assert f"## {title}" in whole
        assert (f"## {title}" in printed) == shown


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ([], 78.13),
        (["seed=3", "epochs=5"], 78.13),
        (["keep_prob=0.8"], None),
        (["block_size=3"], None),
        (["regularizer=dropout", "keep_prob=null", "block_size=null"], None),
        (["label_smoothing=0.1"], None),
    ],
)
def test_another_experiment_does_not_borrow_the_papers_number(words: list[str], kept: float | None) -> None:
    config = config_of("experiment=table1/dropblock", *words)
    plan, notes = resolve(check(config, Config))
    assert (plan.paper.metrics.get("top1") or [None])[0] == kept
    assert any("whose numbers are left out" in note for note in notes) == (kept is None)
