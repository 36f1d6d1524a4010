"""Keep the report of a sweep in the repository: python scripts/keep_results.py outputs/sweeps/table1-... table1

Writes the report into docs/results/NAME, and its short form into the README, where that has a place for it: between
<!-- results:NAME --> and the next <!-- end -->. A test compares the two. The place `findings` holds what all results
together say of the paper's findings.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs.checking import UserError
from scripts.report import write_report
from scripts.reporting.findings import findings_table
from scripts.reporting.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS, README = ROOT / "docs" / "results", ROOT / "README.md"


def short(report: str) -> str:
    """A table from the text of a report.csv: ours beside the paper, both with the difference to the baseline."""
    headers = ["", "n", "ours, last epoch", "to baseline", "the paper", "to baseline"]
    rows = [
        [
            *(row["label"], row["n"], number(row["last_test_mean"], row["last_test_std"])),
            number(row["last_gain_mean"], row["last_gain_std"], sign="+"),
            *(number(row["paper_mean"], row["paper_std"]), number(row["paper_gain"], sign="+")),
        ]
        for row in csv.DictReader(io.StringIO(report))
    ]
    return markdown_table(headers, rows)


def number(mean: str, std: str = "", sign: str = "") -> str:
    if not mean:
        return ""
    return f"{float(mean):{sign}.2f}" + (f" ± {float(std):.2f}" if std else "")


def marked(name: str) -> re.Pattern[str]:
    """The place of a table in the README."""
    return re.compile(rf"(<!-- results:{re.escape(name)} -->\n).*?(\n<!-- end -->)", re.DOTALL)


def filled(page: str, name: str, text: str) -> str:
    """The page with another text in a marked place."""
    return marked(name).sub(lambda found: found[1] + text + found[2], page)


def main(words: list[str]) -> int:
    """Words in, exit code out: 0, or 2 with one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="the folder of a sweep")
    parser.add_argument("name", help="what to call it in docs/results")
    given = parser.parse_args(words)
    try:
        page = README.read_text()
        write_report(given.sweep, RESULTS / given.name)
        table = short((RESULTS / given.name / "report.csv").read_text())
        page = filled(page, given.name, table)
        README.write_text(filled(page, "findings", findings_table(RESULTS)))
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
