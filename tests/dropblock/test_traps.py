"""Mistakes that went on without a word, or with an error that named nothing of the user's."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import dropblock
from dropblock import DropBlock2d, KeepProbSchedule, LayerControl, Place, Site, install_into

EXAMPLE = torch.zeros(1, 3, 16, 16)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), Site(3, "conv", "conv"), nn.MaxPool2d(2), Site(4, "conv", "pool"))


def block3(site: Site) -> DropBlock2d:
    return DropBlock2d(block_size=3)


def test_a_second_installation_warns_and_the_schedule_of_the_first_says_so() -> None:
    model = network()
    first = install_into(model, block3)
    layers = [site.layer for site in first.values()]
    schedule = KeepProbSchedule(model, 0.5)
    with pytest.warns(UserWarning, match="Sequential had layers at 2 of these sites, which are replaced"):
        install_into(model, block3)
    with pytest.raises(ValueError, match="2 of 2 layers of this schedule are no longer in the network"):
        schedule.set(1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        KeepProbSchedule(model, 0.5).set(1.0)
        install_into(network(), block3)
    # Put back, the layers of the first schedule are in the network again.
    again = iter(layers)
    with pytest.warns(UserWarning, match="replaced"):
        install_into(model, lambda site: next(again))  # type: ignore[arg-type, return-value]
    assert schedule.set(1.0) == 0.5


def test_steps_are_counted_by_step_as_by_set() -> None:
    by_set, by_step = (KeepProbSchedule(network_with_layers(), 0.8, total_steps=4) for _ in range(2))
    values = [by_set.set(step) for step in range(5)]
    assert [by_step.now, *(by_step.step() for _ in range(4))] == values == pytest.approx([1, 0.95, 0.9, 0.85, 0.8])
    with pytest.raises(ValueError, match=r"the step must lie in \[0, 4\], not 5"):
        by_step.step()
    by_step.set(2)  # a resumed run
    assert by_step.step() == values[3]
    assert float(by_step.layers[0].keep_prob) == pytest.approx(values[3])
    few_shot = KeepProbSchedule(network_with_layers(), 0.9, lambda step: max(1 - 0.1 * step / 2, 0.9))
    assert [few_shot.step() for _ in range(3)] == pytest.approx([0.95, 0.9, 0.9])
    with pytest.raises(ValueError, match="total_steps="):
        KeepProbSchedule(network_with_layers(), 0.8).step()


def network_with_layers() -> nn.Module:
    model = network()
    install_into(model, block3)
    return model


def test_drops_without_an_argument_knows_what_was_set() -> None:
    def asked(layers: LayerControl, progress: list[float] | None = None) -> list[float]:
        return [number for row in layers.drops(progress) for number in (row.asked, row.expected)]

    model = network_with_layers()
    schedule = KeepProbSchedule(model, 0.6, total_steps=8, group_divisor=4.0)
    layers = LayerControl(model, EXAMPLE, {"dropblock": schedule})
    assert layers.drops()[1].asked == 0.0, "nothing was set: what is in force"
    for _ in range(4):  # without `set`, as a loop has it that counts no steps
        schedule.step()
    assert asked(layers) == asked(layers, [0, 1, 2, 3])
    for step in range(4):
        schedule.set(step)
    assert asked(layers) == asked(layers, [0, 1, 2, 3])
    for step in (4, 5):
        schedule.set(step)
    layers.take_counts()  # which starts anew
    for step in (6, 7):
        schedule.set(step)
    assert asked(layers) == asked(layers, [6, 7])
    # `step` after each optimizer step: the value of the step to come is not counted yet, and none is counted twice.
    schedule.set(0)
    for _ in range(3):
        schedule.step()
    assert asked(layers) == asked(layers, [0, 1, 2])
    schedule.step()
    assert asked(layers) == asked(layers, [3])
    with pytest.raises(TypeError, match=r"progress must be a list .*, not 1.0"):
        layers.drops(1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda schedule: schedule.set("0.5"), "progress"),
        (lambda schedule: schedule.set(None), "progress"),
        (lambda schedule: KeepProbSchedule(schedule.model, 0.9, 3), "schedule"),
        (lambda schedule: KeepProbSchedule(schedule.model, 0.9, total_steps="10"), "total_steps"),
        (lambda schedule: KeepProbSchedule(schedule.model, 0.9, group_divisor="4"), "group_divisor"),
        (lambda schedule: KeepProbSchedule(schedule.model, 0.9, "late", schedule_start="0.5"), "schedule_start"),
        (lambda schedule: KeepProbSchedule(schedule.model, 0.9, group_shares=0.5), "group_shares"),
        (lambda schedule: LayerControl(schedule.model, EXAMPLE, {"dropblock": 0.9}), "schedules"),
        (lambda schedule: dropblock.suggest(schedule.model, [EXAMPLE]), "example"),
        (lambda schedule: dropblock.ShakeDrop(alpha=0.5), "alpha"),
        (lambda schedule: DropBlock2d().set_image_seeds(1, [1, 2]), "images"),
        (lambda schedule: install_into(schedule.model, block3, Place("0")), "places"),
        (lambda schedule: install_into(schedule.model, block3, ["0"]), "places"),
        (lambda schedule: install_into(schedule.model, block3, sites=[3, 4]), "sites"),
    ],
)
def test_an_error_of_type_names_the_argument(call: Callable[[Any], object], named: str) -> None:
    schedule: Any = KeepProbSchedule(model := network_with_layers(), 0.9)
    schedule.model = model
    with pytest.raises(TypeError, match=f"^{named} must be"):
        call(schedule)


def test_steps_where_a_share_is_meant_point_to_total_steps() -> None:
    with pytest.raises(ValueError, match="total_steps="):
        KeepProbSchedule(network_with_layers(), 0.9).set(10)


@pytest.mark.parametrize(
    "name",
    ["DropBlock1d", "DropBlock2d", "DropBlock3d", "Dropout", "SpatialDropout", "DropPath", "StochasticDepth",
     "DropConnect", "ShakeDrop"],
)  # fmt: skip
def test_an_unknown_keyword_names_the_public_class(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name}\.__init__\(\) got an unexpected keyword argument 'inplace'"):
        getattr(dropblock, name)(inplace=True)


@pytest.mark.parametrize("name", ["drop_block1d", "drop_block2d", "drop_block3d", "drop_together", "FractalDropPath"])
def test_an_unknown_keyword_names_the_public_function(name: str) -> None:
    more = {"together": "unit"} if name == "drop_together" else {}
    of = f"{name}.__init__" if name == "FractalDropPath" else name
    with pytest.raises(TypeError, match=rf"^{of}\(\) got an unexpected keyword argument 'inplace'"):
        getattr(dropblock, name)([[1, 2]], **more, inplace=True)


def test_dir_shows_what_is_public() -> None:
    shown = {name for name in dir(dropblock) if not name.startswith("_")}
    assert shown == {*dropblock.__all__, "compat"}
