"""The pictures of a report: the ranking of a table, training curves, and those of `knob_figures`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from scripts.reporting.comparison import best_on_val, difference
from scripts.reporting.knob_figures import over_block_size, over_keep_prob, under_drop_lines
from scripts.reporting.mean_curves import common_curve
from scripts.reporting.names import metric_label
from scripts.reporting.sections import under_drop
from scripts.reporting.setting import RUNS_A_ROW, paper_setting_text, task_of
from scripts.reporting.statistics import Difference
from scripts.reporting.style import BASELINE, INK, colour, drawing, legend_below, setting
from scripts.reporting.sweep import Row, Sweep

FEW_POINTS = 8  # of a line


def ranking(sweep: Sweep, out: Path) -> None:
    """The table as a picture: ours beside the paper's numbers, or beside our differences where it has none."""
    rows, y = sweep.rows, np.arange(len(sweep.rows))[::-1]
    of_paper = not sweep.made_up and any(row.paper_number()[0] is not None for row in rows)
    paired = not of_paper and any(of.interval for row in rows if (of := difference(sweep, row)))
    with drawing(out, 1 + (of_paper or paired), 10.0 if of_paper or paired else 7.0, 1.7 + 0.38 * len(rows)) as drawn:
        figure, panels = drawn
        ours = panels[-1] if of_paper else panels[0]
        our_panel(ours, sweep, y)
        if of_paper:
            paper_panel(panels[0], sweep, y)
            ours.set_title("here", loc="left")
        if paired:
            difference_panel(panels[1], sweep, y)
            ours.set_title("mean ± standard deviation", loc="left")
        for axes in panels:
            axes.set_ylim(-0.7, len(rows) - 0.4)
            axes.set_yticks(y)
            axes.set_yticklabels([])
            axes.grid(axis="y", visible=False)
            at_least_a_point(axes)
        panels[0].set_yticklabels([folded(sweep.label(row), 40) for row in rows])
        figure.legend(*ours.get_legend_handles_labels(), loc="outside lower right", ncols=3, handletextpad=0.3)


def at_least_a_point(axes: Axes) -> None:
    """Runs that are all alike, such as detectors that find nothing, would show rounding as if it were a result."""
    low, high = axes.get_xlim()
    if high - low < 1.0:
        axes.set_xlim((low + high - 1.0) / 2, (low + high + 1.0) / 2)


def paper_panel(axes: Axes, sweep: Sweep, y: np.ndarray) -> None:
    """The paper's numbers, and its baseline as a line."""
    tints = colours(sweep)
    for row, height in zip(sweep.rows, y, strict=True):
        value, std = row.paper_number()
        if value is not None:
            axes.errorbar(value, height, xerr=std or 0, fmt="o", color=tints[sweep.label(row)], capsize=2.5, ms=6)
    base = sweep.baseline.paper_number()[0] if sweep.baseline else None
    if base is not None:
        axes.axvline(base, color=BASELINE, linewidth=1, linestyle=(0, (5, 3)), zorder=0.5)
    axes.set_title("paper", loc="left")
    stated = RUNS_A_ROW.get(task_of(sweep))
    axes.set_xlabel(f"{sweep.metric}\n{paper_setting_text(sweep)}{f', n = {stated}' if stated else ''}")


def folded(text: str, width: int) -> str:
    """Parts between commas in lines of at most so many characters, as far as a part is not longer."""
    lines = [""]
    for part in text.split(", "):
        longer = f"{lines[-1]}, {part}" if lines[-1] else part
        lines = [*lines[:-1], longer] if len(longer) <= width or not lines[-1] else [*lines[:-1], lines[-1] + ",", part]
    return "\n".join(lines)


def our_panel(axes: Axes, sweep: Sweep, y: np.ndarray) -> None:
    """Mean and deviation at the last epoch, the peak where it is another, a tick for every run; the baseline's line."""
    tints, peaks = colours(sweep), False
    for row, height in zip(sweep.rows, y, strict=True):
        tint, last, peak = tints[sweep.label(row)], row.spread("last"), row.spread("peak")
        if last:
            axes.errorbar(last.mean, height, xerr=last.std or 0, fmt="o", color=tint, capsize=2.5, ms=6)
            ticks(axes, last.values, height, tint)
        if peak and peak != last:
            axes.plot(peak.mean, height, "o", mfc="white", mec=tint, ms=6, zorder=1.5)
            peaks = True
    base = sweep.baseline.spread("last") if sweep.baseline else None
    if base is not None:
        axes.axvline(base.mean, color=BASELINE, linewidth=1, linestyle=(0, (5, 3)), zorder=0.5)
    axes.set_xlabel(f"{sweep.metric}\n{folded(setting(sweep), 50)}")
    axes.plot([], [], "o", color=INK, label="last epoch")
    if peaks:
        axes.plot([], [], "o", mfc="white", mec=INK, label="peak")
    axes.plot([], [], "|", color=INK, label="single runs")


def difference_panel(axes: Axes, sweep: Sweep, y: np.ndarray) -> None:
    """What each row has more than its baseline, paired by seed, with its 95 % interval and a tick for every seed."""
    tints = colours(sweep)
    for row, height in zip(sweep.rows, y, strict=True):
        if of := difference(sweep, row):
            draw_difference(axes, of, height, tints[sweep.label(row)])
    margin, baseline = sweep.study.margin, "no regularizer" if sweep.compared_to is None else "the baseline"
    difference_axis(axes, margin)
    axes.set_title("difference, 95 % interval", loc="left")
    axes.set_xlabel(f"from {baseline}, paired by seed\ngrey: within ±{margin:g} points")


