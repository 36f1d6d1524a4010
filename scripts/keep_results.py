"""Keep the report of a sweep in the repository: python scripts/keep_results.py outputs/sweeps/table1-... table1

Writes the report into docs/results/NAME and fills the places of README.md and docs/ that show results (`pages.py`).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.entry import folder, guarded, parser_of
from scripts.pages import RESULTS, fill_all
from scripts.report import write_report
from scripts.reporting.kept import results_table
from scripts.reporting.reading import read_sweep
from scripts.reporting.regimes import draw_regimes


@guarded
def main(arguments: list[str]) -> int:
    """Arguments in, exit code out: 0, or 2 with one line."""
    parser = parser_of(__doc__)
    parser.add_argument("sweep", type=folder, help="the folder of a sweep")
    parser.add_argument("name", help="what to call it in docs/results")
    given = parser.parse_args(arguments)
    write_report(read_sweep(given.sweep), RESULTS / given.name, with_page=False)
    draw_regimes(RESULTS)
    for page in fill_all():
        print(f"filled {page}")
    print(results_table(RESULTS / given.name))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
