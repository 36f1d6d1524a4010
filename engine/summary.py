"""Builds the log entries, the epoch line and the summary of a run."""

from __future__ import annotations

from collections import Counter
from typing import Any

from engine.console import metric_text
from engine.state import TrainState
from engine.tasks import Task

SHOWN = 3  # metrics of a split at the terminal; all of them are logged


def log_entry(
    state: TrainState,
    metrics: dict[str, float],
    keep_probs: dict[str, float],
    expected: dict[str, float],
    images_per_s: float,
) -> dict[str, float]:
    """The values of the window that ends here, by the names they are logged under.

    Args:
        state: with the window not yet ended.
        metrics: of training, over the window.
        keep_probs: mean targets over the window, by the names they are logged under; empty without layers.
        expected: closed-form drop per group at those; empty without layers.
        images_per_s: training speed over the window.
    """
    values = {f"train/{name}": value for name, value in metrics.items()}
    values["lr"] = state.optimizer.param_groups[0]["lr"]
    values |= keep_probs
    for group, share in expected.items():
        values[f"drop/measured/{group}"] = dropped(state.window.drops[group])
        values[f"drop/expected/{group}"] = share
    values["time/images_per_s"] = images_per_s
    return values


def epoch_line(epoch: int, epochs: int, values: dict[str, float]) -> str:
    """The line at the terminal that an evaluation leaves: the first metrics of each split, of detection's twelve."""
    shown, count = [], Counter[str]()
    for name, value in values.items():
        split = name.split("/")[0]
        count[split] += 1
        if count[split] <= SHOWN:
            shown.append(f"{name} {metric_text(name, value)}")
    return f"epoch {epoch:>3}/{epochs}  {'  '.join(shown)}"


def result(state: TrainState, task: Task, expected: dict[str, float]) -> dict[str, Any]:
    """What came of a run, each number under the name of the split it comes from.

    `last`: the last epoch (the headline). `best`: the epoch chosen on val, None without one. `peak`: the maximum over
    the epochs on test, the paper's convention, which chooses nothing.

    Args:
        state: at the end.
        task: names the headline, the metric that chooses, and the axis labels of all metrics.
        expected: closed-form drop per group over the last epoch.
    """
    return {
        "last": state.last,
        "best": state.best,
        "peak": state.peak,
        "task": task.name,
        "headline": task.headline,
        "metric_labels": task.labels,
        "tables": state.tables,
        "drop_last_epoch": {
            group: {"measured": dropped(state.last_drops[group]), "expected": share}
            for group, share in expected.items()
        },
        "steps": state.step,
        "skipped_steps": state.skipped,
        "train_seconds": state.seconds,
        "images_per_s": state.images / max(state.seconds, 1e-9),
    }


def dropped(kept_and_seen: list[int]) -> float:
    """The share of units that were dropped."""
    kept, seen = kept_and_seen
    return 1.0 - kept / seen if seen else 0.0
