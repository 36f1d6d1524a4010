"""Two ranks train a task: equal weights, every sample once, and the same numbers from one process that evaluates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import evaluate
from engine.checkpoint import load
from tests.comparison import assert_same
from tests.ranks.test_ranks import codes, outputs
from tests.trainer import Starter, only_run


def trained_by_two_ranks(
    starter: Starter, folder: Path, words: tuple[str, ...], samples: int, epochs: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What one process evaluates of the run, and the summary of the run.

    Args:
        words: of the command line.
        samples, epochs: how many samples an epoch has, and how many epochs the run.
    """
    faults = {r: {"keep_state": str(folder / f"{r}.pt"), "ledger": str(folder / f"{r}")} for r in range(2)}
    processes = starter.ranks(*words, f"output_root={folder / 'out'}", faults=faults)
    assert codes(processes) == [0, 0], outputs(processes)
    assert_same(load(folder / "0.pt"), load(folder / "1.pt"))
    ledgers = [[json.loads(line) for line in (folder / f"{r}").read_text().splitlines()] for r in range(2)]
    seen = [i for lines in ledgers for line in lines if "step" in line for i in line["samples"]]
    assert len(seen) == epochs * samples
    assert len(set(seen)) == samples
    run, out = only_run(folder / "out"), folder / "result.json"
    assert evaluate.main([f"run={run.path}", f"json={out}", "device=cpu"]) == 0
    result, summary = json.loads(out.read_text()), run.summary()
    assert result["tables"] == summary["tables"]
    return result, summary
