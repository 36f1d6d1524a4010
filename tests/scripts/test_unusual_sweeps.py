"""Reports of sweeps that are not the paper's: networks of a library, many rows, further layers, interrupted ones."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from configs.checking import UserError
from configs.paper import ClaimConfig, StudyConfig
from scripts.report import main
from scripts.reporting.comparison import answers, lines_of
from scripts.reporting.csv_files import runs_csv
from scripts.reporting.figures import few_rows
from scripts.reporting.reading import read_runs, read_sweep
from scripts.reporting.text import legend
from tests.scripts.made_up_sweep import note, plan_of, write_run


def a_sweep(root: Path, *jobs: tuple[str, ...], seeds: tuple[int, ...] = (1,)) -> Path:
    """A row for each job, each half a point above the one before."""
    folder = root
    for i, words in enumerate(jobs):
        for seed in seeds:
            plan = replace(plan_of(*words), seed=seed)
            folder = note(root, plan, write_run(root, plan, 80.0 + i / 2 + seed / 10, epochs=5))
    return folder


def test_the_seeds_of_a_sweeps_own_file_are_asked_for(tmp_path: Path) -> None:
    rows = ("experiment=schedules_overfit/none",), ("experiment=schedules_overfit/linear",)
    folder = a_sweep(tmp_path, *rows)
    params = {"seed": "1,2", "experiment": "schedules_overfit/none,schedules_overfit/linear"}
    for words, missing in (([], 2), (["seed=1"], 0)):  # a command's own seeds replace them
        hydra = {"sweeper": {"params": params}, "overrides": {"task": words}}
        (folder / "multirun.yaml").write_text(json.dumps({"hydra": hydra}))
        assert [what.rpartition(" ")[2] for what, _, _ in read_sweep(folder).lost] == ["2"] * missing


def test_places_out_of_reach_cover_no_map(tmp_path: Path) -> None:
    library = ("model=torchvision", "model.name=efficientnet_b0", "regularizer=dropblock")
    folder = a_sweep(tmp_path, *((*library, f"block_size={size}") for size in (3, 7)))
    for run in read_sweep(folder).runs:
        lost = {"group": 3, "map_sizes": [], "block": None, "layer": "out of reach"}
        run.folder.write("sites.json", [*(run.folder.read("sites.json") or []), lost])
    assert main([str(folder)]) == 0
    text = (folder / "report.md").read_text()
    assert "efficientnet_b0 on " in text
    assert "None" not in text
    assert (folder / "block_size.png").exists()


def test_a_claim_pairs_rows_that_differ_in_nothing_else(tmp_path: Path) -> None:
    layer = "regularizer.dropblock.layer"
    rows = [(f"block_size={block}", f"{layer}.group_divisor={divisor}") for block, divisor in ((3, 4), (1, 4), (1, 2))]
    folder = a_sweep(tmp_path, *rows, ("block_size=3", f"{layer}.group_divisor=4", "label_smoothing=0.1"))
    claim = ClaimConfig("block 3 beats block 1", "block_size", "3", "1")
    (answer,) = answers(replace(read_sweep(folder), study=StudyConfig(claims=[claim])))
    assert len(answer.cells) == 1
    limits = ("schedule=late", "schedule_start=0.5"), ("schedule=linear",)  # a limit goes with its schedule
    folder = a_sweep(tmp_path / "schedules", *limits)
    claim = ClaimConfig("linear beats late", "schedule", "linear", "late")
    (answer,) = answers(replace(read_sweep(folder), study=StudyConfig(claims=[claim])))
    assert len(answer.cells) == 1


def test_many_rows_without_a_figure_have_their_curves(tmp_path: Path) -> None:
    schedules = ("linear", "constant", "cosine", "curriculum")
    groups = ("groups=[4]", "groups=[3]", "groups=[3,4]")
    folder = a_sweep(tmp_path, *((f"schedule={name}", group) for name in schedules for group in groups))
    sweep = read_sweep(folder)
    assert len(sweep.rows) == 12
    assert few_rows(sweep) == sweep.rows[:10]


def test_what_an_earlier_report_said_is_gone(tmp_path: Path) -> None:
    folder = a_sweep(tmp_path, ("regularizer=none",), ("regularizer=dropout",))
    (folder / "claims.csv").write_text("of a claim that the sweep has no more\n")
    assert main([str(folder)]) == 0
    assert not (folder / "claims.csv").exists()


def recorded(run: Path, **values: object) -> None:
    """Put values into the summary of a made-up run."""
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | values))


def test_runs_on_changed_files_have_no_table(tmp_path: Path) -> None:
    """One name, two contents: a mean over both would be of nothing."""
    folder = a_sweep(tmp_path, ("regularizer=none",), ("regularizer=dropout",), seeds=(1, 2))
    runs = [run.folder.path for run in read_sweep(folder).runs]
    for run in runs:
        recorded(run, fingerprint="a" * 64)
    recorded(runs[0], fingerprint=None)  # from before fingerprints
    assert len(read_sweep(folder).runs) == 4
    recorded(runs[2], fingerprint="b" * 64)
    with pytest.raises(UserError, match=r"were trained on different files of .*data\.title=NAME") as caught:
        read_sweep(folder)
    assert str(runs[2]) in str(caught.value)
    with pytest.raises(UserError, match="different files"):
        read_runs(runs)


def test_what_decides_nothing_about_the_data_hides_no_change(tmp_path: Path) -> None:
    plans = [replace(plan_of("data.on_bad_image=skip"), seed=1), replace(plan_of(), seed=2)]
    runs = [write_run(tmp_path, plan, 80.0, epochs=5) for plan in plans]
    for run, letter in zip(runs, "ab", strict=True):
        recorded(run, fingerprint=letter * 64)
    with pytest.raises(UserError, match="different files"):
        read_runs(runs)


def test_an_older_fingerprint_joins_no_two_others(tmp_path: Path) -> None:
    """That of segmentation once lacked the sizes of the splits."""
    folder = a_sweep(tmp_path, ("regularizer=none",), seeds=(1, 2, 3))
    runs = [run.folder.path for run in read_sweep(folder).runs]
    for run, sizes in zip(runs, ("", "-5-2-2", "-5-2-2"), strict=True):
        recorded(run, fingerprint="a" * 64 + sizes)
    assert len(read_sweep(folder).runs) == 3
    recorded(runs[2], fingerprint="a" * 64 + "-6-2-2")
    with pytest.raises(UserError, match="different files"):
        read_sweep(folder)


def test_a_renamed_folder_is_the_same_data_set(tmp_path: Path) -> None:
    plans = [replace(plan_of(f"data.title={name}"), seed=1) for name in ("before", "after")]
    runs = [write_run(tmp_path, plan, 80.0, epochs=5) for plan in plans]
    with pytest.raises(UserError, match="after and before"):
        read_runs(runs)
    for run in runs:
        recorded(run, fingerprint="a" * 64)
    assert len(read_runs(runs).rows) == 2


def test_runs_of_different_data_sets_do_not_compare(tmp_path: Path) -> None:
    plans = plan_of("data=cifar10"), plan_of("data=fashion_mnist")
    runs = [write_run(tmp_path, plan, 80.0, epochs=5) for plan in plans]
    with pytest.raises(UserError, match="of different data sets, cifar10 and fashion_mnist"):
        read_runs(runs)


def test_every_run_of_a_grid_has_its_row_in_runs_csv(tmp_path: Path) -> None:
    """Also where rows differ in what has no column: by the label of the row and the directory of the run."""
    folder = a_sweep(tmp_path, ("lr=0.1",), ("lr=0.05",), seeds=(1, 2))
    sweep = read_sweep(folder)
    lines = list(csv.DictReader(runs_csv(sweep).splitlines()))
    labels = [line["label"] for line in lines]
    assert sorted(label.rpartition(", ")[2] for label in set(labels)) == ["lr 0.05", "lr 0.1"]
    assert labels.count(labels[0]) == 2
    assert {line["run"] for line in lines} == {str(run.folder.path.relative_to(tmp_path)) for run in sweep.runs}


def test_a_report_says_what_its_differences_are_over(tmp_path: Path) -> None:
    folder = a_sweep(tmp_path, ("regularizer=none",), ("regularizer=dropout",), seeds=(1, 2, 3))
    assert main([str(folder)]) == 0
    assert "within seeds, with" in (folder / "report.md").read_text()
    (lost,) = (folder / "runs").glob("*dropout*seed-3.json")
    lost.unlink()
    assert main([str(folder)]) == 0
    assert "the rows have different seeds: over those that both rows have" in (folder / "report.md").read_text()
    alone = a_sweep(tmp_path / "alone", ("block_size=3",), ("block_size=7",))
    assert main([str(alone)]) == 0
    text = (alone / "report.md").read_text()
    assert "No row without a regularizer in the same setting: no differences." in text
    assert "*Difference*" not in text
    rows = ("regularizer=none",), ("regularizer=dropout",)
    apart = [write_run(tmp_path / "apart", replace(plan_of(*words), seed=i), 80.0, 5) for i, words in enumerate(rows)]
    sweep = read_runs(apart)
    assert "No seed that two rows have: no differences." in legend(sweep, lines_of(sweep))


def test_a_sweep_that_was_killed_in_its_first_run_is_one(tmp_path: Path) -> None:
    (tmp_path / "multirun.yaml").write_text("hydra: {}\n")
    with pytest.raises(UserError, match="none of its runs has ended yet"):
        read_sweep(tmp_path)
    with pytest.raises(UserError, match="no sweep"):
        read_sweep(tmp_path / "other")
