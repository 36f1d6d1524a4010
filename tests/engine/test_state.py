"""The training state: earlier formats, other ranks, averaged weights; and the lock of a run that was killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from configs.schema import RecipeConfig
from engine.distributed import Ranks
from engine.run_directory import RunDirectory
from engine.state import TrainState, share_of


def state(**options: Any) -> TrainState:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    return TrainState(model, RecipeConfig("test", weight_decay=0.0, **options))


def test_a_state_of_the_first_format_is_read() -> None:
    """It had no number, the images stood last in the sums of a window, and progress was added up."""
    new = state()
    new.step, new.epochs_done, new.best = 7, 1, {"epoch": 1, "val/top1": 50.0}
    saved = new.state_dict()
    del saved["format"], saved["window"], saved["tables"]
    saved |= {"windows": [torch.tensor([3.0, 2.0, 8.0], dtype=torch.float64)], "window_steps": 3, "window_seconds": 1.5}
    saved |= {"window_drops": {"group4": [90, 100]}, "window_progress": 0.4, "epoch_progress": 0.4}
    saved |= {"last_progress": 0.5, "rng": {}}
    again = state()
    again.load_state_dict(saved)
    assert (again.step, again.best, again.tables) == (7, new.best, [])
    window = again.window
    assert (window.start, window.images, window.seconds, window.drops) == (4, 8, 1.5, {"group4": [90, 100]})
    assert window.sums is not None
    assert window.sums.tolist() == [3.0, 2.0]


def test_a_later_format_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="format 99"):
        state().load_state_dict({**state().state_dict(), "format": 99})


def test_the_sums_of_other_ranks_go_to_the_first() -> None:
    parts = [{"sums": torch.tensor([float(n), 1.0]), "images": 4 + n} for n in range(3)]
    assert share_of(parts, Ranks(1, 3))[1] == 5
    total, images = share_of(parts, Ranks(0, 2))
    assert (total.tolist(), images) == ([3.0, 3.0], 15)  # type: ignore[union-attr]
    nothing, images = share_of(parts, Ranks(1, 2))
    assert (nothing.tolist(), images) == ([0.0, 0.0], 0)  # type: ignore[union-attr]
    assert share_of([{"sums": None, "images": 0}], Ranks(0, 2)) == (None, 0)


def test_averaged_weights_warm_up_as_tensorflow_does() -> None:
    warm = state(ema_decay=0.99, ema_warmup=True)
    weight, average = warm.model[0].weight, None
    for step in range(5):
        with torch.no_grad():
            weight.fill_(float(step))
        assert warm.ema is not None
        warm.update_average()
        decay = min(0.99, (1 + step + 1) / (10 + step + 1))
        average = float(step) if average is None else decay * average + (1 - decay) * step
        warm.step += 1
        assert warm.evaluated[0].weight[0, 0].item() == pytest.approx(average)
    assert average > 1.9  # where a constant decay of 0.99 would stand at 0.1


def test_counters_and_seeds_are_copied_and_not_averaged() -> None:
    run = state(ema_decay=0.5)
    assert run.ema is not None
    counter, average = run.model[1].num_batches_tracked, run.evaluated[1].num_batches_tracked
    for seen in (2**62 + 1, 7, 8):
        counter.fill_(seen)
        run.update_average()
        assert int(average) == seen


def test_a_window_adds_up_sums_and_images() -> None:
    run = state()
    run.window.add(torch.ones(2), 4)
    run.window.add(torch.ones(2), 3)
    assert (run.window.images, run.window.sums.tolist()) == (7, [2.0, 2.0])  # type: ignore[union-attr]


def test_a_forked_process_does_not_keep_the_lock_of_a_run_that_was_killed(tmp_path: Path) -> None:
    import os
    import signal

    reader, writer = os.pipe()
    run = os.fork()
    if not run:  # the run: it takes the lock, forks a loader worker and is killed; the worker lives on
        lock = RunDirectory(tmp_path).lock()
        worker = os.fork()
        if not worker:
            os.write(writer, f"{os.getpid()}\n".encode())
            signal.pause()
        signal.pause()
        lock.close()
    worker = int(os.read(reader, 100))
    try:
        assert RunDirectory(tmp_path).in_use()
        os.kill(run, signal.SIGKILL)
        os.waitpid(run, 0)
        RunDirectory(tmp_path).lock().close()
    finally:
        os.kill(worker, signal.SIGKILL)
