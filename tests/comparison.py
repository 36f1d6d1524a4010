"""Two runs compared to the last bit: what their checkpoints, curves and results hold."""

from __future__ import annotations

from typing import Any

import torch

from engine.checkpoint import load
from engine.run_directory import RunDirectory


def curves(run: RunDirectory) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock measured."""
    return [{k: v for k, v in line.items() if not k.startswith("time/")} for line in run.metrics()]


def assert_same(ours: Any, theirs: Any, key: str = "") -> None:
    """Deep equality, bit for bit; only the clock and where it ran may differ."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), key
        for name in ours:
            if name not in ("seconds", "environments"):
                assert_same(ours[name], theirs[name], f"{key}.{name}")
    elif isinstance(ours, list):
        assert len(ours) == len(theirs), key
        for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(mine, other, f"{key}[{i}]")
    elif isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype, key
        assert torch.equal(ours, theirs), key
    else:
        assert ours == theirs, key


def assert_identical(run: RunDirectory, other: RunDirectory) -> None:
    """Weights, BatchNorm, average, optimizer, counters, curves and results of two finished runs."""
    for name in ("last.pt", "best.pt"):
        assert_same(load(run.checkpoints / name), load(other.checkpoints / name), name)
    assert curves(run) == curves(other)
    for key in ("last", "best", "peak", "drop_last_epoch", "steps"):
        assert run.summary()[key] == other.summary()[key], key
    assert run.status()["status"] == "DONE"