def draw_difference(axes: Axes, of: Difference, height: float, tint: str) -> None:
    """A dot, a bar for the interval, a tick for every seed."""
    if of.interval:
        axes.plot(of.interval, (height, height), "-", color=tint, linewidth=1.6)
    axes.plot(of.mean, height, "o", color=tint, ms=6)
    ticks(axes, of.values, height, tint)


def difference_axis(axes: Axes, margin: float) -> None:
    """The line at 0, and the margin of equivalence in grey."""
    axes.axvspan(-margin, margin, color=BASELINE, alpha=0.13, linewidth=0)
    axes.axvline(0, color=BASELINE, linewidth=1, linestyle=(0, (5, 3)), zorder=0.5)


def ticks(axes: Axes, values: Sequence[float], height: float, tint: str) -> None:
    """A tick for every run, below its row."""
    axes.plot(values, np.full(len(values), height - 0.24), "|", color=tint, alpha=0.7, ms=5)


def curves(sweep: Sweep, out: Path) -> None:
    """The headline over the epochs, on test and on the training batches, with a band of one standard deviation."""
    names = {"test": sweep.rows[0].headline, "train": sweep.trained_metric}
    rows = few_rows(sweep)
    longest = max(row.plan["recipe"]["epochs"] for row in rows)
    with drawing(out, 2, 10.0, 4.9) as (figure, (test, train)):
        tints = colours(sweep)
        for row in rows:
            tint = tints[sweep.label(row)]
            for axes, name in ((test, "test"), (train, "train")):
                epochs, values = common_curve(row, f"{name}/{names[name]}", by_epoch=name == "train")
                if len(epochs):
                    width = 2.2 if row.plan["regularizer"] in (["none"], ["dropblock"]) else 1.4
                    mean_line(axes, epochs, values, color=tint, linewidth=width, label=sweep.label(row))
        test.set_title("on test", loc="left")
        train.set_title("on the training batches, as trained", loc="left")
        for axes in (test, train):
            axes.set_xlabel("epoch")
            axes.set_xlim(0, 1.03 * longest)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        test.set_ylabel(sweep.metric)
        train.set_ylabel(metric_label(sweep.trained_metric, sweep.runs[0].summary))
        focus(test)
        legend_below(figure, [test])


def mean_line(axes: Axes, epochs: np.ndarray, values: np.ndarray, **style: Any) -> None:
    """The mean over the runs with its band; where there are few points, which no line shows, with markers."""
    mean = values.mean(1)
    std = values.std(1, ddof=1) if values.shape[1] > 1 else np.zeros(len(epochs))
    axes.plot(epochs, mean, marker="o" if len(epochs) < 4 else "", ms=4, **style)
    if len(epochs) == 1:
        axes.vlines(epochs, mean - std, mean + std, color=style["color"])
    else:
        axes.fill_between(epochs, mean - std, mean + std, color=style["color"], alpha=0.13, linewidth=0)


def focus(axes: Axes) -> None:
    """Cut off the first part of the rise, where all lines are alike, but the end of none; few points are no rise."""
    lines = [np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()]
    if min(map(len, lines), default=0) < FEW_POINTS:
        return
    values = np.concatenate(lines)
    low, high = min(np.quantile(values, 0.15), *(line[-1] for line in lines)), values.max()
    axes.set_ylim(low - 0.05 * (high - low) - 0.1, high + 0.12 * (high - low) + 0.1)


def few_rows(sweep: Sweep) -> list[Row]:
    """At most ten rows for the training curves: where a knob is varied and val can choose, the best of each line."""
    if len(sweep.rows) <= 10:
        return sweep.rows
    lines = sweep.lines("keep_prob") or sweep.lines("block_size")
    chosen = [best for rows in lines if (best := best_on_val(rows))]
    if not chosen:
        return sweep.rows[:10]
    return ([sweep.baseline] if sweep.baseline else []) + chosen[:9]


def colours(sweep: Sweep) -> dict[str, str]:
    """The colour of each row, by its label: its method's; where a method has several curves, another for each."""
    found = {sweep.label(row): colour(row) for row in sweep.rows}
    used: list[str] = []
    for row in few_rows(sweep):
        used.append(colour(row, used))
        found[sweep.label(row)] = used[-1]
    return found


def draw_all(sweep: Sweep, out: Path) -> list[tuple[str, str]]:
    """Draw what this sweep has to show, and remove what an earlier report had; (caption, file name) of each."""
    of_a_table = any(str(row.paper.get("place")).startswith("Table") for row in sweep.rows)
    kept, blocks, dropped = sweep.lines("keep_prob"), sweep.lines("block_size"), under_drop(sweep)
    ranked = of_a_table or (not (kept or blocks or dropped) and len(sweep.rows) > 1)
    pictures: tuple[tuple[object, str, str, Callable[[Sweep, Path], None]], ...] = (
        (ranked, "ranking.png", "The table as a picture.", ranking),
        (kept, "keep_prob.png", "Over keep_prob (the paper's Figure 3).", over_keep_prob),
        (blocks, "block_size.png", "Over the block size (the paper's Figure 4).", over_block_size),
        (dropped, "under_drop.png", "Under drop at inference (the paper's Figure 5).", under_drop_lines),
        (few_rows(sweep), "curves.png", "Training curves, mean and one standard deviation over seeds.", curves),
    )
    made = []
    for shown, name, caption, draw in pictures:
        (out / name).unlink(missing_ok=True)
        if shown:
            draw(sweep, out / name)
            made.append((caption, name))
    return made
