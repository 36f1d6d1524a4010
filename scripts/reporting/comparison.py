"""What the report says of each row, once for the page, the Markdown and the CSV; and the claims of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from configs.paper import ClaimConfig
from scripts.reporting.names import KNOBS
from scripts.reporting.statistics import Difference, Spread, holm, paired, verdict
from scripts.reporting.sweep import Row, Run, Sweep


@dataclass(frozen=True)
class Line:
    """A row of the report, the headline on test at the last epoch unless another is named.

    Args:
        difference: to the baseline, seed by seed; None for the baseline, and where no seed is common.
        adjusted: Holm's p-value over the rows of the table.
        word: better, worse, equivalent or not resolved; '' without a difference.
        peak_difference: of the maximum over the epochs, the paper's convention.
        loss, loss_difference: on test.
        gap: of `sweep.trained_metric` between the training batches, as trained, and test.
        dropped: share of the units dropped over the whole run, by group.
        paper_difference: the paper's own, to its baseline within the same table or figure.
    """

    row: Row
    label: str
    last: Spread | None
    difference: Difference | None
    adjusted: float | None
    word: str
    peak: Spread | None
    peak_difference: Difference | None
    loss: Spread | None
    loss_difference: Difference | None
    gap: Spread | None
    dropped: Mapping[str, float]
    parameters: int | None
    seconds: Spread
    paper_difference: float | None


@dataclass(frozen=True)
class Report:
    """Everything that the files of a report say.

    Args:
        figures: (caption, file name) of the pictures beside them.
    """

    sweep: Sweep
    lines: Sequence[Line]
    answers: Sequence[Answer]
    figures: Sequence[tuple[str, str]] = ()


def lines_of(sweep: Sweep) -> list[Line]:
    """Every row with its difference from its baseline, corrected for the number of rows that have one."""
    differences = [difference(sweep, row) for row in sweep.rows]
    adjusted = holm([d.p_value if d else None for d in differences])
    lines, trained = [], sweep.trained_metric
    for row, own, p_value in zip(sweep.rows, differences, adjusted, strict=True):
        line = Line(
            row=row,
            label=sweep.label(row),
            last=row.spread("last"),
            difference=own,
            adjusted=p_value,
            word=verdict(own, p_value, sweep.study.margin) if own else "",
            peak=row.spread("peak"),
            peak_difference=difference(sweep, row, "peak"),
            loss=row.spread("last", metric="loss"),
            loss_difference=difference(sweep, row, metric="loss"),
            gap=spread_of(row, lambda run: run.gap(trained)),
            dropped=dropped_over_the_run(row),
            parameters=row.runs[0].summary.get("parameters"),
            seconds=Spread(tuple(run.summary["train_seconds"] for run in row.runs)),
            paper_difference=paper_difference(row, sweep.baseline_of(row)),
        )
        lines.append(line)
    return lines


def difference(sweep: Sweep, row: Row, which: str = "last", metric: str | None = None) -> Difference | None:
    """A row less its baseline on test, seed by seed; None for the baseline itself and where no seed is common."""
    baseline = sweep.baseline_of(row)
    if baseline is None or row is baseline:
        return None
    return paired(row.by_seed(which, metric=metric), baseline.by_seed(which, metric=metric))


def spread_of(row: Row, value: Callable[[Run], float | None]) -> Spread | None:
    """Of something of every run that has it."""
    values = tuple(number for run in row.runs if (number := value(run)) is not None)
    return Spread(values) if values else None


def dropped_over_the_run(row: Row) -> dict[str, float]:
    """The share of the units of each group that all steps of a run dropped, the mean over the runs."""
    of_runs = [run.dropped() for run in row.runs]
    logged = [group for group in of_runs[0] if all(group in of for of in of_runs)]
    return {group: fmean(of[group] for of in of_runs) for group in logged}


def paper_difference(row: Row, baseline: Row | None) -> float | None:
    """The paper's difference from its baseline, within one of its tables or figures: their baselines differ."""
    if baseline is None or row is baseline or row.paper_source != baseline.paper_source:
        return None
    ours, theirs = row.paper_number()[0], baseline.paper_number()[0]
    return None if ours is None or theirs is None else ours - theirs


