"""The pictures of a report: the ranking of a table, training curves, our numbers as the paper's Figures 3, 4 and 5."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from configs.plan import shortened
from scripts.reporting.compare import (
    INK,
    MOST_CURVES,
    OTHER,
    best_on_val,
    distinct_colour,
    few_rows,
    lines,
    paper_curve,
    paper_number,
)
from scripts.reporting.compare import under_drop as tested_under_drop
from scripts.reporting.deviations import NAMES_OF, RUNS_A_ROW
from scripts.reporting.names import colour_of, label_of, metric_label
from scripts.reporting.runs import Record, Row, Sweep, curve, label, spread
from scripts.reporting.statistics import Difference, Spread

BASELINE = colour_of(["none"]) or "#7a7a7a"
DASHES = (0, (5, 3))
RELIABILITY = (
    "Reliability on test after the last epoch: on the dashed line a network is as often right as it is sure, below it "
    "is too sure. A dot is a bin of confidence, its area the share of the images. For one run the mean length of the "
    "bars, weighted by share, is the expected calibration error (ECE); of several the bins are pooled, ECEs averaged."
)
FEW_POINTS = 8  # of a line
STYLE: Any = {
    "figure.constrained_layout.h_pad": 0.07,  # in inches; by default titles touch the edge
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
    "grid.color": "#e4e4e4",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def draw_all(sweep: Sweep, out: Path) -> list[tuple[str, str]]:
    """Draw what a compared sweep has to show into `out`, and remove what an earlier report had.

    Returns:
        (caption, file name) of each picture.
    """
    of_a_table = any(str(row["paper"].get("place")).startswith("Table") for row in sweep.rows)
    keep_probs, blocks, tested = lines(sweep, "keep_prob"), lines(sweep, "block_size"), tested_under_drop(sweep)
    ranked = of_a_table or (not (keep_probs or blocks or tested) and len(sweep.rows) > 1)
    pictures: tuple[tuple[object, str, str, Callable[[Sweep, Path], None]], ...] = (
        (ranked, "ranking.png", "The table as a picture.", ranking),
        (keep_probs, "keep_prob.png", "Over keep_prob (the paper's Figure 3).", over_keep_prob),
        (blocks, "block_size.png", "Over the block size (the paper's Figure 4).", over_block_size),
        (tested, "under_drop.png", "Under drop at inference (the paper's Figure 5).", under_drop),
        (calibrated(sweep), "reliability.png", RELIABILITY, reliability),
        (
            chosen_rows(sweep),
            "tuning.png",
            "What was chosen: val over the knob of each row, the choice ringed.",
            tuning,
        ),
        (True, "curves.png", "Training curves, mean and one standard deviation over seeds.", curves),
    )
    made = []
    for shown, name, caption, draw in pictures:
        (out / name).unlink(missing_ok=True)
        if shown:
            draw(sweep, out / name)
            made.append((caption, name))
    return made


# The table as a picture.


def ranking(sweep: Sweep, out: Path) -> None:
    """Ours beside the paper's numbers, or beside our differences where it has none."""
    rows, heights = sweep.rows, np.arange(len(sweep.rows))[::-1]
    of_paper = not sweep.made_up and any(row["paper_mean"] is not None for row in rows)
    paired = not of_paper and any(row["difference"] and row["difference"].interval for row in rows)
    two = of_paper or paired
    with drawing(out, 1 + two, 10.0 if two else 7.0, 1.7 + 0.38 * len(rows)) as (figure, panels):
        # Ours: mean and deviation at the last epoch, the peak where it is another, a tick for every run.
        ours = panels[-1] if of_paper else panels[0]
        peaks = False
        for row, height in zip(rows, heights, strict=True):
            last, peak, tint = row["last"], row["peak"], row["colour"]
            if last:
                ours.errorbar(last.mean, height, xerr=last.std or 0, fmt="o", color=tint, capsize=2.5, ms=6)
                ticks(ours, last.values, height, tint)
            if peak and peak != last:
                ours.plot(peak.mean, height, "o", mfc="white", mec=tint, ms=6, zorder=1.5)
                peaks = True
        if sweep.baseline and sweep.baseline["last"]:
            ours.axvline(sweep.baseline["last"].mean, color=BASELINE, linewidth=1, linestyle=DASHES, zorder=0.5)
        ours.set_xlabel(f"{sweep.metric}\n{folded(setting(sweep), 50)}")
        ours.plot([], [], "o", color=INK, label="last epoch")
        if peaks:
            ours.plot([], [], "o", mfc="white", mec=INK, label="peak")
        ours.plot([], [], "|", color=INK, label="single runs")

        if of_paper:
            paper_panel(panels[0], sweep, heights)
            ours.set_title("here", loc="left")
        elif paired:
            for row, height in zip(rows, heights, strict=True):
                if row["difference"]:
                    draw_difference(panels[1], row["difference"], height, row["colour"])
            difference_axis(panels[1], sweep.study.margin)
            baseline = "no regularizer" if sweep.compared_to is None else "the baseline"
            panels[1].set_title("difference, 95 % interval", loc="left")
            unit = " points" if sweep.unit == "%" else ""
            grey = f"\ngrey: within ±{sweep.study.margin:g}{unit}" if sweep.study.margin else ""
            panels[1].set_xlabel(f"from {baseline}, paired by seed{grey}")
            ours.set_title("mean ± standard deviation", loc="left")

        for axes in panels:
            axes.set_ylim(-0.7, len(rows) - 0.4)
            axes.set_yticks(heights)
            axes.set_yticklabels([])
            axes.grid(axis="y", visible=False)
            # Runs that are all alike, such as detectors that find nothing, would show rounding as if it were a result.
            low, high = axes.get_xlim()
            if high - low < 1.0 and sweep.unit == "%":
                axes.set_xlim((low + high - 1.0) / 2, (low + high + 1.0) / 2)
        panels[0].set_yticklabels([folded(row["label"], 40) for row in rows])
        figure.legend(*ours.get_legend_handles_labels(), loc="outside lower right", ncols=3, handletextpad=0.3)


