"""One figure of the question when to drop: the schedules where a network overfits, and where it underfits."""

from __future__ import annotations

from pathlib import Path

from scripts.reporting.compare import INK
from scripts.reporting.figures import difference_axis, draw_difference, drawing
from scripts.reporting.names import colour_of
from scripts.reporting.runs import study_of
from scripts.reporting.statistics import Difference
from scripts.values import differences_by_seed, rows_of

REGIMES = {"schedules_overfit": "overfits", "schedules_underfit": "underfits"}
SCHEDULES = ("linear", "constant", "early", "late")


def draw_regimes(results: Path) -> Path | None:
    """Draw schedules.png from the kept reports of both sweeps; None, and nothing drawn, where one is missing.

    Args:
        results: the folder docs/results.
    """
    tables = {name: rows_of(results / name / "report.csv") for name in REGIMES}
    if not all(tables.values()):
        return None
    out = results / "schedules.png"
    with drawing(out, 2, 10.0, 3.8) as (_, panels):
        for axes, (name, rows) in zip(panels, tables.items(), strict=True):
            compared = [row for schedule in SCHEDULES for row in rows if row["schedule"] == schedule]
            heights = range(len(compared))[::-1]
            for row, height in zip(compared, heights, strict=True):
                by_seed = differences_by_seed(row)
                difference = Difference(tuple(by_seed.values()), tuple(by_seed))
                draw_difference(axes, difference, height, colour_of(["dropblock"]) or INK)
            margin = study_of(name).margin
            difference_axis(axes, margin)
            axes.set_xlabel(
                "top-1 on test minus no regularizer's,\n"
                f"95 % interval, single seeds below it;\ngrey: within ±{margin:g} points"
            )
            axes.set_title(f"a network that {REGIMES[name]}, n = {compared[0]['n']}", loc="left")
            axes.set_yticks(heights, [name_of(row) for row in compared])
            axes.set_ylim(-0.6, len(compared) - 0.5)
            axes.grid(axis="y", visible=False)
        ends = [end for axes in panels for end in axes.get_xlim()]
        for axes in panels:  # one scale, so that the regimes can be compared
            axes.set_xlim(min(ends), max(ends))
    return out


def name_of(row: dict[str, str]) -> str:
    """Schedule and keep_prob, and below them what was dropped of the last group over the run."""
    group, share = row["dropped"].split()[-1].split(":")
    return (
        f"{row['schedule']}, keep_prob {float(row['keep_prob']):g}\n{100 * float(share):.1f} % of {group} over the run"
    )
