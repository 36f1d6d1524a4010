"""Columns that follow from the rows together: differences from the baseline, verdicts, claims, the choices of val."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from configs.paper import ClaimConfig
from scripts.reporting.names import KNOBS, knob_text
from scripts.reporting.runs import Row, Sweep, by_seed, spread
from scripts.reporting.statistics import Difference, Spread, holm, paired, verdict

OTHER = ("#c23b3b", "#5c8a00", "#5e4fa2", "#b8860b", "#00796b", "#444444", "#d67bb8", "#7fb8d8", "#8c5a3c", "#a8b400")
INK = "#222222"
MOST_CURVES = 16


def compare(sweep: Sweep) -> Sweep:
    """Give every row the columns that say how it compares, and return the sweep.

    last, peak, loss: the headline at the last epoch and at its best, and the loss, on test, as a `Spread`.
    difference, peak_difference, loss_difference: from the baseline, seed by seed; None for the baseline itself.
    holm, verdict: over the rows of the table; '' without a difference.
    gap: `sweep.trained_metric` on the training batches of the last epoch, as trained, less test.
    dropped: share of the units of each group that all steps dropped. seconds: a run's time of training.
    paper_mean, paper_std, paper_difference: the paper's number of the headline, and its difference from its baseline.
    choice: how the row came by what was tuned. colour: the row's own.
    """
    last = f"last/test/{sweep.headline}"
    for row in sweep.rows:
        base = baseline_of(sweep, row)

        def difference(column: str, row: Row = row, base: Row | None = base) -> Difference | None:
            return None if base is None or base is row else paired(by_seed(row, column), by_seed(base, column))

        row["last"], row["difference"] = spread(row, last), difference(last)
        row["peak"] = spread(row, f"peak/test/{sweep.headline}")
        row["peak_difference"] = difference(f"peak/test/{sweep.headline}")
        row["loss"], row["loss_difference"] = spread(row, "last/test/loss"), difference("last/test/loss")
        for run in row["runs"]:
            trained, test = run["trained"].get(f"train/{sweep.trained_metric}"), f"last/test/{sweep.trained_metric}"
            run["gap"] = trained[max(trained)] - run[test] if trained and run.get(test) is not None else None
        row["gap"] = spread(row, "gap")
        groups = [group for group in row["runs"][0]["dropped"] if all(group in run["dropped"] for run in row["runs"])]
        row["dropped"] = {group: fmean(run["dropped"][group] for run in row["runs"]) for group in groups}
        row["seconds"] = Spread(tuple(run["train_seconds"] for run in row["runs"]))

        row["paper_mean"], row["paper_std"] = paper_number(row)
        row["paper_difference"] = None
        if base is not None and base is not row and paper_source(row) == paper_source(base):
            ours, theirs = row["paper_mean"], paper_number(base)[0]
            row["paper_difference"] = None if ours is None or theirs is None else ours - theirs
        row["choice"] = choice_of_keep_prob(sweep, row) if sweep.tuning is None else choice_of(row["tuned"])

    adjusted = holm([row["difference"] and row["difference"].p_value for row in sweep.rows])
    for row, p_value in zip(sweep.rows, adjusted, strict=True):
        row["holm"] = p_value
        of = row["difference"]
        row["verdict"] = verdict(of, p_value, sweep.study.margin, sweep.higher_is_better) if of else ""

    # The colour of its method; where a method has several training curves, another for each.
    for row in sweep.rows:
        row["colour"] = distinct_colour(row)
    used: list[str] = []
    for row in few_rows(sweep):
        row["colour"] = distinct_colour(row, used)
        used.append(row["colour"])
    return sweep


def baseline_of(sweep: Sweep, row: Row) -> Row | None:
    """Return the row without a regularizer in the setting of `row`, or the one that was chosen for all rows."""
    if sweep.compared_to is not None:
        return sweep.compared_to
    return next((other for other in sweep.plain if other["setting"] == row["setting"]), None)


def distinct_colour(row: Row, used: Sequence[str] = ()) -> str:
    """The colour of a row's method, or the next one that is not in use."""
    own = row["method_colour"] or OTHER[0]
    return own if own not in used else next((other for other in OTHER if other not in used), INK)


# The paper's numbers.


def paper_source(row: Row) -> str:
    """The table or figure of the paper that a row stands beside: baselines differ between them."""
    place = str(row["paper"].get("place") or "")
    return place.rpartition(",")[0] or place


def paper_curve(row: Row) -> dict[float, float]:
    """The paper's values of the headline by keep_prob, of a figure; {} where none are known."""
    curve = (row["paper"].get("curve") or {}).get(row["headline"]) or {}
    return {float(keep_prob): value for keep_prob, value in sorted(curve.items(), key=lambda item: float(item[0]))}


