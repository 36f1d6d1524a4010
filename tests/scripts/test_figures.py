"""The pictures of a report: no row is cut off, the axis counts epochs, a row has one colour everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from matplotlib.axes import Axes

from scripts.reporting import figures
from scripts.reporting.compare import compare
from scripts.reporting.report import write_report
from scripts.reporting.runs import Sweep, read_sweep
from tests.scripts.made_up_sweep import grid, recorded


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Axes]]:
    """The panels of the figures that are drawn, which stay open; none is saved."""
    drawn: list[Axes] = []

    @contextmanager
    def drawing(out: Path, columns: int, *_: Any, **__: Any) -> Iterator[tuple[Any, list[Axes]]]:
        figure, grid = plt.subplots(1, columns, squeeze=False)
        drawn.extend(grid[0])
        yield figure, list(grid[0])

    monkeypatch.setattr(figures, "drawing", drawing)
    yield drawn
    plt.close("all")


def draw(root: Path, epochs: int) -> Sweep:
    """Curves of three rows of that many epochs, evaluated every fifth, the last one far below."""
    rows = {(f"regularizer={name}", f"epochs={epochs}"): [top1] for name, top1 in VALUES.items()}
    sweep = compare(read_sweep(grid(root, rows, epochs)))
    figures.curves(sweep, root / "curves.png")
    return sweep


VALUES = {"none": 80.0, "dropblock": 81.0, "dropout": 40.0}


@pytest.mark.parametrize("epochs", [1, 100])
def test_the_last_point_of_every_row_is_visible(tmp_path: Path, panels: list[Axes], epochs: int) -> None:
    labels = [row["label"] for row in draw(tmp_path, epochs).rows]
    test = panels[0]
    low, high = test.get_ylim()
    lines = {str(line.get_label()): line for line in test.get_lines()}
    assert set(labels) <= lines.keys()
    for label in labels:
        values = list(lines[label].get_ydata())  # type: ignore[arg-type]
        assert low < values[-1] < high
        assert epochs > 10 or all(low < value < high for value in values)  # few points: all of them
    for axes in panels:  # the run in whole epochs
        assert axes.get_xlim() == pytest.approx((0, epochs), abs=0.04 * epochs)
        assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_the_start_of_a_long_rise_is_cut_off(tmp_path: Path, panels: list[Axes]) -> None:
    draw(tmp_path, 200)
    assert panels[0].get_ylim()[0] > min(line.get_ydata()[0] for line in panels[0].get_lines()) + 5  # type: ignore[index]


def test_the_ranking_has_every_row_beside_the_paper(table1: Path, panels: list[Axes]) -> None:
    sweep = compare(read_sweep(table1))
    figures.ranking(sweep, table1 / "unused.png")
    paper, ours = panels
    for axes, column in ((paper, "paper_mean"), (ours, "last")):
        expected = [row[column] if column == "paper_mean" else row[column].mean for row in sweep.rows]
        dots = [line.get_xdata()[0] for line in axes.get_lines() if line.get_marker() == "o" and len(line.get_xdata())]  # type: ignore[arg-type,index]
        assert {round(float(value), 6) for value in expected} <= {round(float(dot), 6) for dot in dots}
        assert {round(float(height), 1) for height in axes.get_yticks()} == set(range(9))
    names = [tick.get_text().replace("\n", " ") for tick in paper.get_yticklabels()]
    assert names == [row["label"] for row in sweep.rows]


def test_the_dots_of_a_reliability_diagram_have_the_area_of_their_share(tmp_path: Path, panels: list[Axes]) -> None:
    bins = [["0 to 10", 5.0, 7.0, 2], ["10 to 20", 15.0, 20.0, 18], ["90 to 100", 96.0, 90.0, 180]]
    tables = [{"name": "calibration", "header": ["bin", "confidence", "top1", "images"], "rows": bins}]
    folder = grid(tmp_path, {("regularizer=none",): [80.0, 81.0]})
    for run in read_sweep(folder).runs:
        recorded(run["path"], tables=tables)
    figures.reliability(compare(read_sweep(folder)), tmp_path / "unused.png")
    (dots,) = panels[0].collections[1:]  # after the bars
    areas = dots.get_sizes()  # type: ignore[attr-defined]
    assert list(areas / areas.sum()) == pytest.approx([0.01, 0.09, 0.9])
    assert not any(dots.get_linewidths())  # an outline would add to it


def test_a_row_has_one_colour_in_the_table_and_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rows of one method: each its own colour, the first the method's; the same in the page as in the curves."""
    drawn: list[str] = []

    def seen(axes: object, epochs: object, values: object, **style: str) -> None:
        drawn.append(style["color"])

    monkeypatch.setattr(figures, "mean_line", seen)
    rows = {
        ("regularizer=dropblock", f"groups={groups}", f"block_size={block}"): [80.0]
        for groups in ("[4]", "[3,4]")
        for block in (3, 4)
    }
    sweep = read_sweep(grid(tmp_path, rows))
    write_report(sweep, tmp_path / "out")
    tints = [row["colour"] for row in sweep.rows]
    assert len(set(tints)) == 4
    assert tints[0] == sweep.rows[0]["method_colour"]
    assert drawn[::2] == drawn[1::2] == tints  # on test and on the training batches
    swatches = re.findall(r'class="swatch" style="background:(#\w+)"', (tmp_path / "out" / "report.html").read_text())
    assert swatches == 2 * tints  # in two tables
