"""The claims of all published results in one table, from the claims.csv of each."""

from __future__ import annotations

import csv
from pathlib import Path

from scripts.reporting.tables import markdown_table


def findings_table(results: Path, link: str = "docs/results/") -> str:
    """Every claim with its difference averaged over cells; empty where no result has claims.

    Args:
        results: the folder docs/results.
        link: the way there from the page that shows the table.
    """
    lines = []
    for path in sorted(results.glob("*/claims.csv")):
        with open(path) as file:
            for row in csv.DictReader(file):
                if not row["difference"]:
                    continue
                low, high = (row[f"difference_{end}"] for end in ("low", "high"))
                interval = f" [{float(low):+.2f}, {float(high):+.2f}]" if low else ""
                difference = f"{float(row['difference']):+.2f}{interval}"
                cells = f"{row['positive']} of {row['cells']}"
                source = f"[{path.parent.name}]({link}{path.parent.name}/report.md)"
                lines.append([row["claim"], difference, row["n"], cells, row["verdict"], source])
    headers = ["the paper", "here, points [95 %]", "n", "cells above 0", "verdict", "from"]
    return markdown_table(headers, lines) if lines else ""
