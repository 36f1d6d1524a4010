"""The callbacks against the calls that Lightning's and Hugging Face's trainers make, in their order.

`make test-integrations` runs them in the trainers themselves: tests/integrations.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dropblock import DropBlock2d, Dropout, installed_layers

EXAMPLE = torch.zeros(1, 3, 64, 64)
STEPS, ACCUMULATED = 8, 2


class Unit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


class Model(nn.Module):
    """As a LightningModule has it: the network is a child. Its maps have 4 pixels a side, so it is group 3."""

    def __init__(self, *more: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 8, 16, 16), Unit(), *more, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.logged: list[dict[str, float]] = []

    def log_dict(self, values: dict[str, float], sync_dist: bool) -> None:
        self.logged.append(values)


@pytest.fixture(params=["lightning.pytorch", "pytorch_lightning"])
def lightning(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(sys.modules, "lightning", None)  # not installed
    if request.param == "lightning.pytorch":
        monkeypatch.setitem(sys.modules, "lightning", ModuleType("lightning"))
    return imported(monkeypatch, "lightning", request.param, "Callback")


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> Any:
    return imported(monkeypatch, "transformers", "transformers", "TrainerCallback")


def imported(monkeypatch: pytest.MonkeyPatch, name: str, library: str, base: str) -> Any:
    """The callback's class, its module imported anew beside a library that has the base class alone."""
    there = ModuleType(library)
    setattr(there, base, type(base, (), {}))
    monkeypatch.setitem(sys.modules, library, there)
    monkeypatch.delitem(sys.modules, f"dropblock.integrations.{name}", raising=False)
    module = importlib.import_module(f"dropblock.integrations.{name}")
    monkeypatch.delitem(sys.modules, f"dropblock.integrations.{name}", raising=False)
    return module.DropBlockCallback


def batch_of(model: Model, seen: dict[Any, Tensor], key: Any) -> None:
    """One training pass: the mask of the layer under `key`, and its keep_prob."""
    (layer,) = installed_layers(model)
    handle = layer.register_forward_hook(lambda _m, _i, y: seen.update({key: y.detach() != 0}))
    model.net.train()(torch.ones(64, 3, 64, 64))
    handle.remove()


def fit(callback: Any, model: Model, start: int = 0, rank: int = 0) -> dict[Any, Tensor]:
    """Lightning's calls for steps `start` ... 7, each of two batches."""
    masks: dict[Any, Tensor] = {}
    trainer = SimpleNamespace(
        global_step=start, global_rank=rank, world_size=1, log_every_n_steps=4, estimated_stepping_batches=STEPS
    )
    callback.setup(trainer, model, "fit")
    callback.on_train_start(trainer, model)
    for batch in range(start * ACCUMULATED, STEPS * ACCUMULATED):
        callback.on_train_batch_start(trainer, model, None, batch)
        (layer,) = installed_layers(model)
        assert float(layer.keep_prob) == pytest.approx(1 - 0.5 * (batch // ACCUMULATED) / STEPS)
        batch_of(model, masks, batch)
        trainer.global_step = (batch + 1) // ACCUMULATED
        callback.on_train_batch_end(trainer, model, None, None, batch)
    return masks


def test_lightnings_steps_set_the_schedule_and_its_logger_gets_the_drop(lightning: Any) -> None:
    model, callback = Model(), lightning(EXAMPLE, 0.5, 2, network="net")
    masks = fit(callback, model)
    assert [row.site for row in callback.layers.table] == ["1.conv.site_after"]
    assert len(model.logged) == 2  # after steps 4 and 8
    for values, steps in zip(model.logged, (range(4), range(4, 8)), strict=True):
        assert values["drop/asked/group3"] == pytest.approx(sum(0.5 * step / STEPS for step in steps) / 4)
        assert 0 < values["drop/expected/group3"] < values["drop/asked/group3"]
        # 4096 maps of a standard deviation below .25: 5 sigma = .02, false alarm 6e-7.
        assert values["drop/measured/group3"] == pytest.approx(values["drop/expected/group3"], abs=0.02)
        assert values["keep_prob/target"] == pytest.approx(1 - 0.5 * steps[-1] / STEPS)
    assert not torch.equal(masks[14], masks[15]), "the batches of one step have masks of their own"

    # A second fit of the same model keeps the layers; a resumed run has the masks of the one that was not stopped.
    layers = installed_layers(model)
    again = fit(callback, model, start=4)
    assert installed_layers(model) == layers
    resumed = fit(lightning(EXAMPLE, 0.5, 2, network="net"), other := Model(), start=4)
    for batch in range(8, 16):
        assert torch.equal(resumed[batch], masks[batch])
        assert torch.equal(again[batch], masks[batch])
    other_rank = fit(lightning(EXAMPLE, 0.5, 2, network="net"), Model(), start=4, rank=1)
    assert not torch.equal(other_rank[15], masks[15])
    # What DistributedDataParallel would else send from rank 0 to all, batch after batch.
    names = {name for name, _ in other.named_buffers()}
    assert len(names) == 5
    assert set(other._ddp_params_and_buffers_to_ignore) == names


def test_layers_that_are_there_stay_and_a_run_without_an_end_is_refused(lightning: Any) -> None:
    model = Model(Dropout(keep_prob=0.8))
    callback = lightning(EXAMPLE, 0.8, network="net", schedule="constant")
    callback.install(model)
    assert [type(layer) for layer in installed_layers(model)] == [Dropout]
    with pytest.warns(UserWarning, match="without block_size and sites"):
        lightning(EXAMPLE, 0.8, 3, network="net", sites=lambda site: True).install(model)
    callback.before_batch(0, 10, 0, 0)
    for steps in (-1, float("inf")):
        with pytest.raises(ValueError, match="give the trainer max_steps"):
            callback.before_batch(0, steps, 0, 0)


def test_hugging_faces_reporters_get_the_drop_with_the_loss(transformers: Any) -> None:
    model, reported = Model(), list[dict[str, float]]()
    reporter = SimpleNamespace(on_log=lambda args, state, control, logs: reported.append(dict(logs)))
    trainer = SimpleNamespace(model=model, callback_handler=SimpleNamespace(callbacks=[reporter]))
    callback = transformers(EXAMPLE, 0.5, 2, network="net").attach(trainer)
    assert any(isinstance(layer, DropBlock2d) for layer in installed_layers(model))

    masks: dict[Any, Tensor] = {}
    args, state = SimpleNamespace(process_index=0), SimpleNamespace(global_step=0, max_steps=STEPS, log_history=[])
    callback.on_train_begin(args, state, None, model=model)
    for step in range(STEPS):
        callback.on_step_begin(args, state, None)
        batch_of(model, masks, (step, 0))
        callback.on_substep_end(args, state, None)
        batch_of(model, masks, (step, 1))
        state.global_step += 1
    state.log_history.append({"loss": 1.0})
    for logs in ({"loss": 1.0}, {"eval_loss": 1.0}):
        for each in trainer.callback_handler.callbacks:
            each.on_log(args, state, None, logs=logs)
    assert reported[0]["drop/asked/group3"] == pytest.approx(sum(0.5 * step / STEPS for step in range(STEPS)) / STEPS)
    assert reported[0] == state.log_history[0]
    assert reported[1] == {"eval_loss": 1.0}
    assert not torch.equal(masks[7, 0], masks[7, 1])

    with pytest.raises(ValueError, match="model_init"):
        callback.on_train_begin(args, state, None, model=Model())
    with pytest.raises(ValueError, match="attach"):
        transformers(EXAMPLE).on_init_end(args, state, None, model=model)
