"""The tables of a report that its page and its Markdown share, each under its title, in the order of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scripts.reporting.beside_paper import NOTE, paper_table
from scripts.reporting.classes import class_table
from scripts.reporting.comparison import Report, best_on_val, difference
from scripts.reporting.names import metric_label
from scripts.reporting.statistics import Spread
from scripts.reporting.sweep import Row, Sweep
from scripts.reporting.tables import difference_text, p_text, without_empty
from scripts.reporting.text import answer_cells

CELLS = (
    "A cell is a pair of rows that are alike but for what the claim is about; the difference is averaged over the "
    "cells, seed by seed."
)


@dataclass(frozen=True)
class Section:
    """A table under its title.

    Args:
        left: how many of its first columns are words.
        note: what stands below it.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[object]]
    left: int = 1
    note: str = ""


def sections(report: Report) -> list[Section]:
    """What follows the rows in detail; nothing that is empty."""
    return [section for section in all_sections(report) if section.rows]


def all_sections(report: Report) -> Iterator[Section]:
    sweep = report.sweep
    yield Section("Not in the numbers", ["job", "status", "reason"], sweep.lost, left=3)
    heads = ["claim", "difference [95 %]", "n", "cells", "cells above 0", "Holm p", "verdict"]
    answered = [answer_cells(answer, p_text(answer.adjusted)) for answer in report.answers]
    yield Section("What was asked", heads, answered, note=CELLS)
    for knob in ("keep_prob", "block_size"):
        yield Section(f"{knob} chosen on the validation split", *chosen(sweep, knob))
    yield Section("The runs that chose keep_prob", *pilots(sweep))
    paper, classes = paper_table(sweep), class_table(sweep)
    if paper:
        yield Section("Beside the paper", *paper, note=NOTE)
    if classes:
        yield Section("Each class", *classes)
    yield Section("Under drop at inference", *under_drop_table(sweep))


def chosen(sweep: Sweep, knob: str) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    """What val chooses among the values of a knob, for every line of a figure: heads and lines."""
    lines = []
    for rows in sweep.lines(knob):
        best = best_on_val(rows)
        if best is None:
            continue
        curve = best.paper_curve if knob == "keep_prob" and not sweep.made_up else {}
        paper = max(curve, key=lambda k: curve[k], default=None)
        lines.append(
            [
                *(sweep.label(best, without=knob), f"{best.knob(knob):g}", best.spread("last", "val")),
                *(best.spread("last"), difference_text(difference(sweep, best), best), best.spread("peak")),
                "" if paper is None else f"{paper:g} ({curve[paper]:.2f})",
            ]
        )
    headers = ["", knob, "val", "test, last epoch", "difference [95 %]", "test, peak", f"paper's best {knob}"]
    return without_empty(headers, lines)


def pilots(sweep: Sweep) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    """Val of the runs that chose, which are no part of the results: heads and lines."""
    lines = [[sweep.label(row), " ".join(map(str, row.seeds)), row.spread("last", "val")] for row in sweep.pilots]
    return ["", "seed", f"{metric_label(sweep.rows[0].headline, {})} on val"], lines


@dataclass(frozen=True)
class DropLine:
    """A row, tested with blocks of one size: the headline on test by keep_prob at inference."""

    row: Row
    block_size: int
    values: dict[float, Spread]


def under_drop(sweep: Sweep) -> list[DropLine]:
    """What scripts/inference_drop.py measured; nothing before it did so for every row, as runs may be of two sweeps."""
    lines = []
    for row in sweep.rows:
        found: dict[int, dict[float, list[float]]] = {}
        for run in row.runs:
            for point in (run.folder.read("under_drop.json") or {}).get("under_drop", []):
                by_keep_prob = found.setdefault(point["block_size"], {})
                by_keep_prob.setdefault(point["keep_prob"], []).append(point[row.headline])
        for block, values in sorted(found.items()):
            lines.append(DropLine(row, block, {kp: Spread(tuple(values[kp])) for kp in sorted(values, reverse=True)}))
    return lines if {id(line.row) for line in lines} == {id(row) for row in sweep.rows} else []


def under_drop_table(sweep: Sweep) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    """Heads and lines: a row of the sweep tested with blocks of one size, a column a keep_prob."""
    lines = under_drop(sweep)
    keep_probs = sorted({keep_prob for line in lines for keep_prob in line.values}, reverse=True)
    rows = [[sweep.label(line.row), line.block_size, *(line.values.get(kp) for kp in keep_probs)] for line in lines]
    return ["trained with", "tested with block", *(f"keep_prob {kp:g}" for kp in keep_probs)], rows
