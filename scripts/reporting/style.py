"""What the pictures of a report have in common: colours, lettering, error bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scripts.reporting.sweep import Row, Spread, Sweep

COLOURS = {
    "none": "#7a7a7a",
    "dropout": "#e08214",
    "spatial_dropout": "#3a9a5b",
    "drop_path": "#8e5ba6",
    "cutout": "#a0703c",
    "autoaugment": "#d6618f",
    "label_smoothing": "#2a9db0",
    "dropblock": "#1f5fb4",
    "dropblock+label_smoothing": "#0b2f66",
}
OTHER = ("#c23b3b", "#5c8a00", "#5e4fa2", "#b8860b", "#00796b", "#444444")
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
    own = COLOURS.get("+".join(row.plan["regularizer"]), OTHER[0])
    return own if own not in used else next((other for other in OTHER if other not in used), INK)


def whisker(axes: Axes, x: Sequence[float], spreads: Sequence[Spread], **style: object) -> None:
    """Means with one standard deviation; a single run has none."""
    deviations = [spread.std or 0.0 for spread in spreads]
    axes.errorbar(x, [spread.mean for spread in spreads], deviations, capsize=2.5, elinewidth=1.1, **style)  # type: ignore[arg-type]


def setting(sweep: Sweep) -> str:
    plan = sweep.runs[0].plan
    subset = plan["data"]["train_subset"]
    counts = sorted({len(row.runs) for row in sweep.rows})
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]}-{counts[-1]}"
    part = f", {subset:,} images" if subset else ""
    return f"{plan['data']['name']}{part}, {plan['model']['name']}, {n}"