def paper_panel(axes: Axes, sweep: Sweep, heights: Sequence[float] | np.ndarray) -> None:
    """The paper's numbers, and its baseline as a line."""
    for row, height in zip(sweep.rows, heights, strict=True):
        if row["paper_mean"] is not None:
            axes.errorbar(
                row["paper_mean"], height, xerr=row["paper_std"] or 0, fmt="o", color=row["colour"], capsize=2.5, ms=6
            )
    if sweep.baseline and sweep.baseline["paper_mean"] is not None:
        axes.axvline(sweep.baseline["paper_mean"], color=BASELINE, linewidth=1, linestyle=DASHES, zorder=0.5)
    axes.set_title("paper", loc="left")
    stated = RUNS_A_ROW.get(sweep.runs[0]["task"])
    axes.set_xlabel(f"{sweep.metric}\n{paper_setting_text(sweep)}{f', n = {stated}' if stated else ''}")


def draw_difference(axes: Axes, of: Difference, height: float, tint: str) -> None:
    """A dot, a bar for the interval, a tick for every seed."""
    if of.interval:
        axes.plot(of.interval, (height, height), "-", color=tint, linewidth=1.6)
    axes.plot(of.mean, height, "o", color=tint, ms=6)
    ticks(axes, of.values, height, tint)


def difference_axis(axes: Axes, margin: float) -> None:
    """The line at 0, and the margin of equivalence in grey."""
    axes.axvspan(-margin, margin, color=BASELINE, alpha=0.13, linewidth=0)
    axes.axvline(0, color=BASELINE, linewidth=1, linestyle=DASHES, zorder=0.5)


def ticks(axes: Axes, values: Sequence[float], height: float, tint: str) -> None:
    """A tick for every run, below its row."""
    axes.plot(values, np.full(len(values), height - 0.24), "|", color=tint, alpha=0.7, ms=5)


def folded(text: str, width: int) -> str:
    """Parts between commas in lines of at most so many characters, as far as a part is not longer."""
    found = [""]
    for part in text.split(", "):
        longer = f"{found[-1]}, {part}" if found[-1] else part
        found = [*found[:-1], longer] if len(longer) <= width or not found[-1] else [*found[:-1], found[-1] + ",", part]
    return "\n".join(found)


# What was chosen on val.


def chosen_rows(sweep: Sweep) -> list[Row]:
    return [row for row in sweep.rows if (row.get("tuned") or {}).get("chosen")]


