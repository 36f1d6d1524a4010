"""The pictures of a report: the ranking of a table, training curves, and those of `knob_figures`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from scripts.reporting.knob_figures import over_block_size, over_keep_prob, under_drop_lines
from scripts.reporting.style import COLOURS, INK, colour, drawing, legend_below, setting
from scripts.reporting.sweep import Row, Sweep
from scripts.reporting.tables import best_on_val, under_drop


def ranking(sweep: Sweep, out: Path) -> None:
    """The table as a picture: the paper's number of every row on the left, ours on the right."""
    rows = sweep.rows
    y = np.arange(len(rows))[::-1]
    with drawing(out, 2, 10.0, 1.6 + 0.36 * len(rows)) as (figure, (paper, ours)):
        for row, height in zip(rows, y, strict=True):
            (value, std), tint = row.paper_number(), colour(row)
            if value is not None:
                paper.errorbar(value, height, xerr=std or 0, fmt="o", color=tint, capsize=2.5, ms=6)
            if last := row.spread("last"):
                ours.errorbar(last.mean, height, xerr=last.std or 0, fmt="o", color=tint, capsize=2.5, ms=6)
                values = [run.value("last", "test") or 0.0 for run in row.runs]
                ours.plot(values, np.full(len(values), height - 0.24), "|", color=tint, alpha=0.7, ms=5)
            if peak := row.spread("peak"):
                ours.plot(peak.mean, height, "o", mfc="white", mec=tint, ms=6, zorder=1.5)
        for axes, base in (
            (paper, sweep.baseline.paper_number()[0] if sweep.baseline else None),
            (ours, mean_of(sweep.baseline)),
        ):
            axes.set_ylim(-0.7, len(rows) - 0.4)
            axes.set_yticks(y)
            axes.grid(axis="y", visible=False)
            if base is not None:
                axes.axvline(base, color=COLOURS["none"], linewidth=1, linestyle=(0, (5, 3)), zorder=0.5)
        paper.set_yticklabels([sweep.label(row).replace(" smoothing, ", " smoothing,\n") for row in rows])
        ours.set_yticklabels([])
        paper.set_title("paper", loc="left")
        ours.set_title("here", loc="left")
        paper.set_xlabel("top-1 (%)\nImageNet, ResNet-50, peak, n = 3")
        ours.set_xlabel(f"top-1 (%)\n{setting(sweep)}")
        ours.plot([], [], "o", color=INK, label="last epoch")
        ours.plot([], [], "o", mfc="white", mec=INK, label="peak")
        ours.plot([], [], "|", color=INK, label="single runs")
        figure.legend(*ours.get_legend_handles_labels(), loc="outside lower right", ncols=3, handletextpad=0.3)


def mean_of(row: Row | None) -> float | None:
    spread = row.spread("last") if row else None
    return None if spread is None else spread.mean


def curves(sweep: Sweep, rows: Sequence[Row], out: Path) -> None:
    """Accuracy over the epochs, on test and on the training batches, with a band of one standard deviation."""
    with drawing(out, 2, 10.0, 4.9) as (figure, (test, train)):
        used: list[str] = []
        for row in rows:
            tint = colour(row, used)
            used.append(tint)
            for axes, name in ((test, "test"), (train, "train")):
                epochs, values = common_curve(row, f"{name}/{row.runs[0].summary['headline']}", smooth=name == "train")
                if not len(epochs):
                    continue
                mean, std = values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(epochs))
                width = 2.2 if row.plan["regularizer"] in (["none"], ["dropblock"]) else 1.4
                axes.plot(epochs, mean, color=tint, linewidth=width, label=sweep.label(row))
                axes.fill_between(epochs, mean - std, mean + std, color=tint, alpha=0.13, linewidth=0)
        test.set_title("on test", loc="left")
        train.set_title("on the training batches, as trained", loc="left")
        for axes in (test, train):
            axes.set_xlabel("epoch")
            axes.set_ylabel("top-1 (%)")
        focus(test)
        legend_below(figure, [test])


def common_curve(row: Row, name: str, smooth: bool) -> tuple[np.ndarray, np.ndarray]:
    """(epochs, values of shape (runs, epochs)) at the epochs that all runs have; `smooth` takes means of epochs."""
    found = []
    for run in row.runs:
        by_epoch: dict[float, list[float]] = {}
        for epoch, value in run.curve(name).items():
            by_epoch.setdefault(float(np.ceil(epoch)) if smooth else epoch, []).append(value)
        found.append({epoch: float(np.mean(values)) for epoch, values in by_epoch.items()})
    epochs = sorted(set.intersection(*(set(curve) for curve in found)))
    return np.array(epochs), np.array([[curve[epoch] for epoch in epochs] for curve in found])


def focus(axes: Axes) -> None:
    """Cut off the first part of the rise, where all lines are alike."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()] or [np.zeros(1)])
    if len(values) > 1:
        low, high = np.quantile(values, 0.15), values.max()
        axes.set_ylim(low - 0.05 * (high - low) - 0.1, high + 0.12 * (high - low) + 0.1)


def few_rows(sweep: Sweep) -> list[Row]:
    """At most ten rows for the training curves: where a knob is varied, what val chooses of each line."""
    if len(sweep.rows) <= 10:
        return sweep.rows
    lines = sweep.lines("keep_prob") or sweep.lines("block_size")
    chosen = [best for rows in lines if (best := best_on_val(rows))]
    return ([sweep.baseline] if sweep.baseline else []) + chosen[:9]


def draw_all(sweep: Sweep, out: Path) -> list[tuple[str, str]]:
    """Draw what this sweep has to show; (caption, file name) of each."""
    made = []
    if any(str(row.paper.get("place")).startswith("Table") for row in sweep.rows):
        ranking(sweep, out / "ranking.png")
        made.append(
            ("The table as a picture: the paper's numbers and ours, mean and standard deviation.", "ranking.png")
        )
    if sweep.lines("keep_prob"):
        over_keep_prob(sweep, out / "keep_prob.png")
        made.append(
            ("Accuracy over keep_prob (the paper's Figure 3); bars are one standard deviation.", "keep_prob.png")
        )
    if sweep.lines("block_size"):
        over_block_size(sweep, out / "block_size.png")
        made.append(
            ("Accuracy over the block size (the paper's Figure 4); bars are one standard deviation.", "block_size.png")
        )
    if under_drop(sweep):
        under_drop_lines(sweep, out / "under_drop.png")
        made.append(("Accuracy under drop at inference (the paper's Figure 5).", "under_drop.png"))
    rows = few_rows(sweep)
    if rows:
        curves(sweep, rows, out / "curves.png")
        made.append(("Training curves, mean and one standard deviation over seeds.", "curves.png"))
    return made
