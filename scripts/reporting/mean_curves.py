"""The rows of a sweep for TensorBoard: one folder a row with the mean over its seeds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from configs.plan import shortened
from scripts.reporting.sweep import Row, Sweep


def write_mean_curves(sweep: Sweep, out: Path) -> Path:
    """Write `out`/tensorboard/ROW for every row, all metrics that its runs have logged; returns that folder.

    At optimizer steps, as the runs have them, so both can be laid over each other. What stood there before is removed.
    """
    from torch.utils.tensorboard import SummaryWriter

    place = out / "tensorboard"
    for earlier in place.glob("*/events.out.tfevents.*"):
        earlier.unlink()
    for row in sweep.rows:
        folder = place / shortened(re.sub(r"[^\w.+=-]+", "_", sweep.label(row)))
        with SummaryWriter(str(folder)) as writer:
            for name in sorted({key for point in row.runs[0].folder.metrics() for key in point} - {"step", "epoch"}):
                for step, values in zip(*common([run.curve(name, by="step") for run in row.runs]), strict=True):
                    writer.add_scalar(name, float(np.mean(values)), int(step))
    return place


def common_curve(row: Row, name: str, by_epoch: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(epochs of shape (points,), values of shape (points, runs)) where all runs of a row have a value.

    Args:
        row: its runs.
        name: of a logged metric.
        by_epoch: of training, the mean over each epoch's samples instead of every point.
    """
    return common([run.epoch_means(name) if by_epoch else run.curve(name) for run in row.runs])


def common(curves: Sequence[dict[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """(places of shape (points,), values of shape (points, curves)) where all curves have a value."""
    places = sorted(set.intersection(*(set(curve) for curve in curves)))
    return np.array(places), np.array([[curve[place] for curve in curves] for place in places])
