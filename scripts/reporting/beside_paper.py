"""Every metric that the paper gives of the rows of a sweep, beside ours, and where the paper's numbers were read."""

from __future__ import annotations

from scripts.reporting.names import metric_label
from scripts.reporting.sweep import Row, Sweep

NOTE = "Here: the last epoch on test. The paper's numbers stand for its own setting; the deviations are listed."


def paper_table(sweep: Sweep) -> tuple[list[str], list[list[object]]] | None:
    """Head and lines of a table: for each metric of the paper what is measured here and the paper's number.

    None on made-up images, and where the paper gives no more than the headline of Results.
    """
    metrics = list(dict.fromkeys(name for row in sweep.rows for name in row.paper.get("metrics") or {}))
    if sweep.made_up or not set(metrics) - {sweep.rows[0].headline}:
        return None
    summary = sweep.runs[0].summary
    head = [""]
    for name in metrics:
        head += [metric_label(name, summary), "paper"]
    lines: list[list[object]] = []
    for row in sweep.rows:
        line: list[object] = [sweep.label(row)]
        for name in metrics:
            line += [row.spread("last", metric=name), number_text(row, name)]
        lines.append([*line, row.paper.get("certainty") or ""])
    return [*head, "the paper's numbers"], lines


def number_text(row: Row, metric: str) -> str:
    """The paper's number of a metric, with its deviation where there is one."""
    numbers = (row.paper.get("metrics") or {}).get(metric) or []
    return " ± ".join(f"{number:.2f}" for number in numbers[:2])
