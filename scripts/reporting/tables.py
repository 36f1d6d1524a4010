"""Cells and tables of a report, as text."""

from __future__ import annotations

from collections.abc import Sequence

from scripts.reporting.comparison import Line
from scripts.reporting.statistics import Difference, Spread
from scripts.reporting.sweep import Row, Sweep
from scripts.reporting.text import choice_of_keep_prob

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


def loss_text(of: Spread | None) -> str:
    """A cross-entropy: its differences are of the order of 0.1, so it has a digit more than percentages."""
    return "" if of is None else of.text(3)


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
        *(line.label, by_seed_text(line.difference), "" if smallest is None else f"{smallest:.2f}"),
        *(loss_text(line.loss), loss_text(line.loss_difference), line.gap, line.peak),
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