def paper_number(row: Row) -> tuple[float | None, float | None]:
    """The paper's (mean, standard deviation) of the headline; of a figure, the value at this row's keep_prob."""
    numbers: list[float] = (row["paper"].get("metrics") or {}).get(row["headline"]) or []
    if not numbers:
        return paper_curve(row).get(row["keep_prob"]), None
    return numbers[0], numbers[1] if len(numbers) > 1 else None


# What is varied, and what val chooses.


def lines(sweep: Sweep, knob: str) -> list[list[Row]]:
    """The lines of a figure: rows that differ in nothing but a knob (and seeds), by its value."""
    found: dict[str, list[Row]] = {}
    for row in sweep.rows:
        if row[knob] is not None:
            fixed = {key: value for key, value in row["tried"].items() if key != knob}
            key = repr((row["experiment"], row["regularizer"], fixed, sorted(row["setting"].items(), key=str)))
            found.setdefault(key, []).append(row)
    return [sorted(rows, key=lambda row: row[knob]) for rows in found.values() if len(rows) > 1]


def best_on_val(rows: Sequence[Row]) -> Row | None:
    """The row with the best mean of the headline on val at the last epoch; test is not looked at."""
    found = [
        (of.mean if row["higher_is_better"] else -of.mean, -i, row)
        for i, row in enumerate(rows)
        if (of := spread(row, f"last/val/{row['headline']}"))
    ]
    return max(found)[2] if found else None


def few_rows(sweep: Sweep) -> list[Row]:
    """At most 16 rows for the training curves: where a knob is varied and val can choose, the best of each line."""
    if len(sweep.rows) <= MOST_CURVES:
        return sweep.rows
    varied = lines(sweep, "keep_prob") or lines(sweep, "block_size")
    chosen = [best for rows in varied if (best := best_on_val(rows))]
    if not chosen:
        return sweep.rows[:MOST_CURVES]
    return ([sweep.baseline] if sweep.baseline else []) + chosen[: MOST_CURVES - 1]


def choice_of(entry: dict[str, Any] | None) -> str:
    """Say how a row came by what was tuned: chosen on val, and from which candidates, or not tuned and why."""
    if entry is None:
        return "of an earlier choice"
    if entry["chosen"] is None:
        return f"not tuned: {entry['reason']}"
    listed = ", ".join(candidate_text(candidate["values"]) for candidate in entry["candidates"])
    with_it = f", with {values_text(entry['given'])} of the row that has it alone" if entry["given"] else ""
    return f"{values_text(entry['chosen'])}, on val from {listed}{with_it}"


def values_text(values: Mapping[str, Any]) -> str:
    """Values by the last part of their key: `keep_prob 0.9, lr 0.1`."""
    return ", ".join(knob_text(key.rpartition(".")[2], value) for key, value in values.items())


def candidate_text(values: Mapping[str, Any]) -> str:
    """A candidate in a list of one knob, or of one at several learning rates: `0.9`, `0.9 at lr 0.1`."""
    own, *rates = (f"{value:g}" if isinstance(value, int | float) else str(value) for value in values.values())
    return f"{own} at lr {rates[0]}" if rates else own


def pooled(sweep: Sweep) -> tuple[float, int, int] | None:
    """The scatter of a difference over all rows of the table: standard deviation, seeds, number of comparisons.

    None without a row whose difference has a standard error: two seeds, in which it is not the same.
    """
    found = [row["difference"] for row in sweep.rows if row["difference"] and row["difference"].error]
    if not found:
        return None
    return fmean(of.std**2 for of in found) ** 0.5, min(len(of.values) for of in found), len(found)


def choice_of_keep_prob(sweep: Sweep, row: Row) -> str:
    """Say how a row came by its keep_prob: varied, not tuned, or chosen on val, and from which candidates."""
    own, study = row["keep_prob"], sweep.study
    if own is None:
        return ""
    if not study.keep_prob or study.pilot_seed is None:
        varied = any(row is other for rows in lines(sweep, "keep_prob") for other in rows)
        return f"{own:g}, varied here" if varied else f"{own:g}, not tuned"
    if own not in study.keep_prob:
        return f"{own:g}, as the sweep has it"
    candidates = ", ".join(f"{value:g}" for value in study.keep_prob)
    if not sweep.pilots:
        return f"{own:g} of {candidates}; the runs that chose are not here"
    alike = [pilot for pilot in sweep.pilots if but_for_keep_prob(pilot) == but_for_keep_prob(row)]
    if not alike:
        return f"{own:g}, without a pilot of its own"
    best = best_on_val(alike)
    text = f"{own:g}, on val from {candidates} (seed {study.pilot_seed})"
    if best is not None and len(alike) > 1 and best["keep_prob"] != own:
        text += f"; val prefers {best['keep_prob']:g}"
    return text


def but_for_keep_prob(row: Row) -> tuple[object, ...]:
    return {**row["tried"], "keep_prob": None}, row["regularizer"], row["setting"]


