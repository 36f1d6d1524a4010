"""Notes on a run that need its data: an average of the weights that is too slow for the number of steps."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from configs.schema import RecipeConfig
from engine.state import TrainState
from experiment.run import notes_on_average


def held(recipe: RecipeConfig, steps: int) -> float:
    """Share of the first weights in the average after this many steps: they are 1, all later ones 0."""
    state = TrainState(nn.Linear(1, 1), recipe)
    for step in range(steps):
        with torch.no_grad():
            state.model.weight.fill_(float(step == 0))
        state.update_average()
        state.step += 1
    return state.evaluated.weight.item()


@pytest.mark.parametrize("steps", [7, 30, 135])
def test_an_average_that_is_too_slow_has_a_note_whose_advice_ends_it(steps: int) -> None:
    slow = RecipeConfig("test", ema_decay=0.9999)
    (note,) = notes_on_average(slow, steps)
    assert f" {100 * held(slow, steps):.0f} %" in note
    advised = replace(slow, ema_decay=float(re.search(r"recipe\.ema_decay=([\d.]+) fits", note)[1]))
    assert notes_on_average(advised, steps) == []
    assert held(advised, steps) < 0.05
    assert held(replace(slow, ema_warmup=True), steps) < 0.05


def test_an_average_that_fits_and_none_have_no_note() -> None:
    assert notes_on_average(RecipeConfig("test"), 10) == []
    assert notes_on_average(RecipeConfig("test", ema_decay=0.97), 100) == []  # .97^99 = 0.0490
    assert notes_on_average(RecipeConfig("test", ema_decay=0.97), 99)  # .97^98 = 0.0505
    assert notes_on_average(RecipeConfig("test", ema_decay=0.9999, ema_warmup=True), 10) == []
    (note,) = notes_on_average(RecipeConfig("test", ema_decay=0.9), 3)
    assert "recipe.ema_decay=null" in note
