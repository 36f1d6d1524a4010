"""Every column of a report has its own numbers, and only runs that belong there enter a row or a claim."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

import pytest

from configs.paper import ClaimConfig, StudyConfig
from scripts.report import write_report
from scripts.reporting import figures
from scripts.reporting.comparison import answers, lines_of
from scripts.reporting.csv_files import rows_csv
from scripts.reporting.reading import read_sweep
from scripts.reporting.tables import drops_of
from scripts.reporting.text import setting_text
from tests.scripts.made_up_sweep import note, plan_of, write_run
from tests.scripts.test_page import a_sweep, claims


def test_each_column_has_its_own_numbers(tmp_path: Path) -> None:
    sweep = read_sweep(a_sweep(tmp_path, "data=digits", values={"none": (80.0, 80.4), "dropblock": (81.0, 81.2)}))
    for row in sweep.rows:
        for run in row.runs:
            seed, gain = run.seed, 0 if row.is_baseline else 1
            for which, top1, loss in (("last", 80 + gain, 2 - gain), ("peak", 90 + 3 * gain, 5), ("best", 60, 7)):
                numbers = {"test/top1": top1 + seed, "val/top1": top1 - 10 + seed, "test/loss": float(loss + seed)}
                run.summary[which] = {"epoch": 5, **numbers}
            if gain:
                run.summary["drop_last_epoch"]["group4"]["measured"] = 0.1 * seed
    lines = lines_of(sweep)
    _, dropblock = csv.DictReader(rows_csv(sweep, lines).splitlines())
    means = {"last_test": 82.5, "loss": 2.5, "peak_test": 94.5, "last_val": 72.5, "best_test": 61.5}
    assert {name: float(dropblock[f"{name}_mean"]) for name in means} == pytest.approx(means)
    differences = {"difference": 1.0, "loss_difference": -1.0, "peak_difference_mean": 3.0}
    assert {name: float(dropblock[name]) for name in differences} == pytest.approx(differences)
    assert drops_of(lines[1].row)[1].startswith("group4 15.00 %")  # the mean over the seeds


def test_the_claims_of_a_sweep_are_corrected_together(tmp_path: Path) -> None:
    asked = [
        ClaimConfig("groups 3+4 beat group 4", "groups", "3+4", "4"),
        ClaimConfig("at block 3", "groups", "3+4", "4", {"block_size": "3"}),
        ClaimConfig("of nothing", "groups", "1", "4"),
    ]
    both, one, _ = answers(replace(claims(tmp_path), study=StudyConfig(claims=asked)))
    assert one.adjusted == pytest.approx(2 * one.difference.p_value)
    assert both.adjusted == pytest.approx(max(one.adjusted, both.difference.p_value))


def test_the_papers_difference_is_taken_within_one_table(tmp_path: Path) -> None:
    for place, baseline, expected in (("a", "table1/baseline", 78.13 - 76.51), ("b", "fig4/baseline", None)):
        for experiment in ("table1/dropblock", baseline):
            plan = plan_of(f"experiment={experiment}", "data=digits")
            folder = note(tmp_path / place, plan, write_run(tmp_path / place, plan, 80.0, epochs=1))
        lines = lines_of(read_sweep(folder))
        (line,) = (line for line in lines if line.row.experiment == "table1/dropblock")
        assert line.difference is not None
        assert line.paper_difference == (None if expected is None else pytest.approx(expected))


def test_the_pilots_of_a_sweep_enter_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_sweep(tmp_path, "data=digits", values={"dropblock": (80.0, 80.1)})
    plan = plan_of("regularizer=dropblock", "data=digits", "seed=100")
    folder = note(tmp_path, plan, write_run(tmp_path, plan, 99.0, epochs=1))
    monkeypatch.setattr("scripts.reporting.reading.study_of", lambda _: StudyConfig(keep_prob=[0.9], pilot_seed=100))
    sweep = read_sweep(folder)
    assert ([row.seeds for row in sweep.rows], [row.seeds for row in sweep.pilots]) == ([[1, 2]], [[100]])


def test_images_that_were_left_out_are_counted_once(tmp_path: Path) -> None:
    sweep = read_sweep(a_sweep(tmp_path, "data=digits", values={"none": (80.0, 80.4)}))
    assert "left out" not in setting_text(sweep)
    for run in sweep.runs:
        run.summary["bad_images"] = {"cat/03.JPEG": "cannot be read"}
    assert "1 image could not be used and was left out" in setting_text(sweep)


def test_pictures_of_an_earlier_report_go(tmp_path: Path) -> None:
    folder = a_sweep(tmp_path, "data=digits", values={"none": (80.0, 80.4)})
    for name in ("keep_prob.png", "mine.png"):
        (folder / name).write_bytes(b"earlier")
    write_report(read_sweep(folder), folder, with_page=False)
    assert not (folder / "keep_prob.png").exists()
    assert (folder / "mine.png").exists()


def test_a_row_has_one_colour_in_the_table_and_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rows of one method: each its own colour, the first the method's; the same in the page as in the curves."""
    drawn: list[str] = []

    def seen(axes: object, epochs: object, values: object, **style: str) -> None:
        drawn.append(style["color"])

    monkeypatch.setattr(figures, "mean_line", seen)
    sweep = claims(tmp_path)
    write_report(sweep, tmp_path / "out")
    tints = list(figures.colours(sweep).values())
    assert len(set(tints)) == 4
    assert tints[0] == sweep.rows[0].colour
    assert drawn[::2] == drawn[1::2] == tints  # on test and on the training batches
    swatches = re.findall(r'class="swatch" style="background:(#\w+)"', (tmp_path / "out" / "report.html").read_text())
    assert swatches == 2 * tints  # in two tables
