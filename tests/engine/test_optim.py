"""The learning rate as a function of the step, and what weight decay touches."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from configs.schema import RecipeConfig
from engine.optim import LearningRate, build_optimizer, decay_groups


def rate(lr: float, lr_schedule: str, epochs: int, steps_per_epoch: int, **more: Any) -> LearningRate:
    return LearningRate(RecipeConfig("test", epochs=epochs, lr=lr, lr_schedule=lr_schedule, **more), steps_per_epoch)


def recipe(optimizer: str, **values: Any) -> RecipeConfig:
    return RecipeConfig("test", optimizer=optimizer, **values)


def test_step_schedule_of_the_paper() -> None:
    lr = rate(0.4, "step", 270, 10, warmup_epochs=5, milestones=[125, 200, 250])
    assert lr.at(0) < lr.at(25) < lr.at(49) < 0.4
    for epoch, expected in (
        (5, 0.4),
        (124.9, 0.4),
        (125, 0.04),
        (199.9, 0.04),
        (200, 0.004),
        (250, 0.0004),
        (269, 0.0004),
    ):
        assert lr.at(round(epoch * 10)) == pytest.approx(expected)


def test_cosine_falls_from_the_peak_to_nearly_nothing() -> None:
    lr = rate(0.1, "cosine", 10, 100, warmup_epochs=1)
    rates = [lr.at(step) for step in range(1000)]
    assert max(rates) == rates[100] == pytest.approx(0.1)
    assert all(later < earlier for earlier, later in pairwise(rates[100:]))
    assert rates[-1] < 1e-6


def test_constant_and_unknown() -> None:
    assert rate(0.1, "constant", 10, 1).at(9) == 0.1
    with pytest.raises(ValueError, match="lr_schedule 'linear'"):
        rate(0.1, "linear", 10, 1).at(0)


def test_weight_decay_spares_normalization_only() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    decayed, exempt = build_optimizer(
        recipe("sgd", lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4), model
    ).param_groups
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (1e-4, 0.0)
    assert {id(p) for p in exempt["params"]} == {id(p) for p in model[1].parameters()}
    assert len(decayed["params"]) == 4
    assert decayed["nesterov"]


def test_one_step_is_torchs_sgd_with_the_decay_of_the_half_square() -> None:
    model = nn.Linear(3, 1, bias=False)
    weight = model.weight.detach().clone()
    optimizer = build_optimizer(recipe("sgd", lr=0.5, momentum=0.0, nesterov=True, weight_decay=0.1), model)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(model.weight.detach(), weight - 0.5 * (torch.ones(1, 3) + 0.1 * weight))


def test_halving_is_the_fractalnet_rule() -> None:
    lr = rate(0.02, "halving", 400, 1, lr_decay=0.1)
    for epoch, drops in ((0, 0), (199, 0), (200, 1), (299, 1), (300, 2), (350, 3), (375, 4)):
        assert lr.at(epoch) == pytest.approx(0.02 * 0.1**drops)


def test_exponential_decays_every_so_many_epochs() -> None:
    lr = rate(1.0, "exponential", 100, 10, lr_decay=0.97, decay_epochs=2.4)
    assert [lr.at(step) for step in (0, 23, 24, 48)] == pytest.approx([1, 1, 0.97, 0.97**2])


def test_rmsprop_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    optimizer = build_optimizer(recipe("rmsprop", lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.0), model)
    weight, mean, buffer = model.weight.item(), 1.0, 0.0
    for gradient in (3.0, -1.0, 2.0):
        model.weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient**2
        buffer = 0.9 * buffer + 0.1 * gradient / (mean + 1.0) ** 0.5
        weight -= buffer
    assert model.weight.item() == pytest.approx(weight, rel=1e-5)


def test_warm_up_from_a_given_rate() -> None:
    lr = rate(0.08, "constant", 10, 10, warmup_epochs=1, warmup_from=0.1)
    assert [lr.at(step) for step in (0, 5, 10, 11)] == pytest.approx([0.008, 0.044, 0.08, 0.08])
    from_nothing = rate(0.08, "constant", 10, 10, warmup_epochs=1)
    assert from_nothing.at(0) == pytest.approx(0.08 / 11)


def test_one_step_of_adamw_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    weight = model.weight.item()
    optimizer = build_optimizer(recipe("adamw", lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.5), model)
    model.weight.grad = torch.tensor([[-3.0]])
    optimizer.step()
    # The bias-corrected first step is the sign of the gradient; the decay does not pass through the moments.
    assert model.weight.item() == pytest.approx(weight * (1 - 0.1 * 0.5) + 0.1, rel=1e-5)
    with pytest.raises(ValueError, match="optimizer 'adam'"):
        build_optimizer(recipe("adam", lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.0), model)


def test_exponential_decay_counts_from_the_first_step() -> None:
    lr = rate(1.0, "exponential", 100, 10, warmup_epochs=2, lr_decay=0.97, decay_epochs=2.4)
    assert [lr.at(step) for step in (20, 23, 24, 48)] == pytest.approx([1, 1, 0.97, 0.97**2])


def test_weight_decay_spares_every_kind_of_normalization() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.BatchNorm1d(4))
    _, exempt = decay_groups(model, 0.1)
    assert [id(p) for p in exempt["params"]] == [id(p) for layer in model[1:] for p in layer.parameters()]
