"""Keep results in the repository, in docs/results, and fill the places of README.md and docs/ that show them.

python -m scripts.keep_results outputs/sweeps/table1-... table1   # the report of a sweep, as docs/results/table1
python -m scripts.keep_results --first-runs RUN RUN ...           # what the commands of README's task table gave
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from configs.checking import UserError
from engine.run_directory import RunDirectory
from scripts.entry import folder, guarded, parser_of
from scripts.pages import RESULTS, fill_all
from scripts.reporting.regimes import draw_regimes
from scripts.reporting.report import write_report
from scripts.reporting.runs import read_sweep


@guarded
def main(arguments: list[str]) -> int:
    """Arguments in, exit code out: 0, or 2 with one line."""
    parser = parser_of(__doc__)
    parser.add_argument("sweep", type=folder, nargs="?", help="the folder of a sweep")
    parser.add_argument("name", nargs="?", help="what to call it in docs/results")
    parser.add_argument("--first-runs", type=folder, nargs="+", default=[], metavar="RUN", help="finished runs")
    given = parser.parse_args(arguments)
    if (given.sweep is None) != bool(given.first_runs) or (given.sweep is not None and given.name is None):
        parser.error("give a sweep and its name, or --first-runs RUN ...")
    if given.first_runs:
        keep_first_runs(given.first_runs, RESULTS / "first_runs.json")
    else:
        write_report(read_sweep(given.sweep), RESULTS / given.name, with_page=False)
        draw_regimes(RESULTS)
    fill_all()
    return 0


def keep_first_runs(runs: list[Path], file: Path) -> None:
    """Write the result of each run under its data set, with what is needed to compare another with it.

    Raises:
        UserError: if one of them is not finished.
    """
    kept = json.loads(file.read_text()) if file.exists() else {}
    for run in runs:
        summary = RunDirectory(run).summary()
        if not summary:
            raise UserError(f"{run}: no finished run, there is no summary.json in it")
        metric, data = summary["headline"], summary["plan"]["data"]["name"]
        kept[data] = {
            "data": data,
            "directory": "/".join(run.resolve().parts[-3:]),
            "label": summary["metric_labels"][metric],
            "value": summary["last"][f"test/{metric}"],
            "train_seconds": summary["train_seconds"],
            "device": summary["environment"]["device"],
        }
    file.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
