"""Keep the report of a sweep in the repository: python scripts/keep_results.py outputs/sweeps/table1-... table1

Writes the report into docs/results/NAME, and its short form into the README, where that has a place for it: between
<!-- results:NAME --> and the next <!-- end -->. A test compares the two. The place `findings` holds what all results
together say of the paper's findings.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.entry import folder, guarded, parser_of
from scripts.report import write_report
from scripts.reporting.findings import findings_table
from scripts.reporting.reading import read_sweep
from scripts.reporting.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS, README = ROOT / "docs" / "results", ROOT / "README.md"


def short(report: str) -> str:
    """A table from the text of a report.csv: ours beside the paper, both with the difference to the baseline."""
    headers = ["", "n", "ours, last epoch", "to baseline [95 %]", "verdict", "the paper", "to baseline"]
    rows = [
        [
            *(row["label"], row["n"], number(row["last_test_mean"], row["last_test_std"])),
            *(interval(row["difference"], row["difference_low"], row["difference_high"]), row["verdict"]),
            *(number(row["paper_mean"], row["paper_std"]), number(row["paper_difference"], sign="+")),
        ]
        for row in csv.DictReader(io.StringIO(report))
    ]
    return markdown_table(headers, rows)


def number(mean: str, std: str = "", sign: str = "") -> str:
    if not mean:
        return ""
    return f"{float(mean):{sign}.2f}" + (f" ± {float(std):.2f}" if std else "")


def interval(mean: str, low: str, high: str) -> str:
    """A difference and its interval, which a single pair does not have."""
    ends = f" [{float(low):+.2f}, {float(high):+.2f}]" if low else ""
    return f"{float(mean):+.2f}{ends}" if mean else ""


def marked(name: str) -> re.Pattern[str]:
    """The place of a table in the README."""
    return re.compile(rf"(<!-- results:{re.escape(name)} -->\n).*?(\n<!-- end -->)", re.DOTALL)


def filled(page: str, name: str, text: str) -> str:
    """The page with another text in a marked place."""
    return marked(name).sub(lambda found: found[1] + text + found[2], page)


@guarded
def main(words: list[str]) -> int:
    """Words in, exit code out: 0, or 2 with one line."""
    parser = parser_of(__doc__)
    parser.add_argument("sweep", type=folder, help="the folder of a sweep")
    parser.add_argument("name", help="what to call it in docs/results")
    given = parser.parse_args(words)
    page = README.read_text()
    write_report(read_sweep(given.sweep), RESULTS / given.name, with_page=False)
    table = short((RESULTS / given.name / "report.csv").read_text())
    page = filled(page, given.name, table)
    README.write_text(filled(page, "findings", findings_table(RESULTS)))
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
