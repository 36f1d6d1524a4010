"""A network of one's own: layers as its children, sites that it declares, and what goes wrong there without a word."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dropblock import (
    DropBlock2d,
    KeepProbSchedule,
    LayerControl,
    LayerSpec,
    Place,
    Site,
    drops_text,
    install,
    install_into,
    install_layers,
    keep_prob_at,
    suggest,
    table_text,
)

EXAMPLE = torch.zeros(1, 3, 16, 16)


class Own(nn.Module):
    """A layer of this library as a child, called twice with maps of two sizes, and one that a number places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.drop = DropBlock2d(block_size=5)
        self.late = DropBlock2d(block_size=3)
        self.late.group = 3

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.conv(x))
        return self.late(self.drop(nn.functional.max_pool2d(x, 2)))


class Declared(nn.Module):
    """A network that declares a site."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.site = nn.Conv2d(3, 8, 3), Site(3, "conv", "conv")

    def forward(self, x: Tensor) -> Tensor:
        return self.site(self.conv(x))


def test_a_layer_that_is_a_child_has_its_row_the_whole_rate_and_its_counts() -> None:
    model = Own()
    schedule = KeepProbSchedule(model, 0.8, "constant", group_divisor=4.0)
    layers = LayerControl(model, EXAMPLE, {"dropblock": schedule})
    rows = {row.site: row for row in layers.table}
    assert (rows["drop"].group, rows["drop"].keep_prob, rows["late"].keep_prob) == ("own", 0.8, pytest.approx(0.95))
    assert rows["drop"].map_sizes == [(8, 16, 16), (8, 8, 8)]
    assert "own    -       drop   1      DropBlock2d  8x16x16 8x8" in table_text(layers.table)
    torch.manual_seed(0)
    model.train()(torch.randn(512, 3, 16, 16))
    (late, own) = layers.drops([0.0])
    assert (late.group, own.group, own.units) == ("group3", "own", 512 * 8 * (256 + 64))
    # 4,096 channels; what one of them drops varies by less than 0.2: 4.5 standard errors, false alarm 7e-6 each.
    for row in (late, own):
        assert row.measured is not None
        assert abs(row.measured - row.expected) < 4.5 * 0.2 / 4096**0.5
    assert own.asked == pytest.approx(0.2)
    assert "own" in drops_text([own])


def test_two_sizes_of_map_have_masks_of_their_own_where_a_seed_fixes_them() -> None:
    layer = DropBlock2d(block_size=1, keep_prob=0.5).train()
    layer.set_mask_seed(3)
    large, small = layer(torch.ones(1, 4, 8, 8)) > 0, layer(torch.ones(1, 4, 8, 4)) > 0
    assert torch.equal(layer(torch.ones(1, 4, 8, 8)) > 0, large)  # a checkpointed pass is run twice
    assert not torch.equal(large.flatten()[:128], small.flatten())


def test_a_configuration_does_not_install_beside_layers_of_the_networks_own() -> None:
    spec = LayerSpec("dropblock", keep_prob=0.9, groups=(3,), options={"block_size": 3})
    with pytest.raises(ValueError, match="Own has a DropBlock2d of its own at drop: let it declare a site there"):
        LayerControl.install(Own(), [spec], EXAMPLE)
    with pytest.raises(ValueError, match="group_divisor must be at least 1, not 0"):
        KeepProbSchedule(Own(), 0.9, group_divisor=0)


def test_sites_of_ones_own_need_neither_patterns_nor_a_choice() -> None:
    for installed in (install, install_into):
        model = Declared()
        assert list(installed(model, lambda site: DropBlock2d(block_size=3))) == ["site"]
        assert model.site.layer is not None
        assert model.site.layer.group == 3


def test_a_schedule_has_set_its_start_and_only_known_groups_are_divided() -> None:
    model = Declared()
    install_into(model, lambda site: DropBlock2d(block_size=3))
    KeepProbSchedule(model, 0.8)
    assert model.site.layer is not None
    assert float(model.site.layer.keep_prob) == 1.0
    assert KeepProbSchedule(model, 0.8, last_group=3, group_divisor=4.0).set(1.0) == 0.8
    model.site.layer.group = 5
    with pytest.raises(ValueError, match="group 5 comes after last_group=3"):
        KeepProbSchedule(model, 0.8, group_divisor=4.0)
    with pytest.raises(ValueError, match="groups are counted from 1, so there is no group 0"):
        Place("conv", group=0)


def test_what_would_measure_nothing_is_refused() -> None:
    model = Declared()
    install_into(model, lambda site: DropBlock2d(block_size=3))
    old = KeepProbSchedule(model, 0.8)
    with pytest.raises(ValueError, match="it holds none"):
        LayerControl(model, EXAMPLE, {"dropblock": old}).drops([])
    install_into(model, lambda site: DropBlock2d(block_size=3))
    with pytest.raises(ValueError, match="make the schedule after the last installation"):
        LayerControl(model, EXAMPLE, {"dropblock": old})

    class InTrainingOnly(Own):
        def forward(self, x: Tensor) -> Tensor:
            return self.late(self.drop(self.conv(x))) if self.training else self.conv(x)

    idle = InTrainingOnly()
    with pytest.raises(ValueError, match="the layer drop is not called in a pass in evaluation mode"):
        LayerControl(idle, EXAMPLE, {"dropblock": KeepProbSchedule(idle, 0.9)})


class TwoSites(Declared):
    """With a second site, of the last group."""

    def __init__(self) -> None:
        super().__init__()
        self.last = Site(4, "conv", "conv")

    def forward(self, x: Tensor) -> Tensor:
        return self.last(super().forward(x))


def test_one_layer_for_two_sites_is_refused() -> None:
    model, one = TwoSites(), DropBlock2d(block_size=3)
    with pytest.raises(ValueError, match="returned one layer for site and last: make a new one"):
        install_into(model, lambda site: one)
    assert model.site.layer is None  # nothing is left half done
    install_into(model, lambda site: one, sites=lambda site: site.group == 3)
    install_into(model, lambda site: one, sites=lambda site: site.group == 3)  # the same again
    with pytest.raises(ValueError, match="returned one layer for site and last"):
        install(model, lambda site: one, lambda site: site.group == 4)


def test_what_is_no_layer_no_factory_and_no_dict_is_named() -> None:
    model = Declared()
    with pytest.raises(TypeError, match=r"layer_factory must be a function .*, not a DropBlock2d"):
        install_into(model, DropBlock2d(block_size=3))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="layer_factory must return a layer, not None"):
        install_into(model, lambda site: None)  # type: ignore[arg-type, return-value]
    install_into(model, lambda site: DropBlock2d(block_size=3))
    with pytest.raises(TypeError, match=r"keep_prob must be a number in \[0, 1\], not \[0.9, 0.8\]"):
        KeepProbSchedule(model, [0.9, 0.8])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"schedules must be a dict .*, not a KeepProbSchedule"):
        LayerControl(model, EXAMPLE, KeepProbSchedule(model, 0.9))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: install_into(Declared, DropBlock2d), "model must be an nn.Module, not the class Declared"),
        (lambda: KeepProbSchedule(Declared().parameters(), 0.9), "model must be an nn.Module, not a generator"),
        (lambda: suggest(EXAMPLE, Declared()), "model must be an nn.Module, not a Tensor"),
        (lambda: LayerControl(Declared, EXAMPLE, {}), "model must be an nn.Module, not the class Declared"),
        (lambda: Place(3), r"modules must be a pattern of module paths such as 'layer4.\*.bn3', not 3"),
        (lambda: Place("conv", group="3"), "group must be 1 ... 4 or 'head', not '3'"),
        (lambda: keep_prob_at("0.9", 0.5), r"target must be a number in \[0, 1\], not '0.9'"),
        (lambda: keep_prob_at(0.9, "half"), r"progress must be a number in \[0, 1\], not 'half'"),
        (lambda: KeepProbSchedule(Own(), 0.9, layers=3), "layers must be a list of layers, not 3"),
        (
            lambda: install_layers(Declared(), "dropblock", keep_prob=0.9, groups=4, block_size=3),
            "groups must be a list",
        ),
        (
            lambda: install_into(Declared(), DropBlock2d),
            "a function that makes a layer, `lambda site: ...`, not DropBlock",
        ),
        (lambda: suggest(Declared(), (1, 3, 16, 16)), "example must be a tensor, or a tuple of them"),
        (lambda: Own().drop.set_mask_seed("a"), "seed must be an integer, not 'a'"),
        (lambda: Own().drop.set_mask_seed(0.5), "seed must be an integer, not 0.5"),
    ],
)
def test_a_wrong_type_is_named_with_its_argument(call: Callable[[], object], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Place("conv", branch="main"), "branch must be 'conv' or 'skip', not 'main'"),
        (
            lambda: suggest(Declared(), torch.zeros(1, 4, 16, 16)),
            "Declared does not run on the example of shape .1, 4, ",
        ),
        (lambda: LayerControl(Own(), (EXAMPLE, EXAMPLE), {"a": KeepProbSchedule(Own(), 0.9)}), "Own does not run on"),
        (
            lambda: install_layers(Declared(), "dropblock", keep_prob=0.9, groups=["3"], block_size=3),
            r"groups=\['3'\]: ",
        ),
        (lambda: install_layers(nn.ReLU(), "dropout", keep_prob=0.9), r"ReLU declares no sites: call declare_sites"),
        (lambda: KeepProbSchedule(Own(), 0.9, "ramp", schedule_end=0.5, total_steps=9), "schedule_end is a step where"),
    ],
)
def test_a_wrong_value_is_named_with_its_argument(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_an_error_of_a_network_without_a_text_is_named() -> None:
    class Unfinished(Declared):
        def forward(self, x: Tensor) -> Tensor:
            raise NotImplementedError

    with pytest.raises(ValueError, match=r"Unfinished does not run on the example of .*: NotImplementedError"):
        suggest(Unfinished(), EXAMPLE)


def test_the_last_group_is_that_of_the_network() -> None:
    """A divisor counts from it: a small U-Net has groups 1 and 2, and its layers were to drop a sixteenth."""
    model = Declared()
    model.site.group = 2
    install_into(model, lambda site: DropBlock2d(block_size=3))
    schedule = KeepProbSchedule(model, 0.9, "constant", group_divisor=4.0)
    assert schedule.last_group == 2
    assert float(schedule.layers[0].keep_prob) == pytest.approx(0.9)


def test_a_schedule_that_is_never_set_warns_where_the_drop_is_read() -> None:
    model = Declared()
    install_into(model, lambda site: DropBlock2d(block_size=3))
    schedule = KeepProbSchedule(model, 0.9)
    layers = LayerControl(model, EXAMPLE, {"dropblock": schedule})
    layers.drops()  # nothing ran
    model.train()(EXAMPLE)
    with pytest.warns(UserWarning, match="keep_prob is still 1, that of the first step: call schedule.set"):
        layers.drops()
    schedule.set(0.5)
    model(EXAMPLE)
    layers.drops()
    with pytest.warns(UserWarning, match="are replaced"):
        install_into(model, lambda site: DropBlock2d(block_size=3))
    with pytest.raises(ValueError, match="are no longer in the network"):
        layers.drops()


def test_a_child_that_is_called_twice_on_maps_of_one_size_is_noted() -> None:
    class Twice(Own):
        def forward(self, x: Tensor) -> Tensor:
            return self.late(self.drop(self.drop(self.conv(x))))

    class Numbered(Own):
        def forward(self, x: Tensor) -> Tensor:
            return self.late(self.drop(self.drop(self.conv(x)), level=1))

    note = "drop is called more than once on maps of one size, with one mask: number the calls, drop(x, level)"
    for model, noted in ((Twice(), True), (Own(), False), (Numbered(), False)):
        layers = LayerControl(model, EXAMPLE, {"dropblock": KeepProbSchedule(model, 0.9)})
        assert (note in table_text(layers.table)) == noted
    model.drop.set_mask_seed(1)
    model.drop.keep_prob.fill_(0.5)
    ones = torch.ones(1, 8, 4, 4)
    assert torch.equal(model.drop(ones), model.drop(ones, 0))
    assert not torch.equal(model.drop(ones), model.drop(ones, 1))


def test_a_network_of_two_inputs_is_measured_with_a_tuple() -> None:
    class Two(Own):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x + y)

    model = Two()
    layers = LayerControl(model, (EXAMPLE, EXAMPLE), {"dropblock": KeepProbSchedule(model, 0.9)})
    assert [row.site for row in layers.table] == ["drop", "late"]
