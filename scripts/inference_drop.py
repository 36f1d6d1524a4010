"""Test every run of a sweep with DropBlock on: python -m scripts.inference_drop outputs/sweeps/fig5_inference-...

Figure 5 of the paper. Leaves RUN/under_drop.json, which the report reads; a run that has it is skipped, so the same
command goes on where it was stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from configs.command_line import read_values
from configs.evaluation import EvaluationConfig
from engine import cpu
from engine.run_directory import RunDirectory
from experiment.outcome import report_error
from experiment.source import NetworkSource
from scripts.entry import folder, guarded, parser_of

KEEP_PROBS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)


@dataclass
class EvaluationPlace:
    """Device and data of the evaluations, as evaluate.py takes them."""

    device: str = "auto"
    workers: int | None = None
    data_root: str | None = None
    download: bool = True


@guarded
def main(arguments: list[str]) -> int:
    """Arguments in, exit code out: 0, 1 if an evaluation failed, 2 with one line."""
    parser = parser_of(__doc__)
    parser.add_argument("sweep", type=folder, help="the folder of a sweep")
    parser.add_argument("--block-size", type=int, nargs="+", default=[1, 7], metavar="B")
    parser.add_argument("more", nargs="*", help="device=, workers=, data_root= or download=, as for evaluate.py")
    given = parser.parse_intermixed_args(arguments)
    place = read_values(given.more, EvaluationPlace)
    cpu.configure_process()
    from scripts.reporting.runs import read_sweep

    runs = [RunDirectory(run["path"]) for run in read_sweep(given.sweep).runs]
    failed = 0
    for i, run in enumerate(runs, start=1):
        done = measured(run) >= {(block, kept) for block in given.block_size for kept in KEEP_PROBS}
        print(f"=== run {i} of {len(runs)}: {run.path}{', already measured' if done else ''}", flush=True)
        if not done:
            try:
                measure(run, given.block_size, place)
            except Exception as error:  # the other runs are measured all the same
                report_error(error)
                failed += 1
    print(f"{len(runs) - failed} runs measured, {failed} not")
    return int(failed > 0)


def measured(run: RunDirectory) -> set[tuple[int, float]]:
    """(block size, keep_prob) that a run was tested with."""
    points = (run.read("under_drop.json") or {}).get("under_drop", [])
    return {(point["block_size"], point["keep_prob"]) for point in points}


def measure(run: RunDirectory, blocks: Sequence[int], place: EvaluationPlace) -> None:
    """Evaluate one run with these blocks at every keep_prob; the points join those of other blocks."""
    from experiment.evaluation import evaluate

    options = asdict(place)
    device = options.pop("device")
    wanted = EvaluationConfig(keep_prob=[*KEEP_PROBS], block_size=[*blocks])
    result = evaluate(NetworkSource(run=str(run.path), **options), wanted, device)
    earlier = (run.read("under_drop.json") or {}).get("under_drop", [])
    kept = [point for point in earlier if point["block_size"] not in blocks]
    run.write("under_drop.json", {**result, "under_drop": kept + result["under_drop"]})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
