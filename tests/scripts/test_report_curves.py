"""The training curves of a report: no row is cut off, and the axis counts epochs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
from matplotlib.axes import Axes

from scripts.reporting import figures
from scripts.reporting.reading import read_sweep
from tests.scripts.made_up_sweep import note, plan_of, write_run


@pytest.fixture
def panels(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Axes]]:
    """The panels of the figures that are drawn, which stay open; none is saved."""
    drawn: list[Axes] = []

    @contextmanager
    def drawing(out: Path, columns: int, *_: Any, **__: Any) -> Iterator[tuple[Any, list[Axes]]]:
        figure, grid = plt.subplots(1, columns, layout="constrained", squeeze=False)
        drawn.extend(grid[0])
        yield figure, list(grid[0])

    monkeypatch.setattr(figures, "drawing", drawing)
    yield drawn
    plt.close("all")


def draw(root: Path, epochs: int) -> list[str]:
    """Curves of three rows of that many epochs, evaluated every fifth, the last one far below; their labels."""
    for name, top1 in (("none", 80.0), ("dropblock", 81.0), ("dropout", 40.0)):
        plan = plan_of(f"regularizer={name}", f"epochs={epochs}")
        folder = note(root, plan, write_run(root, plan, top1, epochs))
    sweep = read_sweep(folder)
    figures.curves(sweep, root / "curves.png")
    return [sweep.label(row) for row in sweep.rows]


@pytest.mark.parametrize("epochs", [2, 10, 100])
def test_the_last_point_of_every_row_is_visible(tmp_path: Path, panels: list[Axes], epochs: int) -> None:
    labels = draw(tmp_path, epochs)
    test = panels[0]
    low, high = test.get_ylim()
    lines = {str(line.get_label()): line for line in test.get_lines()}
    assert set(labels) <= lines.keys()
    for label in labels:
        values = list(lines[label].get_ydata())  # type: ignore[arg-type]
        assert low < values[-1] < high
        assert epochs > 10 or all(low < value < high for value in values)  # few points: all of them


def test_the_start_of_a_long_rise_is_cut_off(tmp_path: Path, panels: list[Axes]) -> None:
    draw(tmp_path, 200)
    assert panels[0].get_ylim()[0] > min(line.get_ydata()[0] for line in panels[0].get_lines()) + 5  # type: ignore[index]


@pytest.mark.parametrize("epochs", [1, 2, 40])
def test_the_axis_is_the_run_in_whole_epochs(tmp_path: Path, panels: list[Axes], epochs: int) -> None:
    draw(tmp_path, epochs)
    for axes in panels:
        assert axes.get_xlim() == pytest.approx((0, epochs), abs=0.04 * epochs)
        assert all(float(tick).is_integer() for tick in axes.get_xticks())
