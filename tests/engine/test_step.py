"""What one optimizer step does (micro-batches, seeds, average, scale of float16), and what a log entry covers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.distributed import Ranks
from engine.evaluation import evaluate
from engine.loop import Fit
from engine.state import TrainState
from tests.comparison import assert_same
from tests.engine.test_loop import PLAIN_DESCENT, moved_by_a_step
from tests.engine.test_state import state
from tests.engine.test_task_conformance import CASES, CPU, NoLayers, fit, network


def test_micro_batches_count_by_their_size(tmp_path: Path) -> None:
    case = CASES["classification"]()
    moved = moved_by_a_step(tmp_path, None, 3)
    model, batch = network(case).train(), next(case.loader(4).epoch(0))
    parts = batch.split(3)
    assert [part.size for part in parts] == [2, 1, 1]
    for part in parts:
        (case.task().loss(model, part)[0] * part.size / 4).backward()
    torch.testing.assert_close(moved, -torch.cat([p.grad.flatten() for p in model.parameters()]))


def test_every_micro_batch_has_seeds_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks, device = [], []

    class Recording(NoLayers):
        def set_seeds(self, seed_of: Callable[[int], int]) -> None:
            masks.append(seed_of(0))

    monkeypatch.setattr("engine.loop.seed_device", lambda seed, _: device.append(seed))
    replace(fit(CASES["classification"](), tmp_path, accumulate=2), layers=Recording()).run()
    assert len(set(masks)) == len(set(device)) == 6 * 2


def test_batch_regularizers_act_in_order_on_every_micro_batch_with_seeds_of_their_own(tmp_path: Path) -> None:
    def run_twice_as_bright(place: Path) -> tuple[Fit, list[tuple[int, int]]]:
        seeds: list[tuple[int, int]] = []

        def first(batch: Any, draws: Callable[..., int]) -> Any:
            seeds.append((draws(0), draws(1)))
            return replace(batch, images=batch.images + 1)

        def second(batch: Any, draws: Callable[..., int]) -> Any:
            seeds.append((draws(0), draws(1)))
            return replace(batch, images=batch.images * 2)

        run = replace(fit(CASES["classification"](), place, accumulate=2), batch_regularizers=[first, second])
        run.run()
        return run, seeds

    run, seeds = run_twice_as_bright(tmp_path / "1")
    again, same = run_twice_as_bright(tmp_path / "2")
    assert seeds == same
    assert len({seed for pair in seeds for seed in pair}) == 6 * 2 * 2 * 2
    assert_same(run.state.state_dict(), again.state.state_dict())

    # Another rank draws other numbers for its part of the batch.
    drawn: list[int] = []

    def drawing(batch: Any, draws: Callable[..., int]) -> Any:
        drawn.append(draws(0))
        return batch

    for rank in (0, 1):
        one = replace(fit(CASES["classification"](), tmp_path / f"rank{rank}"), batch_regularizers=[drawing])
        replace(one, ranks=Ranks(rank)).step(next(one.data.train.epoch(0)), 0.0)
    assert drawn[0] == seeds[0][0]
    assert drawn[0] != drawn[1]

    by_hand = fit(CASES["classification"](), tmp_path / "3", accumulate=2)
    samples = by_hand.data.train.samples
    by_hand.data.train.samples = replace(samples, images=(samples.images + 1) * 2)
    by_hand.run()
    assert_same(run.state.model.state_dict(), by_hand.state.model.state_dict())


def test_averaged_weights_are_those_after_the_step(tmp_path: Path) -> None:
    run = fit(CASES["classification"](), tmp_path)
    before = run.state.model.layers[0].weight.detach().clone()
    run.step(next(run.data.train.epoch(0)), 0.0)  # the first update of an average copies
    after, average = run.state.model.layers[0].weight, run.state.evaluated.layers[0].weight
    assert torch.equal(average, after)
    assert not torch.equal(average, before)


def test_gradients_are_clipped_without_the_scale_of_float16(tmp_path: Path) -> None:
    run = fit(CASES["classification"](), tmp_path)
    recipe = replace(run.recipe, precision="float16", ema_decay=None, grad_clip=0.01, **PLAIN_DESCENT)
    recipe = replace(recipe, momentum=0.0, weight_decay=0.0)
    scaled = TrainState(run.state.model, recipe)
    run = replace(run, state=scaled, recipe=replace(recipe, precision="float32"))
    before = [p.detach().clone() for p in scaled.model.parameters()]
    run.step(next(run.data.train.epoch(0)), 0.0)
    moved = torch.cat([(p - b).detach().flatten() for p, b in zip(scaled.model.parameters(), before, strict=True)])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_a_resumed_run_has_the_scale_of_float16() -> None:
    run, again = state(precision="float16"), state(precision="float16")
    run.scaler.scale(torch.ones(()))  # makes the scale
    run.scaler.update(1024.0)
    again.load_state_dict(run.state_dict())
    assert again.scaler.state_dict()["scale"] == 1024.0


def test_of_equal_epochs_the_first_is_kept() -> None:
    run = state()
    values = {"test/top1": 50.0, "val/top1": 60.0}
    assert [run.end_epoch(values, "top1") for _ in range(2)] == [True, False]
    assert (run.best["epoch"], run.peak["epoch"], run.last["epoch"]) == (1, 1, 2)


def test_best_and_peak_follow_the_direction_of_the_headline() -> None:
    """Of a run that is chosen by a metric of which less is better."""
    run = state()
    losses = {"val": (0.9, 0.5, 0.7), "test": (0.8, 0.6, 0.4)}
    better = []
    for epoch in range(3):
        values = {f"{split}/loss": of[epoch] for split, of in losses.items()}
        better.append(run.end_epoch(values, "loss", higher_is_better=False))
    assert better == [True, True, False]
    assert (run.best["epoch"], run.peak["epoch"], run.last["epoch"]) == (2, 3, 3)


def test_a_log_entry_covers_the_steps_of_its_window(tmp_path: Path) -> None:
    seen = []

    class Recording(NoLayers):
        def keep_probs(self, progress: Sequence[float]) -> dict[str, float]:
            seen.append(list(progress))
            return {}

    replace(fit(CASES["classification"](), tmp_path), layers=Recording()).run()
    assert seen == [[0, 1 / 6], [2 / 6], [3 / 6], [4 / 6, 5 / 6]]


def test_an_evaluation_has_the_precision_of_training() -> None:
    case, seen = CASES["classification"](), []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((x.mean((2, 3)) @ torch.eye(3)).dtype)
            return torch.zeros(len(x), 3)

    for precision in ("float32", "bfloat16"):
        evaluate(case.task(), Spy(), case.loader(12), Ranks(), CPU, precision)
    assert seen == [torch.float32, torch.bfloat16]
