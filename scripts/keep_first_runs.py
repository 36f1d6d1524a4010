"""Keep what the commands of the README's task table gave: python scripts/keep_first_runs.py RUN RUN ...

Writes docs/results/first_runs.json, one entry a data set, and fills the places that show it (`pages.py`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs.checking import UserError
from engine.records import RunFolder
from scripts.entry import folder, guarded, parser_of
from scripts.pages import RESULTS, fill_all

KEPT = RESULTS / "first_runs.json"


def entry_of(run: Path) -> dict[str, Any]:
    """The result of a finished run, and what is needed to compare another with it.

    Raises:
        UserError: if the run is not finished.
    """
    summary = RunFolder(run).summary()
    if not summary:
        raise UserError(f"{run}: no finished run, there is no summary.json in it")
    metric, plan = summary["headline"], summary["plan"]
    return {
        "data": plan["data"]["name"],
        "directory": "/".join(run.resolve().parts[-3:]),
        "label": summary["metric_labels"][metric],
        "value": summary["last"][f"test/{metric}"],
        "train_seconds": summary["train_seconds"],
        "device": summary["environment"]["device"],
    }


@guarded
def main(arguments: list[str]) -> int:
    """Arguments in, exit code out: 0, or 2 with one line."""
    parser = parser_of(__doc__)
    parser.add_argument("runs", type=folder, nargs="+", metavar="RUN")
    given = parser.parse_args(arguments)
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for run in given.runs:
        entry = entry_of(run)
        kept[entry["data"]] = entry
    KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    for page in fill_all():
        print(f"filled {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
