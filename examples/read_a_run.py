"""Read the record of a run with plain Python: python examples/read_a_run.py outputs/.../seed-1"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(run: Path) -> dict[str, float]:
    """Print the result, the curve and the drop of a run; return the metrics of its last evaluation."""
    summary = json.loads((run / "summary.json").read_text())
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    sites = json.loads((run / "sites.json").read_text())

    metric = summary["headline"]
    print(f"{summary['metric_labels'][metric]} after the last epoch: {summary['last'][f'test/{metric}']:.2f}")
    print(f"{summary['parameters']:,} parameters, commit {summary['environment']['commit']}")
    print(f"{len(sites)} sites{', the first ' + sites[0]['site'] if sites else ''}")
    for entry in log:  # one JSON object a line: training every log_every steps, an evaluation at the end of an epoch
        if f"test/{metric}" in entry:
            print(f"epoch {entry['epoch']}: {entry[f'test/{metric}']:.2f}")
    for name, drop in summary["drop_last_epoch"].items():
        print(f"{name}: dropped {drop['measured']:.2%}, expected {drop['expected']:.2%} in the last epoch")
    return summary["last"]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
