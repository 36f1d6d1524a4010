"""Numbers that go wrong stop the run before they reach weights, curves or checkpoints, and can be looked at again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from engine import loop
from engine.checkpoint import load
from engine.guard import MAX_SKIPS_IN_A_ROW, Guard, NonFinite, all_finite, refuse_metrics
from engine.loop import MASKS
from engine.run_directory import RunDirectory
from engine.seeding import mix
from engine.tasks.classification import Classification, ClassificationEvaluator

Train = Callable[..., int]
WORDS = ("checkpoint_every=2", "batch_size=48", "recipe.ema_decay=0.9")


def run_in(root: Path) -> RunDirectory:
    (path,) = root.glob("fake-resnet18/*/seed-1")
    return RunDirectory(path)


def multiply_loss(monkeypatch: pytest.MonkeyPatch, at: Callable[[int], bool], factor: float = float("nan")) -> None:
    """The loss of some training steps is multiplied by this."""
    loss, calls = Classification.loss, [0]

    def patched(self: Classification, model: nn.Module, batch: Any) -> Any:
        value, weight, sums = loss(self, model, batch)
        calls[0] += 1
        return (value * factor if at(calls[0] - 1) else value), weight, sums

    monkeypatch.setattr(Classification, "loss", patched)


@pytest.mark.parametrize("step", [0, 3, pytest.param(8, marks=pytest.mark.slow)])
def test_a_loss_that_is_no_number_never_reaches_the_weights(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step: int
) -> None:
    multiply_loss(monkeypatch, lambda t: t == step)
    assert train(*WORDS) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: the loss")
    assert f"step {step} (lr 0." in line
    run = run_in(tmp_path)
    kept = load(run.path / "nonfinite.pt")
    assert kept["step"] == step
    assert f"samples {', '.join(map(str, kept['batch']['indices'][:8].tolist()))} and 40 more" in line
    assert run.status()["status"] == "FAILED"
    assert all_finite(kept["model"].values())
    if step:
        last = load(run.checkpoints / "last.pt")
        assert last["step"] == step - step % 2
        assert all_finite(last["model"].values())
    assert all(line["train/loss"] == line["train/loss"] for line in run.metrics() if "train/loss" in line)


def test_what_is_kept_leads_to_the_same_loss_again(train: Train, tmp_path: Path) -> None:
    """Weights that grow without bound: nothing is patched, and what is kept is enough to see it again."""
    from configs.checking import load_yaml
    from configs.plan import plan_from
    from engine.distributed import Ranks
    from engine.signals import StopRequest
    from experiment.build import build_fit, open_data

    assert train("lr=1e20", "recipe.warmup_epochs=0", *WORDS) == 1
    run = run_in(tmp_path)
    plan, kept = plan_from(load_yaml(run.path / "plan.yaml")), load(run.path / "nonfinite.pt")
    data = open_data(plan, torch.device("cpu"), Ranks())
    fit, layers = build_fit(plan, data, run, torch.device("cpu"), Ranks(), StopRequest())
    fit.state.load_state_dict(kept)
    layers.set_progress(kept["step"] / (2 * len(data.train)))
    layers.set_seeds(lambda i: mix(plan.seed, MASKS, kept["rank"], kept["step"], kept["micro"], i))
    fit.network.train()
    batch = next(iter(data.train.epoch(0, kept["step"])))
    assert torch.equal(batch.images, kept["batch"]["images"])
    loss, *_ = fit.task.loss(fit.network, batch)
    assert not torch.isfinite(loss)


def test_a_gradient_that_is_no_number_never_reaches_the_weights(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check = Guard.gradients

    def patched(guard: Guard, batch: Any) -> None:
        if guard.state.step == 4:
            next(guard.state.model.parameters()).grad[0, 0, 0, 0] = float("inf")  # type: ignore[index]
        check(guard, batch)

    monkeypatch.setattr(Guard, "gradients", patched)
    assert train(*WORDS) == 1
    line = capsys.readouterr().err
    assert "gradient" in line
    assert "step 4" in line
    assert all_finite(load(run_in(tmp_path).checkpoints / "last.pt")["model"].values())


def test_on_a_device_that_is_not_waited_for_it_is_noticed_before_anything_is_written(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    multiply_loss(monkeypatch, lambda t: t == 4)
    original = Guard.__init__

    def patched(self: Guard, *args: Any) -> None:
        original(self, *args)
        self.at_once = False  # as on a GPU

    monkeypatch.setattr(Guard, "__init__", patched)
    assert train(*WORDS) == 1
    line = capsys.readouterr().err
    assert "step 4 (lr" in line
    run = run_in(tmp_path)
    last = load(run.checkpoints / "last.pt")
    assert last["step"] == 4
    assert all_finite(last["model"].values())


def test_invalid_weights_are_never_written(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = loop.Fit.step

    def patched(fit: loop.Fit, *args: Any) -> None:
        step(fit, *args)
        if fit.state.step == 4:
            fit.state.model.get_buffer("bn1.running_var")[0] = float("inf")

    monkeypatch.setattr(loop.Fit, "step", patched)
    assert train(*WORDS) == 1
    assert "step 4" in capsys.readouterr().err
    assert load(run_in(tmp_path).checkpoints / "last.pt")["step"] == 2


def test_a_metric_that_is_no_number_is_an_error(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ClassificationEvaluator, "metrics", lambda *_: {"loss": float("nan"), "top1": 1.0, "top5": 1.0})
    assert train(*WORDS) == 1
    assert "val/loss is nan" in capsys.readouterr().err
    assert not any("val/loss" in line for line in run_in(tmp_path).metrics())
    with pytest.raises(NonFinite, match="x is inf"):
        refuse_metrics({"x": float("inf")})


def test_gradients_that_overflow_in_float16_are_skipped_and_counted(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The scaled gradients of the steps 2 and 3 leave the range of float32; the loss itself is finite.
    multiply_loss(monkeypatch, lambda t: t in (2, 3), factor=1e36)
    assert train("recipe.precision=float16", *WORDS) == 0
    run = run_in(tmp_path)
    assert run.summary()["skipped_steps"] == 2
    state = load(run.checkpoints / "last.pt")
    assert state["scaler"]["scale"] == 2.0**14
    assert state["skipped_in_a_row"] == 0
    assert all_finite(state["model"].values())
    assert state["step"] == 12


def test_too_many_overflows_in_a_row_end_the_run(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    multiply_loss(monkeypatch, lambda t: t >= 2, factor=1e36)
    assert train("recipe.precision=float16", "batch_size=16", "lr=1e-9", "checkpoint_every=9") == 1
    assert f"{MAX_SKIPS_IN_A_ROW + 1} steps in a row" in capsys.readouterr().err
    assert all_finite(load(run_in(tmp_path).checkpoints / "last.pt")["model"].values())


def test_all_finite() -> None:
    assert all_finite([])
    assert all_finite([torch.ones(3), torch.tensor(2), torch.empty(0)])
    assert all_finite([torch.full((9,), 3e38)])  # its square would overflow
    for bad in ("nan", "inf", "-inf"):
        assert not all_finite([torch.ones(2), torch.tensor([1.0, float(bad)])])
