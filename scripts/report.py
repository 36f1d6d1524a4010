"""The report of a sweep: python scripts/report.py outputs/sweeps/table1-fashion_mnist [--out DIR]

Writes into the folder of the sweep, or into DIR: report.html (one page with everything inside, to be opened or sent),
report.md, report.csv (a line a row), runs.csv (a line a run), claims.csv where the sweep declares claims,
under_drop.csv where there is drop at inference, the figures as PNG, and for TensorBoard a folder for each row with the
mean over its seeds. Prints the results, what was asked, and how to read them.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.entry import folder, guarded, parser_of


@guarded
def main(arguments: list[str]) -> int:
    """Arguments in, exit code out: 0, or 2 with one line."""
    parser = parser_of(__doc__)
    parser.add_argument("sweep", type=folder, help="the folder of a sweep")
    parser.add_argument("--out", type=Path, help="another folder for the report")
    given = parser.parse_args(arguments)
    # Imported late: --help and a wrong folder are answered without matplotlib.
    from scripts.reporting.runs import read_sweep

    sweep = read_sweep(given.sweep)
    out = given.out or given.sweep
    from scripts.reporting.figures import write_mean_curves
    from scripts.reporting.report import write_report

    written = write_report(sweep, out)
    curves = write_mean_curves(sweep, out)
    print(written.read_text().partition("\n## Each row in detail\n")[0])
    print(f"the whole report: {out / 'report.html'}, {written}; its curves: tensorboard --logdir {curves}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
