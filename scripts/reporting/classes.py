"""What each row of a sweep reaches on each class, from the tables that every run's record holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scripts.reporting.statistics import Spread
from scripts.reporting.sweep import Sweep

MOST = 30  # classes that a table has room for


def class_table(sweep: Sweep) -> tuple[list[str], list[list[object]]] | None:
    """Head and lines of a table: a line a class, a column a row of the sweep, mean and deviation over its seeds.

    None where a run has no such table (an older one), where rows have other classes, or where there are too many.
    """
    tables = [[per_class(run.summary) for run in row.runs] for row in sweep.rows]
    found = [table for of_row in tables for table in of_row]
    if any(table is None for table in found):
        return None
    measure, classes = found[0][0], list(found[0][1])  # type: ignore[index]
    if len(classes) > MOST or any(table[0] != measure or list(table[1]) != classes for table in found):  # type: ignore[index]
        return None
    lines = [[name, *(spread_of(of_row, name) for of_row in tables)] for name in classes]
    return [measure, *(sweep.label(row) for row in sweep.rows)], lines


def per_class(summary: dict[str, Any]) -> tuple[str, dict[str, float | None]] | None:
    """The first measure of a run's table of classes: its name, and its value for each class."""
    for table in summary.get("tables") or []:
        if table["name"] == "classes":
            return str(table["header"][1]), {str(row[0]): row[1] for row in table["rows"]}
    return None


def spread_of(tables: Sequence[tuple[str, dict[str, float | None]] | None], name: str) -> Spread | str:
    """Over the runs in which the class has a value."""
    values = tuple(value for table in tables if table and (value := table[1][name]) is not None)
    return Spread(values) if values else ""
