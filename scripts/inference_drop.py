"""Test every run of a sweep with DropBlock on: python scripts/inference_drop.py outputs/sweeps/fig5_inference-...

Figure 5 of the paper. Leaves RUN/under_drop.json, which scripts/report.py reads; a run that has it is skipped, so the
same command goes on where it was stopped.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from engine.records import RunFolder
from scripts.entry import folder, guarded, parser_of
from scripts.reporting.reading import read_sweep

EVALUATE = Path(__file__).resolve().parent.parent / "evaluate.py"
KEEP_PROBS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


def wanted(blocks: list[int]) -> set[tuple[int, float]]:
    return {(block, keep_prob) for block in blocks for keep_prob in KEEP_PROBS}


def measured(run: RunFolder) -> set[tuple[int, float]]:
    """(block size, keep_prob) that a run was tested with."""
    points = (run.read("under_drop.json") or {}).get("under_drop", [])
    return {(point["block_size"], point["keep_prob"]) for point in points}


def measure(run: RunFolder, blocks: list[int], more: list[str]) -> int:
    """Evaluate one run in a process of its own; the result joins earlier ones, whole or not at all."""
    aside, earlier = run.path / "under_drop.json.tmp", run.read("under_drop.json") or {}
    overrides = [
        f"run={run.path}",
        f"keep_prob=[{','.join(map(str, KEEP_PROBS))}]",
        f"block_size=[{','.join(map(str, blocks))}]",
    ]
    code = subprocess.run([sys.executable, str(EVALUATE), *overrides, f"json={aside}", *more]).returncode
    if code == 0:
        result = json.loads(aside.read_text())
        kept = [point for point in earlier.get("under_drop", []) if point["block_size"] not in blocks]
        run.write("under_drop.json", {**result, "under_drop": kept + result["under_drop"]})
        aside.unlink()
    return code


@guarded
def main(arguments: list[str]) -> int:
    """Arguments in, exit code out: 0, 1 if an evaluation failed, 2 with one line."""
    parser = parser_of(__doc__)
    parser.add_argument("sweep", type=folder, help="the folder of a sweep")
    parser.add_argument("--block-size", type=int, nargs="+", default=[1, 7], metavar="B")
    parser.add_argument("more", nargs="*", help="KEY=VALUE for evaluate.py, such as device=cpu or data_root=...")
    given = parser.parse_intermixed_args(arguments)
    runs = read_sweep(given.sweep).runs
    failed = 0
    for i, run in enumerate(runs, start=1):
        done = wanted(given.block_size) <= measured(run.folder)
        print(f"=== run {i} of {len(runs)}: {run.folder.path}{', already measured' if done else ''}", flush=True)
        failed += not done and measure(run.folder, given.block_size, given.more) != 0
    print(f"{len(runs) - failed} runs measured, {failed} not")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