def under_drop(sweep: Sweep) -> list[dict[str, Any]]:
    """Each row, tested with blocks of one size: the headline on test by keep_prob at inference.

    `scripts.inference_drop` measured it; nothing before it did so for every row, as runs may be of two sweeps.
    """
    tested = []
    for row in sweep.rows:
        found: dict[int, dict[float, list[float]]] = {}
        for point in (point for run in row["runs"] for point in run["under_drop"]):
            by_keep_prob = found.setdefault(point["block_size"], {})
            by_keep_prob.setdefault(point["keep_prob"], []).append(point[row["headline"]])
        if not found:
            return []
        for block, values in sorted(found.items()):
            spreads = {keep_prob: Spread(tuple(values[keep_prob])) for keep_prob in sorted(values, reverse=True)}
            tested.append({"row": row, "block_size": block, "values": spreads})
    return tested


# Claims.

SETTING = ("data", "train_subset", "model", "width", "epochs")  # columns of what the regularizers are tried in


def columns_of(row: Row) -> dict[str, str]:
    """The values of a row by the columns of runs.csv and as it spells them; '' where it has none."""
    values = {name: row[name] for name in ("experiment", "regularizer", *KNOBS, *SETTING)}
    values["regularizer"] = "+".join(row["regularizer"])
    values["groups"] = None if row["groups"] is None else "+".join(map(str, row["groups"]))
    return {name: "" if value is None else str(value) for name, value in values.items()}


def answers(sweep: Sweep) -> list[dict[str, Any]]:
    """Answer every claim that the sweep declares, as one dict each.

    cells: the mean difference of every cell, a pair of rows that are alike but for the claim's column.
    difference: seed by seed the mean over the cells, over the seeds that all of them have; None without cells.
    holm, verdict: over the claims of the sweep.
    """
    found: list[dict[str, Any]] = []
    for claim in sweep.study.claims:
        last = f"last/test/{sweep.headline}"
        pairs = [(by_seed(a, last), by_seed(b, last)) for a, b in cells_of(sweep, claim)]
        cells = [of for ours, theirs in pairs if (of := paired(ours, theirs)) is not None]
        seeds = sorted(set.intersection(*(set(cell.seeds) for cell in cells))) if cells else []
        means = [fmean(cell.values[cell.seeds.index(seed)] for cell in cells) for seed in seeds]
        mean = Difference(tuple(means), tuple(seeds)) if seeds else None
        found.append({"claim": claim, "cells": [cell.mean for cell in cells], "difference": mean})
    adjusted = holm([answer["difference"] and answer["difference"].p_value for answer in found])
    for answer, p_value in zip(found, adjusted, strict=True):
        answer["holm"], of = p_value, answer["difference"]
        answer["verdict"] = verdict(of, p_value, sweep.study.margin, sweep.higher_is_better) if of else ""
    return found


def cells_of(sweep: Sweep, claim: ClaimConfig) -> list[tuple[Row, Row]]:
    """(better, worse) for every pair of rows that differ in the claim's column alone.

    A claim about experiments or regularizers pairs rows whatever their layers and transforms; any other leaves the
    experiment's name, which follows from them, aside. Unless the claim is about the setting, both rows have the same.
    """
    of_methods = claim.column in ("experiment", "regularizer")
    free = {claim.column, "experiment", *(("regularizer", *KNOBS) if of_methods else ())}
    spelled = [(columns_of(row), row) for row in sweep.rows]
    # A block size that is the same computation counts where the claim names one, and a pair of rows counts once.
    if "block_size" in (claim.column, *claim.where):
        spelled += [({**columns_of(row), "block_size": str(block)}, row) for row in sweep.rows for block in row["same"]]
    asked = [(of, row) for of, row in spelled if all(of.get(key) == value for key, value in claim.where.items())]
    return [
        (row, other)
        for better, row in asked
        for worse, other in asked
        if (better.get(claim.column), worse.get(claim.column)) == (claim.better, claim.worse)
        and all(better[key] == worse[key] for key in better if key not in free)
        and (of_methods or without_column(row, claim.column) == without_column(other, claim.column))
        and (claim.column in SETTING or row["setting"] == other["setting"])
    ]


def without_column(row: Row, column: str) -> dict[str, Any]:
    """The values of a row's regularizers that no column holds, without those that go with `column`."""
    aside = {*KNOBS, "lr"}  # a learning rate among them was chosen on val
    if column == "schedule":  # a limit goes with its schedule
        aside |= {"schedule_start", "schedule_end"}
    if column in SETTING:  # of the same regularizer, in pixels and by the kind of images
        aside |= {key for method in row["methods"] if method["kind"] == "image" for key in method["tried"]}
    return {name: value for name, value in row["tried"].items() if name not in aside}
