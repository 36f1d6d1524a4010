"""What a plan says reaches the loop, the learning rate, the averaged weights and the auxiliary loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from configs.compose import plan_of
from configs.groups import named
from engine.distributed import Ranks
from engine.optim import LearningRate
from engine.run_directory import RunDirectory
from engine.signals import StopRequest
from experiment.build import build_fit, open_data
from tests.engine.test_task_conformance import CPU


def test_the_warm_up_starts_at_a_share_of_the_recipes_rate() -> None:
    recipe = named("recipe", "coco_scratch_150")
    assert LearningRate(recipe, 100).at(0) == pytest.approx(0.1 * recipe.lr)


def test_a_run_has_the_average_and_the_auxiliary_loss_of_its_plan(tmp_path: Path) -> None:
    words = ("data=fake", "model=amoebanet_b", "model.width=4", "model.options.cells=1", "device=cpu")
    plan = plan_of(*words, "recipe.ema_decay=0.99", "recipe.ema_warmup=true")
    data = open_data(plan, CPU, Ranks())
    fit, _ = build_fit(plan, data, RunDirectory(tmp_path), CPU, Ranks(), StopRequest())
    assert fit.task.aux_weight == fit.state.model.aux_weight > 0
    weight, average = next(fit.state.model.parameters()), next(fit.state.evaluated.parameters())
    for value in (0.0, 1.0):
        weight.data.fill_(value)
        fit.state.update_average()
    assert average.mean().item() == pytest.approx(1 - 2 / 11)  # a constant decay would leave 0.01
