"""From run directories to rows: what enters a table, in which order, under which name, and what is missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from configs.checking import UserError
from configs.paper import StudyConfig
from engine.distributed import Ranks
from engine.run_directory import RunDirectory
from scripts import compare as compare_script
from scripts.report import main
from scripts.reporting.compare import without_column
from scripts.reporting.runs import (
    Sweep,
    curve,
    epoch_means,
    methods_of,
    read_runs,
    read_sweep,
    spread,
    study_of,
    sweep_of,
)
from tests.scripts.made_up_sweep import grid, list_jobs, made_up, note, plan_of, recorded, write_run

NONE, DROPOUT = ("regularizer=none",), ("regularizer=dropout",)


def missing(sweep: Sweep) -> list[str]:
    return sorted(job for job, status, _ in sweep.lost if status == "NOT RUN")


def noted(folder: Path, run: Path) -> Path:
    """The note that a sweep's folder has of a run."""
    return folder / "runs" / ("_".join(run.parts[-3:]) + ".json")


# Records.


def test_a_record_has_plan_and_metrics_as_columns(four_seeds: Path) -> None:
    sweep = read_sweep(four_seeds)
    run = next(row for row in sweep.rows if row["regularizer"] == ["dropblock"])["runs"][1]
    assert (run["seed"], run["keep_prob"], run["block_size"], run["data"]) == (2, 0.9, 7, "digits")
    assert run["last/test/top1"] == pytest.approx(81.3, abs=0.3)
    assert run["last/val/top1"] == pytest.approx(run["last/test/top1"] + 0.5)
    assert run["dropped"] == pytest.approx({"group3": 0.6 * 0.0231, "group4": 0.6 * 0.0967})  # rising over five epochs
    assert set(curve(run, "test/top1")) == {5}
    assert set(curve(run, "train/top1", by="step")) == {10, 20, 30, 40, 50}


def test_the_entries_of_an_epoch_count_by_their_steps() -> None:
    """Eight steps an epoch, an entry every ten steps and at each end: 8; 2 and 6; 4 and 4."""
    entries = ((8, 1.0, 10.0), (10, 1.25, 40.0), (16, 2.0, 80.0), (20, 2.5, 90.0), (24, 3.0, 100.0))
    log = [{"step": step, "epoch": epoch, "train/top1": value} for step, epoch, value in entries]
    log.insert(1, {"step": 8, "epoch": 1, "test/top1": 5.0})
    assert epoch_means(log, "train/top1") == pytest.approx({1.0: 10.0, 2.0: (2 * 40 + 6 * 80) / 8, 3.0: 95.0})
    assert epoch_means(log, "train/miou") == {}


def test_methods_are_read_from_their_list_and_from_older_plans() -> None:
    mixup = {"name": "mixup", "kind": "batch", "options": {"alpha": 0.2}}
    smoothing = {"name": "label_smoothing", "kind": "loss", "options": {"label_smoothing": 0.1}}
    assert methods_of({"methods": [mixup]}) == [mixup]
    assert methods_of({"cutout": 0, "autoaugment": None, "label_smoothing": 0.1}) == [smoothing]


# Rows.


def test_rows_that_differ_have_names_that_differ(tmp_path: Path) -> None:
    rows = {
        ("regularizer=cutout", "regularizer.cutout.input.cutout=0.25"): [80.0],
        ("regularizer=cutout", "regularizer.cutout.input.cutout=0.5"): [80.0],
        ("regularizer=[dropblock,drop_path]", "regularizer.drop_path.layer.keep_prob=0.8"): [80.0],
        ("regularizer=[dropblock,drop_path]", "regularizer.drop_path.layer.keep_prob=0.9"): [80.0],
        ("lr=0.1",): [80.0],
        ("lr=0.05",): [80.0],
    }
    labels = [row["label"] for row in read_sweep(grid(tmp_path, rows)).rows]
    assert len(set(labels)) == len(rows), labels
    assert any(
        label.startswith("DropBlock + DropPath, keep_prob 0.9, block 7, drop_path keep_prob 0.8") for label in labels
    )


