"""The numbers of a report as CSV: a line a row, a line a run, a line a claim."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.reporting.comparison import Answer, Line, columns_of
from scripts.reporting.names import KNOBS
from scripts.reporting.sections import under_drop
from scripts.reporting.statistics import Difference, Spread
from scripts.reporting.sweep import Run, Sweep
from scripts.reporting.text import choice_of_keep_prob

VALUES = (("last", "test"), ("peak", "test"), ("last", "val"), ("best", "val"), ("best", "test"))


def rows_csv(sweep: Sweep, lines: Sequence[Line]) -> str:
    """One line a row of the results; what is not known is empty."""
    table = []
    for line in lines:
        row = line.row
        values: dict[str, Any] = {"experiment": row.experiment, "label": line.label, "n": len(row.runs)}
        values |= {"seeds": " ".join(map(str, row.seeds)), **{name: columns_of(row)[name] for name in KNOBS}}
        values |= {"metric": row.headline, **mean_and_std("last_test", line.last)}
        values |= of_difference("difference", line.difference)
        values |= {"holm": rounded(line.adjusted), "verdict": line.word}
        values["smallest"] = rounded(line.difference.smallest) if line.difference else None
        values["by_seed"] = by_seed(line.difference)
        values |= {**mean_and_std("loss", line.loss), **of_difference("loss_difference", line.loss_difference)}
        values |= {**mean_and_std("gap", line.gap), **mean_and_std("peak_test", line.peak)}
        values |= mean_and_std("peak_difference", line.peak_difference)
        values |= mean_and_std("last_val", row.spread("last", "val"))
        values |= mean_and_std("best_test", row.spread("best"))
        values["dropped"] = shares_text(line.dropped)
        values |= {"parameters": line.parameters, "seconds": round(line.seconds.mean, 1)}
        values |= {"keep_prob_choice": choice_of_keep_prob(sweep, row), "paper_place": row.paper.get("place")}
        paper = (None, None) if sweep.made_up else row.paper_number()
        values |= {"paper_mean": paper[0], "paper_std": paper[1]}
        values["paper_difference"] = None if sweep.made_up else rounded(line.paper_difference)
        table.append(values)
    return csv_text(table)


def runs_csv(sweep: Sweep) -> str:
    """One line a run: what the rows are made of."""
    table, trained = [], sweep.trained_metric
    for row in sweep.rows:
        label = sweep.label(row)
        for run in row.runs:
            line: dict[str, Any] = {**columns_of(row), "label": label, "seed": run.seed}
            for which, split in VALUES:
                line[f"{which}_{split}"] = run.value(which, split)
            line |= {"last_test_loss": run.value("last", "test", "loss"), "gap": rounded(run.gap(trained))}
            line["dropped"] = shares_text(run.dropped())
            line |= {"parameters": run.summary.get("parameters")}
            line |= {"train_seconds": round(run.summary["train_seconds"], 1), "device": joined(run, "device")}
            dirty = any(environment["dirty"] for environment in run.environments)
            place = "/".join(run.folder.path.parts[-3:])
            table.append({**line, "commit": joined(run, "commit"), "dirty": dirty, "run": place})
    return csv_text(table)


def claims_csv(found: Sequence[Answer]) -> str:
    """One line a claim: its difference averaged over cells, their number and signs."""
    table = []
    for answer in found:
        claim, positive = answer.claim, sum(cell > 0 for cell in answer.cells)
        line: dict[str, Any] = {"claim": claim.says, "column": claim.column, "better": claim.better}
        line |= {"worse": claim.worse, "cells": len(answer.cells), "positive": positive}
        line |= {"n": len(answer.difference.values) if answer.difference else 0}
        line |= of_difference("difference", answer.difference)
        line |= {"holm": rounded(answer.adjusted), "verdict": answer.word, "by_seed": by_seed(answer.difference)}
        table.append({**line, "where": " ".join(f"{key}={value}" for key, value in claim.where.items())})
    return csv_text(table)


def under_drop_csv(sweep: Sweep) -> str:
    """One line for every run, keep_prob and block size tested with."""
    table = []
    for row in sweep.rows if under_drop(sweep) else []:
        for run in row.runs:
            for point in (run.folder.read("under_drop.json") or {}).get("under_drop", []):
                line = {"experiment": row.experiment, "trained_with": sweep.label(row), "seed": run.seed}
                names = ("block_size", "keep_prob", row.headline, "loss")
                table.append({**line, **{name: point.get(name) for name in names}})
    return csv_text(table)


def shares_text(shares: Mapping[str, float]) -> str:
    """`group:share` of each group."""
    return " ".join(f"{group}:{share:.5f}" for group, share in shares.items())


def joined(run: Run, key: str) -> str:
    """What a run has been through, each once, in order."""
    return "+".join(dict.fromkeys(str(environment[key]) for environment in run.environments))


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6) + 0.0  # -0.0 + 0.0 is 0.0


def mean_and_std(name: str, spread: Spread | None) -> dict[str, float | None]:
    """Two columns; empty where there is no number."""
    mean, std = (None, None) if spread is None else (spread.mean, spread.std)
    return {f"{name}_mean": rounded(mean), f"{name}_std": rounded(std)}


def of_difference(name: str, difference: Difference | None) -> dict[str, float | None]:
    """Mean, interval and p-value; empty where there is none."""
    low, high = (difference.interval if difference else None) or (None, None)
    mean, p_value = (difference.mean, difference.p_value) if difference else (None, None)
    values = {"": mean, "_low": low, "_high": high, "_p": p_value}
    return {f"{name}{key}": rounded(value) for key, value in values.items()}


def by_seed(difference: Difference | None) -> str:
    """`seed:difference` of every pair."""
    if difference is None:
        return ""
    return " ".join(f"{s}:{v:+z.4f}" for s, v in zip(difference.seeds, difference.values, strict=True))


def csv_text(table: Sequence[dict[str, Any]]) -> str:
    out = io.StringIO()
    if table:
        writer = csv.DictWriter(out, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    return out.getvalue()
