"""What the pictures of a report have in common: colours, lettering, error bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.reporting.names import colour_of
from scripts.reporting.statistics import Spread
from scripts.reporting.sweep import Row, Sweep

BASELINE = colour_of(["none"]) or "#7a7a7a"
OTHER = ("#c23b3b", "#5c8a00", "#5e4fa2", "#b8860b", "#00796b", "#444444", "#d67bb8", "#7fb8d8", "#8c5a3c", "#a8b400")
INK, GRID = "#222222", "#e4e4e4"
STYLE: Any = {
    "font.size": 10,
    "text.color": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@contextmanager
def drawing(
    out: Path, columns: int, width: float, height: float, share: bool = False
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of some panels side by side, saved at the end."""
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            1, columns, figsize=(width, height), layout="constrained", squeeze=False, sharey=share
        )
        yield figure, list(grid[0])
        figure.savefig(out, dpi=130)
        plt.close(figure)


def legend_below(figure: Figure, panels: Sequence[Axes], title: str | None = None) -> None:
    """One legend for all panels, each label once, in as many columns as fit."""
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    widest = 0.6 + 0.073 * max((len(label) for label in handles), default=0)  # in inches, at 9 points
    columns = max(1, min(3, int(figure.get_figwidth() / widest)))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, title=title)


def colour(row: Row, used: Sequence[str] = ()) -> str:
    """The colour of a method; of the same method a second time, another."""
    own = row.colour or OTHER[0]
    return own if own not in used else next((other for other in OTHER if other not in used), INK)


@dataclass(frozen=True)
class Series:
    """A line of a figure: means with one standard deviation, which a single run does not have.

    Args:
        label: in the legend; None for what is not in it.
        points: (x, spread) along the line.
        colour, marker, linestyle: as matplotlib has them.
    """

    label: str | None
    points: Sequence[tuple[float, Spread]]
    colour: str
    marker: str = "o"
    linestyle: str = "-"


def draw_series(axes: Axes, series: Series) -> None:
    """A line with its whiskers."""
    if series.points:
        x, spreads = zip(*series.points, strict=True)
        axes.errorbar(
            x, [spread.mean for spread in spreads], [spread.std or 0.0 for spread in spreads], label=series.label,
            color=series.colour, marker=series.marker, linestyle=series.linestyle, ms=5, linewidth=1.6, capsize=2.5,
            elinewidth=1.1,
        )  # fmt: skip


def baseline_line(axes: Axes, mean: float, label: str | None = None) -> None:
    """The level of the row without a regularizer."""
    axes.axhline(mean, color=BASELINE, linewidth=1.3, linestyle=(0, (5, 3)), label=label)


def setting(sweep: Sweep) -> str:
    """What was trained on what, for an axis."""
    run, plan = sweep.runs[0], sweep.runs[0].plan
    subset = plan["data"]["train_subset"]
    counts = sorted({len(row.runs) for row in sweep.rows})
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]}-{counts[-1]}"
    part = f", {subset:,} images" if subset else ""
    return f"{run.data_name}{part}, {plan['model']['name']}, {n}"
