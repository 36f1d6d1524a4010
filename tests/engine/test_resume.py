"""A run that was stopped and resumed ends in exactly the state of the run that was not: tolerance 0."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint import load
from engine.loop import Fit
from engine.run_directory import RunDirectory
from tests.comparison import assert_same, curves
from tests.last_of_each import last_of_each

WORDS = (
    "regularizer=[dropblock,manifold_mixup]",
    "regularizer.manifold_mixup.together=image",
    "block_size=3",
    "recipe.ema_decay=0.9",
    "recipe.accumulate=2",
    "recipe.augment.flip=true",
    "batch_size=96",
)
PER_EPOCH = 288 // 96


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """As if SIGTERM had come during that step of this process."""
    step, done = Fit.step, [0]

    def patched(self: Fit, *args: Any) -> None:
        step(self, *args)
        done[0] += 1
        if done[0] == steps:
            self.stop.received = signal.SIGTERM

    monkeypatch.setattr(Fit, "step", patched)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, small_run: tuple[str, ...]) -> RunDirectory:
    from train import main

    root = tmp_path_factory.mktemp("uninterrupted")
    assert main(last_of_each(*small_run, *WORDS, f"output_root={root}")) == 0
    (path,) = root.glob("fake-resnet18/*/seed-1")
    return RunDirectory(path)


@pytest.mark.parametrize(
    "steps",
    [2, PER_EPOCH, *(pytest.param(steps, marks=pytest.mark.slow) for steps in (1, PER_EPOCH + 1, 2 * PER_EPOCH - 1))],
)
def test_stopped_once(
    train: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: RunDirectory,
    steps: int,
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        assert train(*WORDS) == 143
    (path,) = tmp_path.glob("fake-resnet18/*/seed-1")
    run = RunDirectory(path)
    assert run.status()["status"] == "STOPPED"
    assert load(run.checkpoints / "last.pt")["step"] == steps
    assert train(*WORDS) == 0
    for name in ("last.pt", "best.pt"):
        assert_same(load(run.checkpoints / name), load(uninterrupted.checkpoints / name))
    assert curves(run) == curves(uninterrupted)
    for key in ("last", "best", "peak", "drop_last_epoch"):
        assert run.summary()[key] == uninterrupted.summary()[key]


def test_the_record_names_every_place_a_run_has_been_through(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, commit in enumerate("aabc"):
        there = {"commit": commit, "dirty": False, "date": str(number)}
        with monkeypatch.context() as patch:
            patch.setattr("experiment.run.environment", lambda device, there=there: dict(there))
            if number < 3:
                stop_after(patch, 1)
            assert train("batch_size=96") == (143 if number < 3 else 0)
    (path,) = tmp_path.glob("fake-resnet18/*/seed-1")
    summary = RunDirectory(path).summary()
    assert [(e["commit"], e["from_step"]) for e in summary["environments"]] == [("a", 0), ("b", 2), ("c", 3)]
    assert summary["environment"]["commit"] == "c"


def test_a_signal_after_the_last_step_stops_no_run_that_is_done(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    end = Fit._end_epoch

    def signalled(self: Fit) -> None:
        end(self)
        if self.state.epochs_done == self.recipe.epochs:
            self.stop.received = signal.SIGTERM

    with monkeypatch.context() as patch:
        patch.setattr(Fit, "_end_epoch", signalled)
        assert train("-m", "seed=1,2", "batch_size=96") == 143
    printed = capsys.readouterr()
    assert "the run is done" in printed.err
    assert "goes on from there" not in printed.err
    assert "1 run done, 1 not" in printed.out  # the second was not begun
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        assert train("seed=3", "batch_size=96", "fresh=true") == 143
    assert "the same command without fresh=true goes on from there" in capsys.readouterr().err


def test_stopped_after_every_step(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: RunDirectory
) -> None:
    codes = []
    while not codes or codes[-1] == 143:
        with monkeypatch.context() as patch:
            stop_after(patch, 1)
            codes.append(train(*WORDS))
    # The last one came with the last step: the evaluation was left to the start after it.
    assert codes == [143] * 2 * PER_EPOCH + [0]
    (path,) = tmp_path.glob("fake-resnet18/*/seed-1")
    assert_same(load(path / "checkpoints" / "last.pt"), load(uninterrupted.checkpoints / "last.pt"))
    assert curves(RunDirectory(path)) == curves(uninterrupted)


def test_an_evaluation_that_a_kill_undid_is_logged_once(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: RunDirectory
) -> None:
    def die(self: Fit) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        stop_after(patch, PER_EPOCH)
        assert train(*WORDS) == 143  # in the evaluation at the latest, the epoch not ended
    with monkeypatch.context() as patch:
        patch.setattr(Fit, "_save", die)  # the evaluation is written, its checkpoint is not
        assert train(*WORDS) == 1
    assert train(*WORDS) == 0
    (path,) = tmp_path.glob("fake-resnet18/*/seed-1")
    assert curves(RunDirectory(path)) == curves(uninterrupted)


def test_a_damaged_checkpoint_costs_the_work_since_the_one_before(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: RunDirectory
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, PER_EPOCH + 2)
        assert train(*WORDS) == 143
    (path,) = tmp_path.glob("fake-resnet18/*/seed-1")
    whole = (path / "checkpoints" / "last.pt").read_bytes()
    (path / "checkpoints" / "last.pt").write_bytes(whole[:-100] + bytes(100))
    with pytest.warns(UserWarning, match=r"last\.pt"):
        assert train(*WORDS) == 0
    assert_same(load(path / "checkpoints" / "last.pt"), load(uninterrupted.checkpoints / "last.pt"))
    assert curves(RunDirectory(path)) == curves(uninterrupted)