def test_label_smoothing_by_its_knob_is_no_baseline(tmp_path: Path) -> None:
    rows = {("regularizer=none", f"label_smoothing={value}"): [top1] for value, top1 in ((0.1, 85.0), (0.0, 80.0))}
    sweep = read_sweep(grid(tmp_path, rows))
    assert sweep.baseline is not None
    assert spread(sweep.baseline, "last/test/top1").mean == pytest.approx(80.0, abs=0.3)  # type: ignore[union-attr]
    assert len({row["label"] for row in sweep.rows}) == 2


def test_equal_computations_are_one_row(tmp_path: Path) -> None:
    """Blocks 4 and 7 on a map of 4 x 4."""
    for block in (3, 4, 7):
        for seed in (1, 2):
            plan = plan_of("regularizer=dropblock", "groups=[4]", f"block_size={block}", f"seed={seed}")
            run = write_run(tmp_path, plan, 80.0 + (block == 3))
            site = {"group": 4, "map_sizes": [[16, 4, 4]], "block": [min(block, 4)] * 2, "clamped": block > 4}
            (run / "sites.json").write_text(json.dumps([site]))
            folder = note(tmp_path, plan, run)
    sweep = read_sweep(folder)
    found = [(row["block_size"], row["same"], row["seeds"]) for row in sweep.rows]
    assert found == [(3, [], [1, 2]), (4, [7], [1, 2])]
    assert "block 4 (= 7)" in sweep.rows[1]["label"]
    # Compared without a sweep, in the other order: the first is still what the others are compared with.
    seven = next(tmp_path.glob("place/*b7*/seed-1"))
    compared = read_runs([seven, *(row["runs"][0]["path"] for row in sweep.rows)])
    assert compared.compared_to is compared.rows[0]
    assert compared.rows[0]["same"] == [7]


def test_options_of_one_name_are_those_of_their_regularizers(tmp_path: Path) -> None:
    """Random erasing and CutMix both have a `probability`; the row of the other one is no equal computation."""
    three = "regularizer=[dropblock,random_erasing,cutmix]"
    rows = {(three, f"regularizer.random_erasing.probability={value}"): [80.0, 80.1] for value in (0.25, 0.5)}
    folder = grid(tmp_path, rows)
    sweep = read_sweep(folder)
    assert [row["seeds"] for row in sweep.rows] == [[1, 2], [1, 2]]
    found = {row["label"].partition("block 7, ")[2]: row for row in sweep.rows}
    assert {*found} == {"random_erasing probability 0.25", "random_erasing probability 0.5"}
    assert all(row["tried"]["cutmix probability"] == 1.0 for row in sweep.rows)
    assert all(row["tried"]["alpha"] == 1.0 for row in sweep.rows)  # CutMix alone has one
    # Beside another data set what acts on images is set aside, and nothing else.
    first, second = (without_column(row, "data") for row in sweep.rows)
    assert first == second
    assert "cutmix probability" in first
    # What was tuned is in the label where all rows have it.
    chosen = {"regularizer.cutmix.probability": 1.0}
    entries = [{"configuration": run["configuration"], "chosen": chosen, "given": {}} for run in sweep.runs]
    RunDirectory(folder).write("tuning.json", {"rows": entries})
    assert all("cutmix probability 1" in row["label"] for row in read_sweep(folder).rows)


def test_runs_of_different_tasks_have_no_common_table(tmp_path: Path) -> None:
    runs = [write_run(tmp_path, plan_of("regularizer=none", f"seed={seed}"), 80.0, epochs=1) for seed in (1, 2)]
    recorded(runs[1], headline="miou")
    with pytest.raises(UserError, match="miou and top1"):
        read_runs(runs)


