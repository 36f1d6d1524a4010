"""Sweep folders as train.py leaves them, with made-up numbers: what the report is tested on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from configs import compose
from configs.plan import Plan
from configs.tables import table_of

ENVIRONMENT = {"commit": "0" * 40, "dirty": False, "device": "cpu", "processor": "AVX2", "threads": 1}


@cache
def plan_of(*words: str) -> Plan:
    """The plan that train.py would make of these overrides; composing takes a third of a second."""
    return compose.plan_of(*words, grid=True)


def jobs(sweep: str) -> list[list[str]]:
    """The overrides of every job of a sweep's file, a seed aside."""
    params = table_of(sweep).axes()
    found: list[list[str]] = [[]]
    for key, values in params.items():
        found = [[*words, f"{key}={value.strip()}"] for words in found for value in str(values).split(",")]
    return found


def write_run(root: Path, plan: Plan, top1: float, epochs: int = 40) -> Path:
    """A finished run whose accuracy rises to `top1` and whose drop rises from nothing; val lies 0.5 above test."""
    path = root / "place" / f"{plan.variant}-{plan.hash()}" / f"seed-{plan.seed}"
    path.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(plan.seed)
    lines, points = [], []
    shares = {"group3": {"measured": 0.0231, "expected": 0.0232}, "group4": {"measured": 0.0967, "expected": 0.0968}}
    for epoch in range(1, epochs + 1):
        done = 1 - float(np.exp(-epoch / (0.2 * epochs)))
        lines.append({"step": 10 * epoch, "epoch": epoch, "train/top1": 60 + 40 * done + float(noise.normal(0, 1))})
        if plan.layer:
            rising = {f"drop/measured/{group}": share["measured"] * epoch / epochs for group, share in shares.items()}
            lines[-1] |= rising
        if epoch % 5 == 0 or epoch == epochs:
            value = top1 - 30 * (1 - done) + (float(noise.normal(0, 0.2)) if epoch < epochs else 0.0)
            points.append({"epoch": epoch, "val/top1": value + 0.5, "test/top1": value, "test/loss": 0.8})
            lines.append({"step": 10 * epoch, **points[-1]})
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = {
        "last": points[-1],
        "best": max(points, key=lambda point: point["val/top1"]),
        "peak": max(points, key=lambda point: point["test/top1"]),
        "headline": "top1",
        "drop_last_epoch": shares if plan.layer else {},
        "train_seconds": 100.0,
        "parameters": 123456,
        "environment": ENVIRONMENT,
        "plan": plan.values(),
    }
    (path / "summary.json").write_text(json.dumps(summary))
    OmegaConf.save(OmegaConf.create(plan.values()), path / "plan.yaml")
    (path / "status.json").write_text(json.dumps({"status": "DONE"}))
    sites = []
    for group, side in ((3, 8), (4, 4)):
        block = (plan.layer.block_size if plan.layer else None) or 1
        sites.append({"group": group, "map_size": [16, side, side], "block": [min(block, side)] * 2})
    (path / "sites.json").write_text(json.dumps(sites))
    return path


def recorded(run: Path, change: Callable[[dict[str, Any]], object] | None = None, **values: object) -> Path:
    """Change the summary of a run; returns the run."""
    summary = json.loads((run / "summary.json").read_text())
    if change is not None:
        change(summary)
    (run / "summary.json").write_text(json.dumps(summary | values))
    return run


def note(root: Path, plan: Plan, run: Path, status: str = "DONE", reason: str = "") -> Path:
    """Note a job as a sweep does; returns the sweep's folder."""
    runs = root / "sweeps" / "made-up" / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    entry = {"run": str(run), "status": status, "overrides": [], "reason": reason, "time": 0.0}
    entry |= {"experiment": plan.experiment, "paper": asdict(plan.paper)}
    (runs / ("_".join(run.parts[-3:]) + ".json")).write_text(json.dumps(entry))
    return runs.parent


def list_jobs(folder: Path, *entries: dict[str, Any]) -> None:
    """Add jobs to those that the commands of a sweep asked for; without entries, those that left a note."""
    listed = folder / "jobs.json"
    known = json.loads(listed.read_text()) if listed.exists() else []
    noted = [json.loads(path.read_text()) for path in sorted((folder / "runs").glob("*.json"))]
    listed.write_text(json.dumps([*known, *(entries or noted)]))


def grid(root: Path, rows: Mapping[tuple[str, ...], Sequence[float]], epochs: int = 5) -> Path:
    """A sweep of these rows: overrides, and the accuracy of each seed from 1 on; returns its folder."""
    folder = root
    for words, values in rows.items():
        for seed, top1 in enumerate(values, start=1):
            plan = replace(plan_of(*words), seed=seed)
            folder = note(root, plan, write_run(root, plan, top1, epochs))
    return folder


def made_up(root: Path, sweep: str, seeds: int = 3, spread: float = 0.3) -> Path:
    """A whole sweep, accuracies near 84 plus a tenth of what the paper gains; returns its folder."""
    folder = root
    for i, words in enumerate(jobs(sweep)):
        # Composed once an experiment: a knob of its layer is set in the plan.
        knobs = dict(word.split("=") for word in words if word.startswith(("keep_prob=", "block_size=")))
        rest = [word for word in words if word.partition("=")[0] not in knobs]
        first = plan_of(*rest, "data=fashion_mnist", "model=resnet18", "data.train_subset=2000")
        if first.layer is not None:
            given = {name: json.loads(value) for name, value in knobs.items() if getattr(first.layer, name) is not None}
            first = replace(first, layer=replace(first.layer, **given))
        for seed in range(1, seeds + 1):
            plan = replace(first, seed=seed)
            curve = plan.paper.curve.get("top1", {}).get(plan.layer.keep_prob) if plan.layer else None
            gain = (((plan.paper.metrics.get("top1") or [None])[0] or curve or 76.0) - 76.51) / 2
            top1 = 84.0 + gain + float(np.random.default_rng([seed, i]).normal(0, spread))
            folder = note(root, plan, write_run(root, plan, top1))
    list_jobs(folder)
    return folder
