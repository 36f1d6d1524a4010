"""The numbers of a report as CSV: a line a row, a line a run, a line a claim. Kept results pin every byte."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from scripts.reporting.compare import answers, columns_of, under_drop
from scripts.reporting.names import KNOBS
from scripts.reporting.runs import Record, Sweep, spread
from scripts.reporting.statistics import Difference, Spread

VALUES = (("last", "test"), ("peak", "test"), ("last", "val"), ("best", "val"), ("best", "test"))


def rows_csv(sweep: Sweep) -> str:
    """One line a row of the results; what is not known is empty."""
    table = []
    tests = sum(row["holm"] is not None for row in sweep.rows)
    for row in sweep.rows:
        difference, columns = row["difference"], columns_of(row)
        line = {
            "experiment": row["experiment"],
            "label": row["label"],
            "n": len(row["runs"]),
            "seeds": " ".join(map(str, row["seeds"])),
            **{name: columns[name] for name in KNOBS},
            "metric": sweep.headline,
            **mean_and_std("last_test", row["last"]),
            **of_difference("difference", difference),
            "holm": rounded(row["holm"]),
            "verdict": row["verdict"],
            "smallest": rounded(difference.smallest) if difference else None,
            "by_seed": by_seed_text(difference),
            **mean_and_std("loss", row["loss"]),
            **of_difference("loss_difference", row["loss_difference"]),
            **mean_and_std("gap", row["gap"]),
            **mean_and_std("peak_test", row["peak"]),
            **mean_and_std("peak_difference", row["peak_difference"]),
            **mean_and_std("last_val", spread(row, f"last/val/{sweep.headline}")),
            **mean_and_std("best_test", spread(row, f"best/test/{sweep.headline}")),
            "dropped": shares_text(row["dropped"]),
            "parameters": row["parameters"],
            "seconds": round(row["seconds"].mean, 1),
            "keep_prob_choice": row["choice"],
            "paper_place": row["paper"].get("place"),
            "paper_mean": None if sweep.made_up else row["paper_mean"],
            "paper_std": None if sweep.made_up else row["paper_std"],
            "paper_difference": None if sweep.made_up else rounded(row["paper_difference"]),
            "smallest_holm": rounded(difference.detected(tests)) if difference and tests else None,
        }
        for name in sweep.others:
            line |= mean_and_std(name, spread(row, f"last/test/{name}"))
        if sweep.tuning is not None:
            line |= of_tuning(row["tuned"] or {})
        table.append(line)
    return csv_text(table)


def of_tuning(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of what was tuned: the chosen values, val of every candidate, and the pilots' cost."""
    candidates = entry.get("candidates", ())
    texts = {text(of["values"]): of["val"] for of in candidates}
    return {
        "tuned": text({**(entry.get("chosen") or {}), **(entry.get("given") or {})}),
        "tuned_candidates": " ".join(f"{name}:{rounded(val)}" for name, val in texts.items()),
        "tuned_val": rounded(next((of["val"] for of in candidates if of["values"] == entry["chosen"]), None)),
        "tuned_pilots": sum(len(of["seeds"]) for of in candidates),
        "tuned_seconds": round(sum(of["seconds"] for of in candidates), 1),
    }


def text(values: Mapping[str, Any]) -> str:
    """`key=value` of each, joined by +."""
    return "+".join(f"{key}={value}" for key, value in values.items())


def runs_csv(sweep: Sweep) -> str:
    """One line a run: what the rows are made of."""
    table, beside = [], [column for run in sweep.runs for column in run["beside"]]
    for row in sweep.rows:
        for run in row["runs"]:
            line = {
                **columns_of(row),
                "label": row["label"],
                "seed": run["seed"],
                **{f"{which}_{split}": run.get(f"{which}/{split}/{sweep.headline}") for which, split in VALUES},
                "last_test_loss": run.get("last/test/loss"),
                "gap": rounded(run["gap"]),
                "dropped": shares_text(run["dropped"]),
                "parameters": run["parameters"],
                "train_seconds": round(run["train_seconds"], 1),
                "device": each_once(run, "device"),
                "commit": each_once(run, "commit"),
                "dirty": any(environment["dirty"] for environment in run["environments"]),
                "run": "/".join(run["path"].parts[-3:]),
                **{f"last_test_{name}": run.get(f"last/test/{name}") for name in sweep.others},
                **{column: rounded(run.get(column)) for column in dict.fromkeys(beside)},
            }
            table.append(line)
    return csv_text(table)


def claims_csv(sweep: Sweep) -> str:
    """One line a claim: its difference averaged over cells, their number and signs."""
    table = []
    for answer in answers(sweep):
        claim, difference = answer["claim"], answer["difference"]
        line = {
            "claim": claim.says,
            "column": claim.column,
            "better": claim.better,
            "worse": claim.worse,
            "cells": len(answer["cells"]),
            "positive": sum(cell > 0 for cell in answer["cells"]),
            "n": len(difference.values) if difference else 0,
            **of_difference("difference", difference),
            "holm": rounded(answer["holm"]),
            "verdict": answer["verdict"],
            "by_seed": by_seed_text(difference),
            "where": " ".join(f"{key}={value}" for key, value in claim.where.items()),
        }
        table.append(line)
    return csv_text(table)


def under_drop_csv(sweep: Sweep) -> str:
    """One line for every run, keep_prob and block size tested with."""
    table = []
    for row in sweep.rows if under_drop(sweep) else []:
        for run in row["runs"]:
            for point in run["under_drop"]:
                names = ("block_size", "keep_prob", sweep.headline, "loss")
                line = {"experiment": row["experiment"], "trained_with": row["label"], "seed": run["seed"]}
                table.append({**line, **{name: point.get(name) for name in names}})
    return csv_text(table)


def shares_text(shares: Mapping[str, float]) -> str:
    """`group:share` of each group."""
    return " ".join(f"{group}:{share:.5f}" for group, share in shares.items())


def each_once(run: Record, key: str) -> str:
    """The values of the environments that a run has been through, each once, in order."""
    return "+".join(dict.fromkeys(str(environment[key]) for environment in run["environments"]))


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6) + 0.0  # -0.0 + 0.0 is 0.0


def mean_and_std(name: str, of: Spread | None) -> dict[str, float | None]:
    """Two columns; empty where there is no number."""
    return {f"{name}_mean": rounded(of.mean) if of else None, f"{name}_std": rounded(of.std) if of else None}


def of_difference(name: str, of: Difference | None) -> dict[str, float | None]:
    """Mean, interval and p-value; empty where there is none."""
    low, high = (of.interval if of else None) or (None, None)
    values = {"": of.mean if of else None, "_low": low, "_high": high, "_p": of.p_value if of else None}
    return {f"{name}{key}": rounded(value) for key, value in values.items()}


def by_seed_text(of: Difference | None) -> str:
    """`seed:difference` of every pair."""
    return " ".join(f"{seed}:{value:+z.4f}" for seed, value in zip(of.seeds, of.values, strict=True)) if of else ""


def csv_text(table: Sequence[Mapping[str, Any]]) -> str:
    out = io.StringIO()
    if table:
        writer = csv.DictWriter(out, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    return out.getvalue()
