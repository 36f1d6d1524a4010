"""The headline over a knob: Figures 3, 4 and 5 of the paper with our numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from scripts.reporting.comparison import best_on_val
from scripts.reporting.names import colour_of
from scripts.reporting.sections import under_drop
from scripts.reporting.setting import paper_setting_text
from scripts.reporting.statistics import Spread
from scripts.reporting.style import (
    BASELINE,
    INK,
    OTHER,
    Series,
    baseline_line,
    colour,
    draw_series,
    drawing,
    legend_below,
    setting,
)
from scripts.reporting.sweep import Row, Sweep


def baseline_band(axes: Axes, sweep: Sweep) -> None:
    spread = sweep.baseline.spread("last") if sweep.baseline else None
    if spread is not None:
        baseline_line(axes, spread.mean, "no regularizer")
        reach = spread.std or 0
        axes.axhspan(spread.mean - reach, spread.mean + reach, color=BASELINE, alpha=0.13)


def points_of(rows: Sequence[Row], knob: str) -> list[tuple[float, Spread]]:
    """(value of the knob, the headline at the last epoch) of the rows that have both."""
    return [(row.knob(knob), spread) for row in rows if (spread := row.spread("last"))]


def colours_of(rows: Sequence[Row]) -> list[str]:
    """A colour for each row, of the same method a second time another."""
    used: list[str] = []
    for row in rows:
        used.append(colour(row, used))
    return used


def metric_with_whiskers(sweep: Sweep) -> str:
    """The label of an axis on which points have whiskers, where there are several seeds."""
    several = any(len(row.runs) > 1 for row in sweep.rows)
    return f"{sweep.metric}{', mean ± standard deviation' if several else ''}"


def over_keep_prob(sweep: Sweep, out: Path) -> None:
    """The headline over keep_prob, in the axes of the paper's Figure 3, with its own curves beside ours if known."""
    lines = sweep.lines("keep_prob")
    beside = not sweep.made_up and any(rows[0].paper_curve for rows in lines)
    with drawing(out, 1 + beside, 10.0 if beside else 6.5, 4.9) as (figure, panels):
        ours = panels[-1]
        for rows, tint in zip(lines, colours_of([rows[0] for rows in lines]), strict=True):
            draw_series(ours, Series(sweep.label(rows[0], without="keep_prob"), points_of(rows, "keep_prob"), tint))
            best = best_on_val(rows)
            if best is not None and (spread := best.spread("last")):
                ours.plot(best.knob("keep_prob"), spread.mean, "o", ms=12, mfc="none", mec=tint, mew=1.4)
            if beside:
                curve = [(keep_prob, Spread((value,))) for keep_prob, value in rows[0].paper_curve.items()]
                draw_series(panels[0], Series(None, curve, tint))
        baseline_band(ours, sweep)
        ours.set_xlabel(f"keep_prob\n{setting(sweep)}, last epoch")
        if beside:
            ours.set_title("here", loc="left")
            panels[0].set_title("paper", loc="left")
            panels[0].set_xlabel(f"keep_prob\n{paper_setting_text(sweep)}")
            base = sweep.baseline.paper_number()[0] if sweep.baseline else None
            if base is not None:
                baseline_line(panels[0], base)
        for axes in panels:
            axes.set_ylabel(metric_with_whiskers(sweep) if axes is ours else sweep.metric)
            axes.set_xlim(right=1.0)
        ours.plot([], [], "o", ms=9, mfc="none", mec=INK, label="best on val")
        legend_below(figure, [ours])


def over_block_size(sweep: Sweep, out: Path) -> None:
    """The headline over the block size, a line for every choice of groups and branches, as in the paper's Figure 4."""
    lines = sweep.lines("block_size")
    sizes = sorted({row.knob("block_size") for rows in lines for row in rows})
    title, names = shared_words([sweep.label(rows[0], without="block_size") for rows in lines])
    families = sorted({family(rows[0]) for rows in lines})  # groups 3+4 before group 4
    with drawing(out, 1, 8.0, 4.8) as (figure, (axes,)):
        for i, (rows, name) in enumerate(zip(lines, names, strict=True)):
            aside = 0.04 * (i - (len(lines) - 1) / 2)
            points = [(sizes.index(size) + aside, spread) for size, spread in points_of(rows, "block_size")]
            tint = (colour_of(["dropblock"]) or INK, *OTHER)[families.index(family(rows[0])) % (1 + len(OTHER))]
            drawn = ("o", "-") if rows[0].knob("skip") else ("s", "--")
            draw_series(axes, Series(name, points, tint, *drawn))
        baseline_band(axes, sweep)
        axes.set_xticks(range(len(sizes)), [block_name(sweep, size) for size in sizes])
        axes.set_xlabel(f"block size\n{setting(sweep)}, last epoch")
        axes.set_ylabel(metric_with_whiskers(sweep))
        axes.set_title(title, loc="left")
        legend_below(figure, [axes])


def family(row: Row) -> str:
    """What a line's colour stands for: everything but the branches and the block size."""
    return repr({key: value for key, value in row.tried.items() if key not in ("skip", "block_size")})


def shared_words(names: Sequence[str]) -> tuple[str, list[str]]:
    """The parts that all names begin with, and what is left of each."""
    parts = [name.split(", ") for name in names]
    shared = list(takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False)))
    return ", ".join(part[0] for part in shared), [", ".join(part[len(shared) :]) or part[0] for part in parts]


def block_name(sweep: Sweep, size: int) -> str:
    """A block size, and which groups' maps it covers whole, from the sites tables of the runs."""
    covered: set[Any] = set()
    for row in sweep.rows:
        if size in (row.knob("block_size"), *row.same):
            sites = [site for site in row.runs[0].folder.read("sites.json") or [] if map_sizes(site)]
            covered |= {site["group"] for site in sites} - {site["group"] for site in sites if not is_covered(site)}
    whole = "+".join(str(group) for group in sorted(covered, key=str))
    return f"{size}\nwhole map,\ngroup{'s' if len(covered) > 1 else ''} {whole}" if covered else str(size)


def is_covered(site: dict[str, Any]) -> bool:
    """Whether a block covers every feature map that a line of the sites table stands for."""
    return all(list(site["block"]) == list(size[-2:]) for size in map_sizes(site))


def map_sizes(site: dict[str, Any]) -> list[list[int]]:
    """Of every feature map that passes there: none out of a layer's reach. A record from before a site could see
    several has one."""
    return site["map_sizes"] if "map_sizes" in site else [site["map_size"]]


def under_drop_lines(sweep: Sweep, out: Path) -> None:
    """The headline under drop at inference, as in the paper's Figure 5: a panel for each block size tested with."""
    lines = under_drop(sweep)
    blocks = sorted({line.block_size for line in lines})
    tints = dict(zip([id(row) for row in sweep.rows], colours_of(sweep.rows), strict=True))
    with drawing(out, len(blocks), max(6.5, 4.6 * len(blocks)), 4.7, share=True) as (figure, panels):
        for line in lines:
            series = Series(sweep.label(line.row), list(line.values.items()), tints[id(line.row)])
            draw_series(panels[blocks.index(line.block_size)], series)
        for axes, block in zip(panels, blocks, strict=True):
            axes.invert_xaxis()
            axes.set_xlabel("keep_prob at inference")
            axes.set_title(f"tested with block {block}", loc="left")
        panels[0].set_ylabel(metric_with_whiskers(sweep))
        legend_below(figure, panels, "trained with")
