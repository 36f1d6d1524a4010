"""The rows of a sweep for TensorBoard: one folder a row with the mean over its seeds."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from scripts.reporting.sweep import Row, Sweep


def write_mean_curves(sweep: Sweep, out: Path) -> Path:
    """Write `out`/tensorboard/ROW for every row, all metrics that its runs have logged; returns that folder.

    A step of TensorBoard is an epoch, times 1,000 where a value lies within one. What stood there before is removed.
    """
    from torch.utils.tensorboard import SummaryWriter

    place = out / "tensorboard"
    for earlier in place.glob("*/events.out.tfevents.*"):
        earlier.unlink()
    for row in sweep.rows:
        folder = place / re.sub(r"[^\w.+=-]+", "_", sweep.label(row))
        with SummaryWriter(str(folder)) as writer:
            for name in sorted({key for point in row.runs[0].folder.metrics() for key in point} - {"step", "epoch"}):
                for epoch, values in zip(*common_curve(row, name), strict=True):
                    writer.add_scalar(name, float(np.mean(values)), round(1000 * epoch))
    return place


def common_curve(row: Row, name: str, by_epoch: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(epochs of shape (points,), values of shape (points, runs)) where all runs of a row have a value.

    Args:
        row: its runs.
        name: of a logged metric.
        by_epoch: the mean over each epoch instead of every point.
    """
    found = []
    for run in row.runs:
        gathered: dict[float, list[float]] = {}
        for epoch, value in run.curve(name).items():
            gathered.setdefault(float(np.ceil(epoch)) if by_epoch else epoch, []).append(value)
        found.append({epoch: float(np.mean(values)) for epoch, values in gathered.items()})
    epochs = sorted(set.intersection(*(set(curve) for curve in found)))
    return np.array(epochs), np.array([[curve[epoch] for curve in found] for epoch in epochs])
