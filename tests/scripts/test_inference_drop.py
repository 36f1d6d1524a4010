"""Drop at inference: the points of a run, and what becomes of a run that cannot be evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import experiment.evaluation
from configs.evaluation import EvaluationConfig
from engine.run_directory import RunDirectory
from scripts import inference_drop
from tests.scripts.made_up_sweep import note, plan_of, write_run


def test_further_blocks_join_the_earlier_and_a_failing_run_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plans = [plan_of(f"regularizer={name}") for name in ("none", "dropblock")]
    runs = [write_run(tmp_path, plan, 80.0) for plan in plans]
    (sweep,) = {note(tmp_path, plan, run) for plan, run in zip(plans, runs, strict=True)}

    def evaluate(source: Any, wanted: EvaluationConfig, device: str) -> dict[str, Any]:
        if source.run == str(runs[0]):
            raise FileNotFoundError("no checkpoint")
        assert (source.data_root, device) == ("elsewhere", "cpu")
        points = [{"block_size": block, "keep_prob": kept} for block in wanted.block_size for kept in wanted.keep_prob]
        return {"split": wanted.split, "under_drop": points}

    monkeypatch.setattr(experiment.evaluation, "evaluate", evaluate)
    for blocks in (["1", "7"], ["3"]):
        words = [str(sweep), "device=cpu", "data_root=elsewhere", "--block-size", *blocks]
        assert inference_drop.main(words) == 1
        assert "1 runs measured, 1 not" in capsys.readouterr().out
    points = json.loads((runs[1] / "under_drop.json").read_text())["under_drop"]
    assert len(points) == 3 * len(inference_drop.KEEP_PROBS)
    assert inference_drop.measured(RunDirectory(runs[1])) == {(p["block_size"], p["keep_prob"]) for p in points}
    assert inference_drop.main([str(sweep), "nonsense=1"]) == 2
