"""Accuracy over a knob: Figures 3, 4 and 5 of the paper with our numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from matplotlib.axes import Axes

from scripts.reporting.style import COLOURS, INK, OTHER, colour, drawing, legend_below, setting, whisker
from scripts.reporting.sweep import Row, Sweep
from scripts.reporting.tables import best_on_val, under_drop


def baseline_band(axes: Axes, sweep: Sweep) -> None:
    spread = sweep.baseline.spread("last") if sweep.baseline else None
    if spread is not None:
        axes.axhline(spread.mean, color=COLOURS["none"], linewidth=1.3, linestyle=(0, (5, 3)), label="no regularizer")
        axes.axhspan(
            spread.mean - (spread.std or 0), spread.mean + (spread.std or 0), color=COLOURS["none"], alpha=0.13
        )


def over_keep_prob(sweep: Sweep, out: Path) -> None:
    """Accuracy over keep_prob, in the axes of the paper's Figure 3, with its own curves beside ours."""
    lines = sweep.lines("keep_prob")
    with drawing(out, 2, 10.0, 4.9) as (figure, (paper, ours)):
        used: list[str] = []
        for rows in lines:
            tint = colour(rows[0], used)
            used.append(tint)
            label = sweep.label(rows[0], without="keep_prob")
            seen = [(row.knob("keep_prob"), spread) for row in rows if (spread := row.spread("last"))]
            whisker(
                ours,
                [x for x, _ in seen],
                [s for _, s in seen],
                color=tint,
                marker="o",
                ms=5,
                label=label,
                linewidth=1.6,
            )
            best = best_on_val(rows)
            if best is not None and (spread := best.spread("last")):
                ours.plot(best.knob("keep_prob"), spread.mean, "o", ms=12, mfc="none", mec=tint, mew=1.4)
            curve = rows[0].paper_curve
            if curve:
                paper.plot(list(curve), list(curve.values()), color=tint, marker="o", ms=5, linewidth=1.6)
        base = sweep.baseline.paper_number()[0] if sweep.baseline else None
        if base is not None:
            paper.axhline(base, color=COLOURS["none"], linewidth=1.3, linestyle=(0, (5, 3)))
        baseline_band(ours, sweep)
        paper.set_title("paper", loc="left")
        ours.set_title("here", loc="left")
        paper.set_xlabel("keep_prob\nImageNet, ResNet-50, peak")
        ours.set_xlabel(f"keep_prob\n{setting(sweep)}, last epoch")
        for axes in (paper, ours):
            axes.set_ylabel("top-1 (%)")
            axes.set_xlim(0.47, 1.0)
        ours.plot([], [], "o", ms=9, mfc="none", mec=INK, label="chosen on val")
        legend_below(figure, [ours])


def over_block_size(sweep: Sweep, out: Path) -> None:
    """Accuracy over the block size, a line for every choice of groups and branches, as in the paper's Figure 4."""
    lines = sweep.lines("block_size")
    sizes = sorted({row.knob("block_size") for rows in lines for row in rows})
    title, names = shared_words([sweep.label(rows[0], without="block_size") for rows in lines])
    families = sorted({family(rows[0]) for rows in lines})  # groups 3+4 before group 4
    with drawing(out, 1, 8.0, 4.8) as (figure, (axes,)):
        for i, (rows, name) in enumerate(zip(lines, names, strict=True)):
            seen = [(sizes.index(row.knob("block_size")), spread) for row in rows if (spread := row.spread("last"))]
            whisker(
                axes, [x + 0.04 * (i - (len(lines) - 1) / 2) for x, _ in seen], [s for _, s in seen], label=name,
                color=(COLOURS["dropblock"], *OTHER)[families.index(family(rows[0])) % (1 + len(OTHER))],
                marker="o" if rows[0].knob("skip") else "s", ms=5, linewidth=1.6,
                linestyle="-" if rows[0].knob("skip") else "--",
            )  # fmt: skip
        baseline_band(axes, sweep)
        axes.set_xticks(range(len(sizes)), [block_name(sweep, size) for size in sizes])
        axes.set_xlabel(f"block size\n{setting(sweep)}, last epoch")
        axes.set_ylabel("top-1 (%)")
        axes.set_title(title, loc="left")
        legend_below(figure, [axes])


def family(row: Row) -> str:
    """What a line's colour stands for: everything but the branches and the block size."""
    return repr({key: value for key, value in row.tried.items() if key not in ("skip", "block_size")})


def shared_words(names: Sequence[str]) -> tuple[str, list[str]]:
    """The words that all names begin with, and what is left of each."""
    parts = [name.split(", ") for name in names]
    shared = list(takewhile(lambda words: len(set(words)) == 1, zip(*parts, strict=False)))
    return ", ".join(words[0] for words in shared), [", ".join(words[len(shared) :]) or words[0] for words in parts]


def block_name(sweep: Sweep, size: int) -> str:
    """A block size, and which groups' maps it covers whole, from the sites tables of the runs."""
    covered = set()
    for run in sweep.runs:
        if (run.plan["layer"] or {}).get("block_size") == size:
            for site in run.folder.read("sites.json") or []:
                # A record from before a site could see several feature maps has one `map_size`.
                sizes = site.get("map_sizes") or [site["map_size"]]
                if all(site["block"] == size[1:] for size in sizes):
                    covered.add(site["group"])
    whole = "+".join(str(group) for group in sorted(covered))
    return f"{size}\nwhole map,\ngroup{'s' if len(covered) > 1 else ''} {whole}" if covered else str(size)


def under_drop_lines(sweep: Sweep, out: Path) -> None:
    """Accuracy with DropBlock on at inference, as in the paper's Figure 5: a panel for each block size tested with."""
    lines = under_drop(sweep)
    blocks = sorted({line.block_size for line in lines})
    used: list[str] = []
    tints: dict[str, str] = {}
    for row in sweep.rows:
        tints[sweep.label(row)] = colour(row, used)
        used.append(tints[sweep.label(row)])
    with drawing(out, len(blocks), max(6.5, 4.6 * len(blocks)), 4.7, share=True) as (figure, panels):
        for line in lines:
            label, axes = sweep.label(line.row), panels[blocks.index(line.block_size)]
            whisker(
                axes,
                list(line.top1),
                list(line.top1.values()),
                color=tints[label],
                marker="o",
                ms=5,
                label=label,
                linewidth=1.6,
            )
        for axes, block in zip(panels, blocks, strict=True):
            axes.invert_xaxis()
            axes.set_xlabel("keep_prob at inference")
            axes.set_title(f"tested with block {block}", loc="left")
        panels[0].set_ylabel("top-1 (%)")
        legend_below(figure, panels, "trained with")