def tuning(sweep: Sweep, out: Path) -> None:
    """Val of every candidate over the knob, a panel a row on one vertical axis; a line for each learning rate."""
    rows = chosen_rows(sweep)
    with drawing(out, len(rows), 1.2 + 1.9 * len(rows), 2.9) as (_, panels):
        values = [of["val"] for row in rows for of in row["tuned"]["candidates"]]
        padding = 0.08 * (max(values) - min(values)) or 0.5
        for row, axes in zip(rows, panels, strict=True):
            entry = row["tuned"]
            keys = [*entry["chosen"]]
            by_line: dict[Any, list[tuple[Any, float]]] = {}
            for of in entry["candidates"]:
                own, *rest = (of["values"][key] for key in keys)
                by_line.setdefault(rest[0] if rest else None, []).append((own, of["val"]))
            # Values at equal distances: a list is tried point by point, and lists of powers would crowd at one end.
            names = sorted(
                {own for points in by_line.values() for own, _ in points}, key=lambda own: (str(type(own)), own)
            )
            for i, (rate, points) in enumerate(sorted(by_line.items(), key=lambda item: item[0] or 0)):
                places = [names.index(own) for own, _ in points]
                style = "-" if i == 0 else (0, (4, 1 + i))
                axes.plot(places, [val for _, val in points], marker="o", ms=4, color=row["colour"], linestyle=style)
                if rate is not None:
                    axes.annotate(
                        f"lr {rate:g}",
                        (places[-1], points[-1][1]),
                        fontsize=7,
                        xytext=(2, 3),
                        textcoords="offset points",
                    )
            chosen = next(of for of in entry["candidates"] if of["values"] == entry["chosen"])
            at = (names.index(chosen["values"][keys[0]]), chosen["val"])
            axes.plot(*at, "o", ms=11, mfc="none", mec=row["colour"], mew=1.4)
            axes.set_xticks(range(len(names)), [f"{of:g}" if isinstance(of, int | float) else str(of) for of in names])
            axes.set_xlim(-0.4, len(names) - 0.6)
            axes.set_ylim(min(values) - padding, max(values) + padding)
            axes.set_xlabel(keys[0].rpartition(".")[2])
            name = label_of(row["regularizer"], row["runs"][0]["styles"])
            axes.set_title(name.replace(" + ", " +\n"), loc="left", fontsize=8)
            if axes is not panels[0]:
                axes.set_yticklabels([])
        panels[0].set_ylabel(f"{sweep.metric} on val", fontsize=8)


# Training curves.


def curves(sweep: Sweep, out: Path) -> None:
    """The headline over the epochs, on test and on the training batches, with a band of one standard deviation."""
    rows = few_rows(sweep)
    with drawing(out, 2, 10.0, 4.9) as (figure, (test, train)):
        for row in rows:
            of_test = [curve(run, f"test/{sweep.headline}") for run in row["runs"]]
            of_train = [run["trained"].get(f"train/{sweep.trained_metric}", {}) for run in row["runs"]]
            for axes, found in ((test, of_test), (train, of_train)):
                epochs, values = common(found)
                if len(epochs):
                    width = 2.2 if row["regularizer"] in (["none"], ["dropblock"]) else 1.4
                    mean_line(axes, epochs, values, color=row["colour"], linewidth=width, label=row["label"])
        test.set_title("on test", loc="left")
        train.set_title("on the training batches, as trained", loc="left")
        for axes in (test, train):
            axes.set_xlabel("epoch")
            axes.set_xlim(0, 1.03 * max(row["epochs"] for row in rows))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        test.set_ylabel(sweep.metric)
        train.set_ylabel(metric_label(sweep.trained_metric, sweep.runs[0]))

        # Cut off the start of a long rise, or fall, where all lines are alike, but never the last point of a line.
        drawn = [np.asarray(line.get_ydata(), dtype=float) for line in test.get_lines()]
        if min(map(len, drawn), default=0) >= FEW_POINTS:
            every = np.concatenate(drawn)
            last = [line[-1] for line in drawn]
            low, high = min(np.quantile(every, 0.15), *last), every.max()
            if not sweep.higher_is_better:
                low, high = every.min(), max(np.quantile(every, 0.85), *last)
            test.set_ylim(low - 0.05 * (high - low) - 0.1, high + 0.12 * (high - low) + 0.1)
        legend_below(figure, [test])


# How sure the networks are, and how sure they should be.


def calibrated(sweep: Sweep) -> list[Row]:
    """The rows whose runs have a table of calibration."""
    found = [row for row in sweep.rows if all(bins_of(run) for run in row["runs"])]
    return found[:MOST_CURVES]