# Folders.


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: (folder / "runs").mkdir(parents=True)])
def test_a_folder_that_is_no_sweep_gets_one_line(
    tmp_path: Path, make: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "x")
    assert main([str(tmp_path / "x")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_sweep_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "multirun.yaml").write_text("hydra: {}\n")  # killed in its first run
    with pytest.raises(UserError, match=str(tmp_path)):
        read_sweep(tmp_path)
    plan = plan_of("experiment=table1/baseline")
    folder = note(tmp_path, plan, tmp_path / "place" / "x" / "seed-1", "FAILED")
    with pytest.raises(UserError, match=str(folder)):
        read_sweep(folder)


def test_a_folder_that_moved_is_still_read(tmp_path: Path) -> None:
    grid(tmp_path / "before", {NONE: [80.0]})
    (tmp_path / "before").rename(tmp_path / "after")
    assert len(read_sweep(tmp_path / "after" / "sweeps" / "made-up").runs) == 1


def test_run_directories_of_other_names_are_read(tmp_path: Path) -> None:
    for name, words in (("a", NONE), ("b", DROPOUT)):
        plan = plan_of(*words)
        run = write_run(tmp_path, plan, 80.0, epochs=1).rename(tmp_path / f"my run {name}")
        folder = note(tmp_path, plan, run)
    sweep = read_sweep(folder)
    assert (len(sweep.runs), sweep.lost) == (2, [])


def test_runs_that_were_moved_aside_are_not_compared(tmp_path: Path) -> None:
    run = write_run(tmp_path, plan_of("regularizer=none", "seed=1"), 80.0)
    shutil.copytree(run, run.with_name("seed-1-old-1"))
    assert compare_script.runs_in(run.parent) == [run]


def test_runs_differ_by_configuration_not_by_place(tmp_path: Path) -> None:
    """Runs side by side in one directory, where `run_dir=` put them."""
    places = []
    for place, name in (("one", "none"), ("two", "dropblock"), ("three", "dropblock")):
        run = write_run(tmp_path, plan_of(f"regularizer={name}"), 80.0, epochs=1)
        places.append(shutil.copytree(run, tmp_path / "chosen" / place))
    assert len(read_runs(places[:2]).rows) == 2
    with pytest.raises(UserError, match=r"chosen/three\b.*chosen/two\b"):
        read_runs(places)


# Data that changed under one name.


def test_runs_on_changed_files_have_no_table(tmp_path: Path) -> None:
    folder = grid(tmp_path, {NONE: [80.0, 80.1], DROPOUT: [80.5, 80.6]})
    runs = [run["path"] for run in read_sweep(folder).runs]
    for run in runs:
        recorded(run, fingerprint="a" * 64)
    recorded(runs[0], fingerprint=None)  # from before fingerprints
    assert len(read_sweep(folder).runs) == 4
    recorded(runs[2], fingerprint="b" * 64)
    with pytest.raises(UserError, match=r"data\.title") as caught:
        read_sweep(folder)
    assert str(runs[2]) in str(caught.value)
    with pytest.raises(UserError, match=r"data\.title"):
        read_runs(runs)


def test_values_that_decide_nothing_about_the_data_hide_no_change(tmp_path: Path) -> None:
    plans = [replace(plan_of("data.on_bad_image=skip"), seed=1), replace(plan_of(), seed=2)]
    runs = [write_run(tmp_path, plan, 80.0, epochs=5) for plan in plans]
    for run, letter in zip(runs, "ab", strict=True):
        recorded(run, fingerprint=letter * 64)
    with pytest.raises(UserError, match=r"data\.title"):
        read_runs(runs)


def test_an_older_fingerprint_joins_no_two_others(tmp_path: Path) -> None:
    """Fingerprints of segmentation once lacked the sizes of the splits."""
    folder = grid(tmp_path, {NONE: [80.0, 80.1, 80.2]})
    runs = [run["path"] for run in read_sweep(folder).runs]
    for run, sizes in zip(runs, ("", "-5-2-2", "-5-2-2"), strict=True):
        recorded(run, fingerprint="a" * 64 + sizes)
    assert len(read_sweep(folder).runs) == 3
    recorded(runs[2], fingerprint="a" * 64 + "-6-2-2")
    with pytest.raises(UserError, match=r"data\.title"):
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
    with pytest.raises(UserError, match="cifar10 and fashion_mnist"):
        read_runs([write_run(tmp_path, plan, 80.0, epochs=5) for plan in plans])


# Pilots.


def test_the_pilots_of_a_sweep_enter_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("regularizer=dropblock", "data=digits")
    grid(tmp_path, {words: [80.0, 80.1]})
    plan = plan_of(*words, "seed=100")
    folder = note(tmp_path, plan, write_run(tmp_path, plan, 99.0, epochs=1))
    monkeypatch.setattr("scripts.reporting.runs.study_of", lambda _: StudyConfig(keep_prob=[0.9], pilot_seed=100))
    sweep = read_sweep(folder)
    assert ([row["seeds"] for row in sweep.rows], [row["seeds"] for row in sweep.pilots]) == ([[1, 2]], [[100]])


def test_the_sweep_files_declare_what_the_schema_knows() -> None:
    assert study_of("table1_small").pilot_sweep == "keep_prob_small"
    assert study_of("findings_small").claims
    assert study_of("no such sweep") == study_of(None) == StudyConfig()


# What is missing.


def test_lost_jobs_are_counted_and_named(tmp_path: Path) -> None:
    folder = grid(tmp_path, {NONE: [80.0, 80.1], DROPOUT: [80.5, 80.6]})
    done = [run["path"] for run in read_sweep(folder).runs]
    list_jobs(folder)
    never = {"run": "outputs/place/dropblock-b7-kp0.9-e40-123456/seed-1", "experiment": "table1/dropblock", "seed": 1}
    list_jobs(folder, never)
    assert missing(read_sweep(folder)) == ["table1/dropblock (dropblock-b7-kp0.9-e40-123456/seed-1)"]

    # One that another process trains just now, and one that was killed.
    at_work = RunDirectory(tmp_path / "place" / "dropblock-b7-kp0.9-e40-123456" / "seed-1")
    at_work.path.mkdir(parents=True)
    with at_work.session(Ranks()):
        at_work.set_status("RUNNING")
        assert [status for _, status, _ in read_sweep(folder).lost] == ["RUNNING"]
    at_work.set_status("RUNNING")
    assert [status for _, status, _ in read_sweep(folder).lost] == ["KILLED"]
    shutil.rmtree(at_work.path)

    # Failed, stopped before its record was written, never begun, and with a note that cannot be read.
    (done[0] / "summary.json").unlink()
    (done[0] / "status.json").write_text(json.dumps({"status": "FAILED"}))
    failed = json.loads(noted(folder, done[0]).read_text()) | {"reason": "the loss is not finite | step 3"}
    noted(folder, done[0]).write_text(json.dumps(failed))
    (done[1] / "summary.json").unlink()
    noted(folder, done[2]).unlink()
    (folder / "runs" / "torn.json").write_text("{")
    sweep = read_sweep(folder)
    assert {(status, job.rpartition("/")[2].rstrip(")")) for job, status, _ in sweep.lost} == {
        ("FAILED", "seed-1"),
        ("NO RECORD", "seed-2"),
        ("NOT RUN", "seed-1"),
        ("NOT LISTED", "seed-1"),
        ("UNREADABLE", "torn.json"),
    }
    assert len(missing(sweep)) == 1
    assert main([str(folder)]) == 0
    text = (folder / "report.md").read_text()
    assert "1 run done, 5 not" in text
    assert r"the loss is not finite \| step 3" in text  # in a cell of a Markdown table


def test_without_a_list_of_jobs_every_row_is_expected_in_every_seed(tmp_path: Path) -> None:
    """Folders of earlier versions have none."""
    folder = grid(tmp_path, {NONE: [80.0, 80.1, 80.2], DROPOUT: [80.5]})
    run = next(run["path"] for run in read_sweep(folder).runs if run["is_baseline"] and run["seed"] == 3)
    (run / "summary.json").unlink()
    assert missing(read_sweep(folder)) == ["dropout, keep_prob 0.7 seed 2"]  # seed 3 of none has left a note


def test_every_missing_point_of_a_figure_is_counted_once(tmp_path: Path) -> None:
    """The baseline has no block size: its jobs meet in one run."""
    folder = made_up(tmp_path, "fig4_block_size_small", seeds=1)
    sweep = read_sweep(folder)
    assert sweep.lost == []
    runs = {(run["experiment"], run["block_size"]): run["path"] for run in sweep.runs}
    for point in (("fig4/group4_conv_skip", 8), ("fig4/baseline", None)):
        noted(folder, runs[point]).unlink()
    found = sorted(job for job, status, _ in read_sweep(folder).lost if status == "NOT LISTED")
    assert [job.partition(" ")[0] for job in found] == ["fig4/baseline", "fig4/group4_conv_skip"]


def test_a_folder_knows_the_file_of_its_sweep(tmp_path: Path) -> None:
    assert sweep_of(tmp_path) is None
    for words, name in (([], None), (["+sweep=table1_small", "seed=1"], "table1_small"), (["lr=0.1"], None)):
        (tmp_path / "multirun.yaml").write_text(json.dumps({"hydra": {"overrides": {"task": words}}}))
        assert sweep_of(tmp_path) == name
