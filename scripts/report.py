"""The report of a sweep: python scripts/report.py outputs/sweeps/table1-fashion_mnist [--out DIR]

Writes into the folder of the sweep, or into DIR: report.html (one page with everything inside, to be opened or sent),
report.md, report.csv (a line a row), runs.csv (a line a run), claims.csv where the sweep declares claims,
under_drop.csv where there is drop at inference, the figures as PNG, and for TensorBoard a folder for each row with the
mean over its seeds.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.entry import folder, guarded, parser_of
from scripts.reporting.sweep import Sweep


def write_report(sweep: Sweep, out: Path, with_page: bool = True) -> Path:
    """Write everything but the curves for TensorBoard; returns the path of the Markdown.

    Args:
        sweep: what was run.
        out: the folder of the files.
        with_page: the HTML as well, which holds every picture a second time.
    """
    from scripts.reporting import csv_files, figures, markdown, page
    from scripts.reporting.comparison import Report, answers, lines_of

    out.mkdir(parents=True, exist_ok=True)
    report = Report(sweep, lines_of(sweep), answers(sweep), figures.draw_all(sweep, out))
    texts = {
        "report.csv": csv_files.rows_csv(sweep, report.lines),
        "runs.csv": csv_files.runs_csv(sweep),
        "claims.csv": csv_files.claims_csv(report.answers),
        "under_drop.csv": csv_files.under_drop_csv(sweep),
        "report.md": markdown.report_text(report),
        "report.html": page.page(report, out) if with_page else "",
    }
    for name, text in texts.items():
        if text:
            (out / name).write_text(text)
        else:
            (out / name).unlink(missing_ok=True)  # of an earlier report, that had something to say there
    return out / "report.md"


@guarded
def main(arguments: list[str]) -> int:
    """Arguments in, exit code out: 0, or 2 with one line."""
    parser = parser_of(__doc__)
    parser.add_argument("sweep", type=folder, help="the folder of a sweep")
    parser.add_argument("--out", type=Path, help="another folder for the report")
    given = parser.parse_args(arguments)
    from scripts.reporting.mean_curves import write_mean_curves
    from scripts.reporting.reading import read_sweep

    sweep = read_sweep(given.sweep)
    out = given.out or given.sweep
    written = write_report(sweep, out)
    curves = write_mean_curves(sweep, out)
    print(
        f"{written.read_text()}\nwritten to {written}; as a page: {out / 'report.html'}; tensorboard --logdir {curves}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
