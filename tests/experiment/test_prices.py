"""Prices: the arithmetic, and the answer through the entry script, which leaves nothing behind."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from configs.command_line import read_arguments
from experiment import prices
from experiment.prices import Cost, cost_class

Train = Callable[..., int]

COST = Cost(
    step=0.2,
    loading=0.05,
    overlap=False,
    evaluation=0.001,
    steps_per_epoch=100,
    eval_images=1_000,
    batch=32,
    memory=0,
    last=10,
    best=4,
)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps of a kind will do here."""
    monkeypatch.setattr(prices, "SECONDS", 0.05)


def test_seconds_add_up_training_and_evaluation() -> None:
    image = 0.001 + 0.05 / 32
    assert COST.seconds(epochs=5, eval_every=2) == pytest.approx(5 * 100 * 0.25 + 3 * 1_000 * image)
    assert COST.seconds(5, 2, done=0.75) == pytest.approx(COST.seconds(5, 2) / 4)
    short = replace(COST, start=3.0, saving=0.5)
    assert short.seconds(5, 2) == pytest.approx(COST.seconds(5, 2) + 3.0 + 5 * 0.5)
    assert short.seconds(5, 2, done=1.0) == 0.0
    assert COST.disk == 24


def test_what_overlaps_costs_the_slower_of_the_two() -> None:
    beside = replace(COST, overlap=True)
    assert beside.step_and_batch == 0.2
    assert replace(beside, loading=0.5).step_and_batch == 0.5


@pytest.mark.parametrize(
    ("words", "expected"),
    [(["estimate=true"], True), (["seed=1", "estimate=True"], True), (["estimate=false"], False), (["seed=1"], False)],
)
def test_who_asks_for_prices(words: list[str], expected: bool) -> None:
    assert read_arguments(words).asks_for("estimate") is expected


def test_a_single_run_is_priced_and_leaves_nothing(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("regularizer=dropblock", "estimate=true") == 0
    printed = capsys.readouterr().out
    for column in ("images/s", "memory, GB", "dropblock-b7-kp0.9", "1 of 1 runs"):
        assert column in printed
    assert list(tmp_path.iterdir()) == []


def test_a_grid_names_duplicates_ignored_knobs_what_is_done_and_what_is_refused(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("regularizer=none", "epochs=1") == 0
    files = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    words = ("-m", "regularizer=none,dropblock", "block_size=3,7", "seed=1,2", "epochs=1", "estimate=true")
    assert train(*words) == 0
    printed = capsys.readouterr().out
    assert len(re.findall("^timing", printed, re.MULTILINE)) == 3  # kinds, not runs
    assert printed.count("2 jobs meet in") == 2
    assert "block_size=3,7 does not apply to regularizer=none (4 jobs)" in printed
    assert re.search(r" DONE +100% ", printed)
    assert "5 of 6 runs are not done" in printed
    assert sorted(tmp_path.rglob("*")) == files

    assert train("-m", "groups=[9],[4]", "lr=-1,0.1", "estimate=true") == 2
    printed = capsys.readouterr().out
    assert printed.startswith("refused: lr=-1.0: must be above 0 (2 jobs)\n")
    assert printed.count("lr=-1") == 1
    assert "omit estimate=true" not in printed
    assert "cannot be run: dropblock-b7-kp0.9" in printed
    assert "1 of 1 runs are not done" in printed
    assert sorted(tmp_path.rglob("*")) == files


def test_evaluations_are_priced_until_they_are_made(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    def priced(*more: str) -> bool:
        capsys.readouterr()
        assert train("regularizer=none", "epochs=1", *more, "estimate=true") == 0
        return "of these, evaluations" in capsys.readouterr().out

    assert not priced()
    assert priced("evaluations=[temperature]")
    assert train("regularizer=none", "epochs=1", "evaluations=[temperature]") == 0
    assert not priced("evaluations=[temperature]")
    assert not priced("evaluations=[temperature]", "pilot=true", "fresh=true")  # which only chooses on val
    assert priced("evaluations=[temperature,'corruption=jpeg']")  # of a run that is done, without the second


def test_a_step_that_takes_long_is_announced(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prices, "SECONDS", 0.0)
    assert train("regularizer=none", "epochs=1", "estimate=true") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  a step of 32 images")]
    assert "timing this kind about" in line


def test_what_stops_every_run_is_said_at_once_and_once(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ("-m", "regularizer=dropblock,cutout", "seed=1,2", "estimate=true")
    assert train(*grid, "data=folder", f"data.root={tmp_path / 'no'}") == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    assert "no folder" in printed.err
    assert train("-m", "regularizer=dropblock,dropout", "keep_prob=90", "estimate=true") == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("keep_prob=90")) == ("", 1)


def test_a_sweep_is_priced(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("+sweep=fig5_inference", "estimate=true", "epochs=1") == 0
    assert "3 of 3 runs are not done" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_runs_at_a_time_are_priced(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("-m", "seed=1,2,3,4", "jobs=2", "estimate=true") == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    (row,) = [" ".join(cells) for cells in rows if cells[0].strip() == "jobs=2"]
    assert "2 runs at a time here" in row
    assert re.search(r"\d+ cores? each", row)


def test_more_steps_may_be_timed_than_the_run_has(train: Train) -> None:
    assert train("lr_schedule=halving", "epochs=1", "batch_size=144", "estimate=true") == 0


class Waves:
    """A loader whose workers bring a batch each, all at the same time: `seconds` later by the clock `now`."""

    def __init__(self, workers: int, seconds: float, now: list[float]) -> None:
        self.workers, self.seconds, self.now = workers, seconds, now

    def epoch(self, _: int) -> Iterator[int]:
        for batch in range(200):
            if batch % self.workers == 0:
                self.now[0] += self.seconds
            yield batch


def test_loading_is_timed_over_whole_waves_of_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(prices, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    for workers in (3, 12):
        _, spent = prices.time_loading(Waves(workers, 0.12, now), 0.2, torch.device("cpu"))
        assert spent == pytest.approx(0.12 / workers)


def test_length_and_rates_make_no_kind_of_their_own() -> None:
    from configs.plan import Plan
    from configs.schema import DataConfig, MethodConfig, ModelConfig, RecipeConfig

    plan = Plan(ModelConfig("resnet18", 4, "small"), DataConfig("fake"), RecipeConfig("quick"), ["none"])
    smoothed = [MethodConfig("label_smoothing", "loss", {"label_smoothing": 0.1})]
    longer = replace(plan, seed=7, methods=smoothed, recipe=replace(plan.recipe, epochs=9, lr=0.3))
    assert cost_class(plan) == cost_class(longer)
    assert cost_class(plan) != cost_class(replace(plan, recipe=replace(plan.recipe, batch_size=64)))
    assert cost_class(plan) != cost_class(replace(plan, methods=[MethodConfig("cutout", "image", {"cutout": 0.5})]))
