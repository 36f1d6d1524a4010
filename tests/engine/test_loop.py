"""The loop's own switches: clipped gradients, evaluations every few epochs, a compiled network."""

from __future__ import annotations

import functools
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from dropblock import LayerControl, LayerSpec, Site
from engine.checkpoint import load
from engine.distributed import Ranks, wrap
from engine.guard import NonFinite
from engine.loop import Fit
from engine.run_directory import RunDirectory
from engine.signals import Stopped
from tests.comparison import assert_same
from tests.engine.test_task_conformance import CASES, CPU, Case, fit, network

PLAIN_DESCENT: dict[str, Any] = {"lr": 1.0, "lr_schedule": "constant", "warmup_epochs": 0.0}


def moved_by_a_step(place: Path, grad_clip: float | None, accumulate: int) -> torch.Tensor:
    """How far plain gradient descent goes in one step at a learning rate of 1."""
    run = fit(CASES["classification"](), place, accumulate)
    run = replace(run, recipe=replace(run.recipe, grad_clip=grad_clip, **PLAIN_DESCENT))
    for group in run.state.optimizer.param_groups:
        group |= {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    before = [p.detach().clone() for p in run.state.model.parameters()]
    run.step(next(run.data.train.epoch(0)), 0.0)
    return torch.cat([(p - b).detach().flatten() for p, b in zip(run.state.model.parameters(), before, strict=True)])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_are_clipped_to_their_common_norm(tmp_path: Path, accumulate: int) -> None:
    free, loose, clipped = (moved_by_a_step(tmp_path, limit, accumulate) for limit in (None, 1e3, 0.01))
    assert free.norm() > 0.1
    assert torch.equal(loose, free)
    torch.testing.assert_close(clipped, free * (0.01 / free.norm()))


def test_evaluations_every_second_epoch_and_after_the_last_also_across_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_in(name: str) -> Fit:
        run = fit(CASES["classification"](), tmp_path / name)
        return replace(run, recipe=replace(run.recipe, epochs=5, eval_every=2))

    whole, step = run_in("whole"), Fit.step
    whole.run()
    for stop in (2, 7, 13):  # within the first, third and fifth epoch: the last evaluation is 0, 1 and 1 epochs ago

        def stopped(self: Fit, *arguments: Any, stop: int = stop) -> None:
            step(self, *arguments)
            if self.state.step == stop:
                self.stop.received = signal.SIGTERM

        part = run_in("cut")
        if stop > 2:
            part.state.load_state_dict(load(tmp_path / "cut" / "checkpoints" / "last.pt"))
        with monkeypatch.context() as patch:
            patch.setattr(Fit, "step", stopped)
            with pytest.raises(Stopped):
                part.run()
    last = run_in("cut")
    last.state.load_state_dict(load(tmp_path / "cut" / "checkpoints" / "last.pt"))
    last.run()
    evaluated = {name: [e["step"] for e in metrics(tmp_path / name) if "test/top1" in e] for name in ("whole", "cut")}
    assert evaluated == {"whole": [6, 12, 15], "cut": [6, 12, 15]}
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert_same(last.state.state_dict(), whole.state.state_dict())
    assert last.result()["last"]["epoch"] == 5


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [{**line, "time/images_per_s": 0} for line in RunDirectory(folder).metrics()]


def with_a_site(case: Case) -> nn.Module:
    model = network(case)
    model.layers.insert(3, Site(4, "conv", "relu"))
    model.last_group = 4  # type: ignore[assignment]
    return model


def compiled_fit(case: Case, place: Path, compiled: bool) -> Fit:
    """Two epochs with DropBlock, compiled or not.

    By a backend that traces forward and backward as the default one does, without its C++ compiler.
    """
    run = fit(case, place)
    spec = LayerSpec("dropblock", keep_prob=0.7, groups=[4], schedule="constant", options={"block_size": 2})
    layers = LayerControl.install(run.state.model, [spec], torch.zeros(1, 3, 32, 32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
        return replace(run, layers=layers, network=wrap(run.state.model, Ranks(), CPU, compiled))


@pytest.mark.parametrize("name", list(CASES))
def test_a_compiled_run_has_the_losses_and_masks_of_an_eager_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(fit.__globals__, "network", with_a_site)
    torch._dynamo.reset()
    found = []
    for compiled in (False, True):
        counters.clear()
        run = compiled_fit(CASES[name](), tmp_path / str(compiled), compiled)
        run.run()
        assert (counters["stats"]["unique_graphs"] > 0) == compiled
        found.append(metrics(tmp_path / str(compiled)))
    for eager, compiled_line in zip(*found, strict=True):
        assert compiled_line == pytest.approx(eager, rel=1e-4)
    measured = [[line["drop/measured/group4"] for line in run if "lr" in line] for run in found]
    assert measured[0] == measured[1]  # the same masks to the last unit
    assert max(measured[0]) > 0.2
    torch._dynamo.reset()


def test_weights_that_are_no_numbers_are_never_the_best(tmp_path: Path) -> None:
    """A detector with them finds nothing: an AP of 0, which is a number."""
    run = fit(CASES["detection"](), tmp_path)
    run.bar = SimpleNamespace(evaluating=lambda: None, write=lambda _: None)  # type: ignore[assignment]
    run.writer = SimpleNamespace(add=lambda *_: None, add_images=lambda *_: None)  # type: ignore[assignment]
    with torch.no_grad():
        next(run.state.model.parameters()).fill_(float("nan"))
    with pytest.raises(NonFinite):
        run._end_epoch()
    assert not [*run.directory.checkpoints.glob("*.pt")]


def test_a_run_is_compiled_whatever_was_compiled_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch counts the networks of one class together, and beyond its limit it runs them uncompiled."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    with torch._dynamo.config.patch(recompile_limit=1):
        for width in (2, 3, 4):
            counters.clear()
            wrap(nn.Sequential(nn.Linear(2, width), nn.Linear(width, width)), Ranks(), CPU, True)(torch.ones(1, 2))
            assert counters["stats"]["unique_graphs"] == 1
    torch.compiler.reset()