def bins_of(run: Record) -> list[Sequence[Any]]:
    """The lines of a run's table of calibration: bin, mean confidence (%), top1 (%), images."""
    return next((table["rows"] for table in run["tables"] if table["name"] == "calibration"), [])


def reliability(sweep: Sweep, out: Path) -> None:
    """A reliability diagram for each row: the accuracy of every bin of confidence, over the images of all its runs."""
    rows = calibrated(sweep)
    columns = min(4, len(rows))
    lines = -(-len(rows) // columns)
    with drawing(out, columns, 1.2 + 2.5 * columns, 0.8 + 3.0 * lines, share=True, lines=lines) as (figure, panels):
        for place, (axes, row) in enumerate(zip(panels, rows, strict=False)):
            # The bins of all runs together, in their order.
            sums: dict[str, np.ndarray] = {}
            for run in row["runs"]:
                for name, sure, right, images in bins_of(run):
                    sums[name] = sums.get(name, np.zeros(3)) + images * np.array([sure, right, 1])
            bins = np.array([sums[name] for name in sorted(sums, key=lambda name: float(name.split()[0]))])
            sure, right, share = bins[:, 0] / bins[:, 2], bins[:, 1] / bins[:, 2], bins[:, 2] / bins[:, 2].sum()
            # A dot has the area of its share of the images, so that an empty bin does not look like a full one.
            axes.plot([0, 100], [0, 100], color=BASELINE, linewidth=1, linestyle=DASHES)
            axes.vlines(sure, right, sure, color=row["colour"], alpha=0.35, linewidth=4)
            axes.scatter(sure, right, s=500 * share, linewidth=0, color=row["colour"], zorder=2, clip_on=False)
            ece = spread(row, "last/test/ece")
            axes.set_title(f"{folded(row['label'], 26)}\nECE {ece.text(1) if ece else '-'} %", loc="left", fontsize=9)
            axes.set_xlim(0, 103)
            axes.set_ylim(0, 103)
            axes.set_aspect("equal")
            axes.label_outer()
            axes.tick_params(labelbottom=place + columns >= len(rows))
        for axes in panels[len(rows) :]:
            axes.set_axis_off()
        figure.supxlabel("confidence, the highest probability (%)", fontsize=10)
        figure.supylabel("top-1 accuracy (%)", fontsize=10)


def mean_line(axes: Axes, epochs: np.ndarray, values: np.ndarray, **style: Any) -> None:
    """The mean over the runs with its band; where there are few points, which no line shows, with markers."""
    mean = values.mean(1)
    std = values.std(1, ddof=1) if values.shape[1] > 1 else np.zeros(len(epochs))
    axes.plot(epochs, mean, marker="o" if len(epochs) < 4 else "", ms=4, **style)
    if len(epochs) == 1:
        axes.vlines(epochs, mean - std, mean + std, color=style["color"])
    else:
        axes.fill_between(epochs, mean - std, mean + std, color=style["color"], alpha=0.13, linewidth=0)


def common(found: Sequence[dict[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """(places of shape (points,), values of shape (points, curves)) where all curves have a value."""
    places = sorted(set.intersection(*map(set, found)))
    return np.array(places), np.array([[of[place] for of in found] for place in places])


def write_mean_curves(sweep: Sweep, out: Path) -> Path:
    """Write `out`/tensorboard/ROW for every row, the mean over its runs of all metrics that they logged.

    At optimizer steps, as the runs have them, so that both can be laid over each other. What stood there before is
    removed.

    Returns:
        the folder `out`/tensorboard.
    """
    from torch.utils.tensorboard import SummaryWriter

    place = out / "tensorboard"
    for earlier in place.glob("*/events.out.tfevents.*"):
        earlier.unlink()
    for row in sweep.rows:
        folder = place / shortened(re.sub(r"[^\w.+=-]+", "_", row["label"]))
        with SummaryWriter(str(folder)) as writer:
            for name in sorted(set(row["runs"][0]["trained"]) - {"step", "epoch"}):
                for step, values in zip(*common([curve(run, name, by="step") for run in row["runs"]]), strict=True):
                    writer.add_scalar(name, float(np.mean(values)), int(step))
    return place


# The headline over a knob.


def over_keep_prob(sweep: Sweep, out: Path) -> None:
    """The headline over keep_prob, in the axes of the paper's Figure 3, with its own curves beside ours if known."""
    found = lines(sweep, "keep_prob")
    beside = not sweep.made_up and any(paper_curve(rows[0]) for rows in found)
    with drawing(out, 1 + beside, 10.0 if beside else 6.5, 4.9) as (figure, panels):
        ours = panels[-1]
        for rows, tint in zip(found, colours_of([rows[0] for rows in found]), strict=True):
            series(ours, points_of(rows, "keep_prob"), tint, label(sweep, rows[0], without="keep_prob"))
            best = best_on_val(rows)
            if best is not None and best["last"]:
                ours.plot(best["keep_prob"], best["last"].mean, "o", ms=12, mfc="none", mec=tint, mew=1.4)
            if beside:
                points = [(keep_prob, Spread((value,))) for keep_prob, value in paper_curve(rows[0]).items()]
                series(panels[0], points, tint)
        baseline_band(ours, sweep)
        ours.set_xlabel(f"keep_prob\n{setting(sweep)}, last epoch")
        if beside:
            ours.set_title("here", loc="left")
            panels[0].set_title("paper", loc="left")
            panels[0].set_xlabel(f"keep_prob\n{paper_setting_text(sweep)}")
            base = paper_number(sweep.baseline)[0] if sweep.baseline else None
            if base is not None:
                panels[0].axhline(base, color=BASELINE, linewidth=1.3, linestyle=DASHES)
        for axes in panels:
            axes.set_ylabel(metric_with_whiskers(sweep) if axes is ours else sweep.metric)
            axes.set_xlim(right=1.0)
        ours.plot([], [], "o", ms=9, mfc="none", mec=INK, label="best on val")
        legend_below(figure, [ours])


def over_block_size(sweep: Sweep, out: Path) -> None:
    """The headline over the block size, a line for every choice of groups and branches, as in the paper's Figure 4."""
    found = lines(sweep, "block_size")
    sizes = sorted({row["block_size"] for rows in found for row in rows})

    # The parts that all labels begin with are the title; the legend has what is left of each.
    parts = [label(sweep, rows[0], without="block_size").split(", ") for rows in found]
    shared = list(takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False)))
    names = [", ".join(part[len(shared) :]) or part[0] for part in parts]

    def family(row: Row) -> str:
        """A key of what a line's colour stands for: everything but the branches and the block size."""
        return repr({key: value for key, value in row["tried"].items() if key not in ("skip", "block_size")})

    families = sorted({family(rows[0]) for rows in found})  # groups 3+4 before group 4
    tints = (colour_of(["dropblock"]) or INK, *OTHER)
    with drawing(out, 1, 8.0, 4.8) as (figure, (axes,)):
        for i, (rows, name) in enumerate(zip(found, names, strict=True)):
            aside = 0.04 * (i - (len(found) - 1) / 2)  # whiskers of two lines would hide each other
            points = [(sizes.index(size) + aside, of) for size, of in points_of(rows, "block_size")]
            tint = tints[families.index(family(rows[0])) % len(tints)]
            marker, linestyle = ("o", "-") if rows[0]["skip"] else ("s", "--")
            series(axes, points, tint, name, marker=marker, linestyle=linestyle)
        baseline_band(axes, sweep)
        axes.set_xticks(range(len(sizes)), [block_name(sweep, size) for size in sizes])
        axes.set_xlabel(f"block size\n{setting(sweep)}, last epoch")
        axes.set_ylabel(metric_with_whiskers(sweep))
        axes.set_title(", ".join(part[0] for part in shared), loc="left")
        legend_below(figure, [axes])


def block_name(sweep: Sweep, size: int) -> str:
    """A block size, and the groups whose maps it covers whole, from the sites tables of the runs."""
    covered: set[Any] = set()
    for row in sweep.rows:
        if size in (row["block_size"], *row["same"]):
            partly, groups = set(), set()
            for site in row["sites"]:
                # Every feature map that passes there, none out of a layer's reach; an older record has one.
                maps = site["map_sizes"] if "map_sizes" in site else [site["map_size"]]
                groups |= {site["group"]} if maps else set()
                if not all(list(site["block"]) == list(of_map[-2:]) for of_map in maps):
                    partly.add(site["group"])
            covered |= groups - partly
    whole = "+".join(str(group) for group in sorted(covered, key=str))
    return f"{size}\nwhole map,\ngroup{'s' if len(covered) > 1 else ''} {whole}" if covered else str(size)


def under_drop(sweep: Sweep, out: Path) -> None:
    """The headline under drop at inference, as in the paper's Figure 5: a panel for each block size tested with."""
    tested = tested_under_drop(sweep)
    blocks = sorted({line["block_size"] for line in tested})
    tints = dict(zip([row["label"] for row in sweep.rows], colours_of(sweep.rows), strict=True))
    with drawing(out, len(blocks), max(6.5, 4.6 * len(blocks)), 4.7, share=True) as (figure, panels):
        for line in tested:
            name = line["row"]["label"]
            series(panels[blocks.index(line["block_size"])], list(line["values"].items()), tints[name], name)
        for axes, block in zip(panels, blocks, strict=True):
            axes.invert_xaxis()
            axes.set_xlabel("keep_prob at inference")
            axes.set_title(f"tested with block {block}", loc="left")
        panels[0].set_ylabel(metric_with_whiskers(sweep))
        legend_below(figure, panels, "trained with")


def points_of(rows: Sequence[Row], knob: str) -> list[tuple[float, Spread]]:
    """(value of the knob, the headline at the last epoch) of the rows that have both."""
    return [(row[knob], row["last"]) for row in rows if row["last"]]


def series(
    axes: Axes, points: Sequence[tuple[float, Spread]], tint: str, name: str | None = None, **style: Any
) -> None:
    """A line of means with whiskers of one standard deviation, which a single run does not have."""
    if points:
        x, spreads = zip(*points, strict=True)
        means, whiskers = [of.mean for of in spreads], [of.std or 0.0 for of in spreads]
        shape: dict[str, Any] = {"marker": "o", "linestyle": "-", **style}
        axes.errorbar(
            x, means, whiskers, label=name, color=tint, ms=5, linewidth=1.6, capsize=2.5, elinewidth=1.1, **shape
        )


def baseline_band(axes: Axes, sweep: Sweep) -> None:
    """The level of the row without a regularizer, ± one standard deviation."""
    of = sweep.baseline["last"] if sweep.baseline else None
    if of is not None:
        axes.axhline(of.mean, color=BASELINE, linewidth=1.3, linestyle=DASHES, label="no regularizer")
        axes.axhspan(of.mean - (of.std or 0), of.mean + (of.std or 0), color=BASELINE, alpha=0.13)


def colours_of(rows: Sequence[Row]) -> list[str]:
    """A colour for each row, of the same method a second time another."""
    used: list[str] = []
    for row in rows:
        used.append(distinct_colour(row, used))
    return used


# Axes and lettering that all pictures share.


@contextmanager
def drawing(
    out: Path, columns: int, width: float, height: float, share: bool = False, lines: int = 1
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of some panels side by side, in one line or several, saved at the end."""
    with plt.rc_context(STYLE):
        figure, grid = plt.subplots(
            lines, columns, figsize=(width, height), layout="constrained", squeeze=False, sharey=share
        )
        yield figure, list(grid.flat)
        figure.savefig(out, dpi=130)
        plt.close(figure)


def legend_below(figure: Figure, panels: Sequence[Axes], title: str | None = None) -> None:
    """One legend for all panels, each label once, in as many columns as fit."""
    handles = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    widest = 0.6 + 0.073 * max((len(name) for name in handles), default=0)  # in inches, at 9 points
    columns = max(1, min(3, int(figure.get_figwidth() / widest)))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, title=title)


def setting(sweep: Sweep) -> str:
    """Data, network and number of seeds, for an axis."""
    run = sweep.runs[0]
    counts = sorted({len(row["runs"]) for row in sweep.rows})
    n = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]}-{counts[-1]}"
    part = f", {run['train_subset']:,} images" if run["train_subset"] else ""
    return f"{run['data_title']}{part}, {run['model']}, {n}"


def paper_setting_text(sweep: Sweep) -> str:
    """The paper's data and network, for the axes of its numbers."""
    return NAMES_OF.get(sweep.runs[0]["task"], "the paper's setting")


def metric_with_whiskers(sweep: Sweep) -> str:
    """The label of an axis on which points have whiskers, where there are several seeds."""
    several = any(len(row["runs"]) > 1 for row in sweep.rows)
    return f"{sweep.metric}{', mean ± standard deviation' if several else ''}"