def best_on_val(rows: Sequence[Row]) -> Row | None:
    """The row with the best mean of the headline on val at the last epoch; test is not looked at."""
    judged = [(spread.mean, -i, row) for i, row in enumerate(rows) if (spread := row.spread("last", "val"))]
    return max(judged)[2] if judged else None


SETTING = ("data", "train_subset", "model", "width", "epochs")  # columns of what the regularizers are tried in


def columns_of(row: Row) -> dict[str, str]:
    """What a row is, by the columns of runs.csv and as it spells them; what is not there is ''."""
    plan = row.plan
    values: dict[str, Any] = {"experiment": row.experiment, "regularizer": "+".join(plan["regularizer"])}
    values |= {name: row.knob(name) for name in KNOBS}
    values["groups"] = None if values["groups"] is None else "+".join(map(str, values["groups"]))
    values |= {"data": plan["data"]["name"], "train_subset": plan["data"]["train_subset"]}
    values |= {"model": plan["model"]["name"], "width": plan["model"]["width"], "epochs": plan["recipe"]["epochs"]}
    return {name: "" if value is None else str(value) for name, value in values.items()}


@dataclass(frozen=True)
class Answer:
    """What the rows say of a claim: its difference averaged over the cells.

    Args:
        cells: the mean difference of every cell, a pair of rows that are alike but for the claim's column.
        difference: seed by seed the mean over the cells, over the seeds that all of them have; None without cells.
        adjusted: Holm's p-value over the claims of the sweep.
        word: as for a row.
    """

    claim: ClaimConfig
    cells: tuple[float, ...]
    difference: Difference | None
    adjusted: float | None = None
    word: str = ""


def cells_of(sweep: Sweep, claim: ClaimConfig) -> list[tuple[Row, Row]]:
    """(better, worse) for every pair of rows that differ in the claim's column alone.

    A claim about experiments or regularizers pairs rows whatever their layers and transforms; any other leaves the
    experiment's name, which follows from them, aside. Unless the claim is about the setting, both rows have the same.
    """
    free = {claim.column, "experiment"}
    of_methods = claim.column in ("experiment", "regularizer")
    if of_methods:
        free |= {"regularizer", *KNOBS}
    rows = [(of, row) for row in sweep.rows for of in spellings(row)]
    asked = [(of, row) for of, row in rows if all(of.get(key) == value for key, value in claim.where.items())]
    found = []
    for better, row in asked:
        for worse, other in asked:
            alike = all(better[key] == worse[key] for key in better if key not in free)
            alike &= of_methods or without_column(row, claim.column) == without_column(other, claim.column)
            alike &= claim.column in SETTING or row.setting == other.setting
            if alike and better.get(claim.column) == claim.better and worse.get(claim.column) == claim.worse:
                found.append((row, other))
    return found


def without_column(row: Row, column: str) -> dict[str, Any]:
    """The values of a row's layers and transforms that no column holds, without those that go with `column`."""
    goes_with = {"schedule": ("schedule_start", "schedule_end")}.get(column, ())
    if column in SETTING:  # of the same regularizer, in pixels and by the kind of images
        goes_with = ("cutout", "autoaugment")
    return {name: value for name, value in row.tried.items() if name not in (*KNOBS, *goes_with)}


def spellings(row: Row) -> list[dict[str, str]]:
    """The columns of a row; once for each block size that is the same computation."""
    columns = columns_of(row)
    return [columns, *({**columns, "block_size": str(block)} for block in row.same)]


def answers(sweep: Sweep) -> list[Answer]:
    """What the rows say of every claim that the sweep declares."""
    found = []
    for claim in sweep.study.claims:
        cells = [d for a, b in cells_of(sweep, claim) if (d := paired(a.by_seed(), b.by_seed())) is not None]
        seeds = sorted(set.intersection(*(set(cell.seeds) for cell in cells))) if cells else []
        by_seed = [[cell.values[cell.seeds.index(seed)] for cell in cells] for seed in seeds]
        mean = Difference(tuple(sum(values) / len(values) for values in by_seed), tuple(seeds)) if seeds else None
        found.append(Answer(claim, tuple(cell.mean for cell in cells), mean))
    adjusted = holm([answer.difference.p_value if answer.difference else None for answer in found])
    return [
        Answer(a.claim, a.cells, a.difference, p, verdict(a.difference, p, sweep.study.margin) if a.difference else "")
        for a, p in zip(found, adjusted, strict=True)
    ]
