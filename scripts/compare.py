"""Compare runs that no sweep lists: python -m scripts.compare RUN RUN ... [--out DIR]

A RUN is the directory of one finished run (outputs/.../seed-1), or the directory above it for all of its seeds. The
first is what the others are compared with, seed by seed. Prints the report; --out writes it into DIR as well, with its
page and pictures.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from scripts.entry import folder, guarded, parser_of


def runs_in(place: Path) -> list[Path]:
    """The run itself, or the finished runs of all seeds in the directory of a configuration."""
    found = (path.parent for path in place.glob("seed-*/summary.json"))
    seeds = sorted(path for path in found if re.fullmatch(r"seed-\d+", path.name))  # not seed-1-old-1
    return [place] if (place / "summary.json").exists() or not seeds else seeds


@guarded
def main(arguments: list[str]) -> int:
    """Arguments in, exit code out: 0, or 2 with one line."""
    parser = parser_of(__doc__)
    parser.add_argument("runs", type=folder, nargs="+", metavar="RUN", help="a run, or a folder of its seeds")
    parser.add_argument("--out", type=Path, help="write the report here as well")
    given = parser.parse_args(arguments)
    from scripts.reporting.report import content_of, rendered, write_report
    from scripts.reporting.runs import read_runs

    sweep = read_runs([run for place in given.runs for run in runs_in(place)])
    if given.out is not None:
        write_report(sweep, given.out)
    print(rendered("report.md.j2", content_of(sweep)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
