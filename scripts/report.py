"""The report of a sweep: python scripts/report.py outputs/sweeps/table1-fashion_mnist [--out DIR]

Writes report.md, report.csv (a line a row), runs.csv (a line a run), under_drop.csv where there is drop at inference,
and the figures as PNG, into the folder of the sweep or into DIR.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs.checking import UserError


def write_report(folder: Path, out: Path) -> Path:
    """Write everything; returns the path of the Markdown.

    Raises:
        UserError: if there is nothing to report, in one line.
    """
    from scripts.reporting import figures, tables
    from scripts.reporting.reading import read_sweep

    sweep = read_sweep(folder)
    out.mkdir(parents=True, exist_ok=True)
    texts = {
        "report.csv": tables.rows_csv(sweep),
        "runs.csv": tables.runs_csv(sweep),
        "under_drop.csv": tables.under_drop_csv(sweep),
        "report.md": tables.report_text(sweep, figures.draw_all(sweep, out)),
    }
    for name, text in texts.items():
        if text:
            (out / name).write_text(text)
    return out / "report.md"


def main(words: list[str]) -> int:
    """Words in, exit code out: 0, or 2 with one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", type=Path, help="the folder of a sweep")
    parser.add_argument("--out", type=Path, help="another folder for the report")
    given = parser.parse_args(words)
    try:
        written = write_report(given.sweep, given.out or given.sweep)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{written.read_text()}\nwritten to {written}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
