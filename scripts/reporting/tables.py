"""The numbers of a report as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scripts.reporting.beside_paper import NOTE, paper_table
from scripts.reporting.classes import class_table
from scripts.reporting.comparison import Answer, Line, Report, best_on_val, difference
from scripts.reporting.names import metric_label
from scripts.reporting.setting import SILENT_PAPER, deviations
from scripts.reporting.statistics import Difference, Spread
from scripts.reporting.sweep import Row, Sweep
from scripts.reporting.text import answer_cells, choice_of_keep_prob, legend, setting_text

RESULTS = ["", "n", "last epoch", "difference [95 %]", "Holm p", "verdict", "paper (peak)", "its difference"]
DROPPED = "dropped in the last epoch: measured (expected)"
OVER_THE_RUN = "dropped over the run"
DETAILS = [
    *("", "by seed", "smallest difference", "test loss", "its difference [95 %]", "train - test", "peak"),
    *(DROPPED, OVER_THE_RUN, "parameters", "time", "keep_prob"),
]


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1) -> str:
    """Columns after the first `left` ones are numbers, set to the right; None is an empty cell."""
    rule = [":--"] * left + ["--:"] * (len(headers) - left)
    lines = [[_cell(cell) for cell in row] for row in (headers, rule, *rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: object) -> str:
    return "" if value is None else str(value).replace("|", r"\|")


def difference_text(of: Difference | None, row: Row) -> str:
    """The mean and its interval; with its own n where not every run has its counterpart."""
    if of is None:
        return ""
    return f"{of}{f' (n = {len(of.values)})' if len(of.values) < len(row.runs) else ''}"


def paper_text(row: Row) -> str:
    mean, std = row.paper_number()
    return "" if mean is None else f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def by_seed_text(of: Difference | None) -> str:
    return "" if of is None else ", ".join(f"{value:+z.2f}" for value in of.values)


def p_text(p_value: float | None) -> str:
    return "" if p_value is None else "< .001" if p_value < 0.001 else f"{p_value:.3f}"


def time_text(seconds: float) -> str:
    """A duration in the unit that suits it."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def count_text(number: int | None) -> str:
    if number is None:
        return ""
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number / 1e3:.0f} k"


def results_row(line: Line, made_up: bool) -> list[object]:
    """The cells of a row under RESULTS; nothing of the paper stands beside made-up images."""
    theirs = line.paper_difference
    paper = ["", ""] if made_up else [paper_text(line.row), "" if theirs is None else f"{theirs:+z.2f}"]
    return [
        *(line.label, len(line.row.runs), line.last, difference_text(line.difference, line.row)),
        *(p_text(line.adjusted), line.word, *paper),
    ]


def details_row(sweep: Sweep, line: Line) -> list[object]:
    """The cells of a row under DETAILS."""
    smallest = line.difference.smallest if line.difference else None
    return [
        *(line.label, by_seed_text(line.difference), "" if smallest is None else f"{smallest:.2f}", line.loss),
        *("" if line.loss_difference is None else str(line.loss_difference), line.gap, line.peak),
        *(", ".join(drops_of(line.row)), ", ".join(run_drops_of(line))),
        *(count_text(line.parameters), time_text(line.seconds.mean), choice_of_keep_prob(sweep, line.row)),
    ]


def without_empty(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> tuple[list[str], list[list[object]]]:
    """A table without the columns in which no row has anything."""
    kept = [0, *(i for i in range(1, len(headers)) if any(row[i] not in (None, "") for row in rows))]
    return [headers[i] for i in kept], [[row[i] for i in kept] for row in rows]


def drops_of(row: Row) -> list[str]:
    """The drop of each group in the last epoch, mean of what the runs measured, beside the closed form."""
    found = []
    for group, drop in row.runs[0].summary["drop_last_epoch"].items():
        measured = Spread(tuple(run.summary["drop_last_epoch"][group]["measured"] for run in row.runs)).mean
        found.append(f"{group} {100 * measured:.2f} % ({100 * drop['expected']:.2f})")
    return found


def run_drops_of(line: Line) -> list[str]:
    """The share of each group's units that the whole run dropped, which schedules with one keep_prob differ in."""
    return [f"{group} {100 * share:.2f} %" for group, share in line.dropped.items()]


def chosen(sweep: Sweep, knob: str) -> str:
    """What val chooses among the values of a knob, for every line of a figure; '' where nothing is varied."""
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
    if not lines:
        return ""
    headers = ["", knob, "val", "test, last epoch", "difference [95 %]", "test, peak", f"paper's best {knob}"]
    return markdown_table(*without_empty(headers, lines))


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


def under_drop_table(sweep: Sweep) -> str:
    lines = under_drop(sweep)
    keep_probs = sorted({keep_prob for line in lines for keep_prob in line.values}, reverse=True)
    rows = [[sweep.label(line.row), line.block_size, *(line.values.get(kp) for kp in keep_probs)] for line in lines]
    return markdown_table(["trained with", "tested with block", *(f"keep_prob {kp:g}" for kp in keep_probs)], rows)


def answers_table(found: Sequence[Answer]) -> str:
    headers = ["claim", "difference [95 %]", "n", "cells", "cells above 0", "Holm p", "verdict"]
    return markdown_table(headers, [answer_cells(answer, p_text(answer.adjusted)) for answer in found])


def pilots_table(sweep: Sweep) -> str:
    """Val of the runs that chose; they are no part of the results."""
    rows = [[sweep.label(row), " ".join(map(str, row.seeds)), row.spread("last", "val")] for row in sweep.pilots]
    return markdown_table(["", "seed", f"{metric_label(sweep.rows[0].headline, {})} on val"], rows)


def report_text(report: Report) -> str:
    """The whole report."""
    sweep, lines, found = report.sweep, report.lines, report.answers
    results = [results_row(line, sweep.made_up) for line in lines]
    details = [details_row(sweep, line) for line in lines]
    parts = [f"# {sweep.name}", setting_text(sweep)]
    parts += ["## Results", markdown_table(*without_empty(RESULTS, results)), legend(sweep, lines)]
    parts += ["## Each row in detail", markdown_table(*without_empty(DETAILS, details))]
    paper = paper_table(sweep)
    if paper:
        parts += ["## Beside the paper", markdown_table(*paper), NOTE]
    classes = class_table(sweep)
    if classes:
        parts += ["## Each class", markdown_table(*classes)]
    if sweep.lost:
        parts += ["## Not in the numbers", markdown_table(["job", "status", "reason"], sweep.lost, left=3)]
    if found:
        parts += ["## What was asked", answers_table(found)]
    for knob in ("keep_prob", "block_size"):
        table = chosen(sweep, knob)
        if table:
            parts += [f"## {knob} chosen on the validation split", table]
    if sweep.pilots:
        parts += ["## The runs that chose keep_prob", pilots_table(sweep)]
    if under_drop(sweep):
        parts += ["## Under drop at inference", under_drop_table(sweep)]
    for caption, name in report.figures:
        parts.append(f"![{caption}]({name})\n\n*{caption}*")
    if sweep.study.limitations:
        parts += ["## Limitations", "\n".join(f"* {sentence}" for sentence in sweep.study.limitations)]
    differing = deviations(sweep)
    if differing:
        parts += ["## Deviations from the paper's setting", markdown_table(["", "here", "paper"], differing, left=3)]
        parts.append(SILENT_PAPER)
    return "\n\n".join(parts) + "\n"
