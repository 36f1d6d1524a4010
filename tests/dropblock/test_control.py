"""Layers asked for by specification: where they go, what they keep, and what they should drop."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dropblock import (
    LAYERS,
    DropBlock1d,
    DropBlock2d,
    KeepProbSchedule,
    LayerControl,
    LayerSpec,
    Site,
    SiteRow,
    drops_text,
    expected_drop,
    install,
    install_layers,
    table_text,
)
from dropblock.baselines import Dropout
from dropblock.kinds import Kind, on_maps
from dropblock.sites import depths


class Unit(nn.Module):
    """A residual unit with two sites on its conv branch and one on its shortcut."""

    def __init__(self, group: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.site1 = Site(group, "conv", "conv")
        self.site2 = Site(group, "conv", "end", ends_branch=True)
        self.site_skip = Site(group, "skip", "identity", ends_branch=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.site2(self.site1(self.conv(x))) + self.site_skip(x))


class Detector(nn.Module):
    """Four units in groups 3 and 4, and a head that meets its one site at three levels."""

    last_group = 4

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Unit(3), Unit(3), nn.MaxPool2d(2), Unit(4), Unit(4))
        self.head = nn.Conv2d(4, 4, 1)
        self.head_site = Site("head", "conv", "conv of the head")

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = [self.body(x)]
        levels += [nn.functional.max_pool2d(levels[0], 2), nn.functional.max_pool2d(levels[0], 4)]
        return [self.head_site(self.head(level)) for level in levels]


EXAMPLE = torch.zeros(1, 4, 32, 32)
DROPBLOCK = {"block_size": 5}


def control(*specs: LayerSpec, model: nn.Module | None = None) -> LayerControl:
    return LayerControl.install(Detector() if model is None else model, specs, EXAMPLE)


def rows(layers: LayerControl) -> dict[str, SiteRow]:
    return {row.site: row for row in layers.table}


def test_a_head_has_a_share_of_its_own_and_is_met_at_every_level() -> None:
    spec = LayerSpec(
        "dropblock",
        0.8,
        groups=[3, 4, "head"],
        group_divisor=4.0,
        head_share=0.5,
        schedule="constant",
        options=DROPBLOCK,
    )
    model = Detector()
    layers = control(spec, model=model)
    table = rows(layers)
    assert table["body.0.site1"].keep_prob == pytest.approx(0.95)
    assert table["body.3.site2"].keep_prob == 0.8
    head = table["head_site"]
    assert (head.group, head.keep_prob) == ("head", pytest.approx(0.9))
    assert head.map_sizes == [(4, 16, 16), (4, 8, 8), (4, 4, 4)]
    assert (head.block, head.clamped) == ((5, 5), False)
    text = table_text(layers.table)
    assert "4x16x16 8x8 4x4" in text
    assert table_text(layers.table, len(text.splitlines()[0]) + 9) == text
    narrow = table_text(layers.table, 90).splitlines()
    assert max(map(len, narrow)) <= 90
    assert narrow[0].split()[3:] == ["sites", "map", "block", "keep_prob", "gamma", "drop"]

    layers.set_progress(0.0)
    layers.set_seeds(lambda i: 100 + i)
    torch.manual_seed(0)
    model.train()(torch.randn(256, 4, 32, 32))
    measured, expected = layers.take_counts(), layers.expected_drop([0.0])
    assert set(measured) == {"group3", "group4", "head"} == set(expected)
    kept, seen = measured["head"]
    assert seen == 256 * 4 * (256 + 64 + 16)
    # 1,024 channels; the share that one of them drops over its three levels varies by less than 0.13 here: 4.5 standard
    # errors of the mean, false alarm 7e-6.
    assert abs(1 - kept / seen - expected["head"]) < 4.5 * 0.13 / 1024**0.5
    assert head.expected_drop == expected["head"]


def test_expected_drop_and_keep_prob_are_means_over_the_steps() -> None:
    early = LayerSpec("dropblock", 0.6, schedule="early", schedule_end=0.5, groups=[4], options=DROPBLOCK)
    layers = control(early)
    steps = [t / 8 for t in range(8)]
    single = [layers.expected_drop([step])["group4"] for step in steps]
    assert single[0] > single[1] > single[4] == 0.0
    assert layers.expected_drop(steps)["group4"] == pytest.approx(sum(single) / 8, rel=1e-12)
    # Of the mean progress it would be another number: the schedule has a bend, and overlap makes the drop a curve.
    assert layers.expected_drop([sum(steps) / 8])["group4"] != pytest.approx(sum(single) / 8, rel=0.05)
    assert layers.keep_probs(steps) == {"keep_prob/target": pytest.approx(1 - 0.4 * (1 + 0.75 + 0.5 + 0.25) / 8)}


def test_two_kinds_are_named_and_two_layers_at_one_site_refused() -> None:
    body = LayerSpec("dropblock", 0.9, options=DROPBLOCK)
    head = LayerSpec("dropblock", 0.5, groups=["head"], options={"block_size": 3})
    layers = control(body, head)
    assert layers.keep_probs([1.0]) == {"keep_prob/dropblock": 0.9, "keep_prob/dropblock2": 0.5}
    assert set(layers.expected_drop([1.0])) == {"dropblock/group3", "dropblock/group4", "dropblock2/head"}
    with pytest.raises(ValueError, match="dropblock and dropout both want the site"):
        control(body, LayerSpec("dropout", 0.9))


def test_a_network_without_layers_has_an_empty_control() -> None:
    layers = control()
    layers.set_progress(0.3)
    assert (layers.table, layers.take_counts(), layers.keep_probs([0.3]), layers.expected_drop([0.3])) == (
        [],
        {},
        {},
        {},
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (LayerSpec("droplock", 0.9), "unknown layer 'droplock', choose one of dropblock"),
        (LayerSpec("dropblock", 0.9), "dropblock needs a block_size"),
        (LayerSpec("dropblock", 0.9, options={"block": 3}), "no option 'block', only block_size"),
        (LayerSpec("dropout", 0.9, options=DROPBLOCK), "dropout has no option 'block_size'"),
        (
            LayerSpec("dropout", 0.9, groups=[2, "head"]),
            r"groups=\[2, head\]: this network has .* \[3, 4, head\]",
        ),
        (LayerSpec("dropout", 0.9, head_share=1.5), "head_share must lie in"),
        (LayerSpec("dropout", 0.9, depth_rule="square"), "unknown depth_rule 'square'"),
        (LayerSpec("stochastic_depth", 0.9, depth_rule="linear"), "a depth rule of its own"),
    ],
)
def test_what_cannot_be_meant_is_refused(spec: LayerSpec, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        control(spec)


def test_the_drop_rate_can_grow_with_the_index_of_the_block() -> None:
    spec = LayerSpec("dropblock", 0.8, groups=[3, 4], skip=True, depth_rule="linear", options=DROPBLOCK)
    table = rows(control(spec))
    for index, unit in enumerate(("body.0", "body.1", "body.3", "body.4"), start=1):
        for site in ("site1", "site2", "site_skip"):
            assert table[f"{unit}.{site}"].keep_prob == pytest.approx(1 - 0.2 * index / 4)
    plain = nn.Sequential(Site(1, "conv", "a"), Site(2, "conv", "b"))
    assert depths(plain) == {"0": 0.5, "1": 1.0}
    foreign = pytest.importorskip("torchvision").models.resnet18(num_classes=2)
    from dropblock import declare_sites

    declare_sites(foreign)
    found = depths(foreign)
    assert found["layer1.0.conv2.site_before"] == found["layer1.0.bn2.site_after"] == 1 / 8
    assert found["layer4.0.downsample.1.site_after"] == found["layer4.0.bn2.site_after"] == 7 / 8


def test_signals_and_volumes_have_sites_as_well() -> None:
    signal = nn.Sequential(nn.Conv1d(2, 3, 1), Site(4, "conv", "conv"))
    install(signal, lambda site: DropBlock1d(block_size=5, keep_prob=0.8), lambda site: True)
    layers = LayerControl(signal, torch.zeros(1, 2, 40), {"dropblock": KeepProbSchedule(signal, 0.8, "constant")})
    (row,) = layers.table
    assert (row.map_sizes, row.block, row.expected_drop) == ([(3, 40)], (5,), expected_drop(0.8, 5, 40))
    assert "3x40" in table_text(layers.table)
    signal.train()(torch.randn(16, 2, 40))
    assert layers.take_counts()["group4"][1] == 16 * 3 * 40


def test_asked_expected_and_measured_stand_side_by_side() -> None:
    model = Detector()
    layers = control(LayerSpec("dropblock", 0.8, [4, "head"], options=DROPBLOCK), model=model)
    model.train()(torch.randn(32, 4, 32, 32))  # a trial, before the control that counts
    layers = LayerControl(model, EXAMPLE, layers.schedules)
    layers.set_progress(0.5)
    layers.set_seeds(lambda i: i)
    model.train()(torch.randn(32, 4, 32, 32))
    rows = {row.group: row for row in layers.drops([0.5])}
    assert set(rows) == {"group4", "head"}
    for row in rows.values():
        assert row.asked == pytest.approx(0.1)
        assert 0.08 < row.expected <= 0.1
        assert row.measured is not None
        assert row.units > 0
    model(torch.randn(32, 4, 32, 32))
    assert {row.group: row.units for row in layers.drops([0.5])} == {name: row.units for name, row in rows.items()}
    (never, _) = layers.drops([0.0, 1.0])  # the mean of nothing and of 0.2; and nothing ran since
    assert (never.asked, never.measured, never.units) == (pytest.approx(0.1), None, 0)
    assert "never ran" in drops_text([never])


class Twice(Dropout):
    """A layer with an option of its own."""

    def __init__(self, keep_prob: float, factor: float) -> None:
        super().__init__(keep_prob=keep_prob)
        self.factor = factor


def test_a_layer_with_an_option_of_its_own_is_a_class_and_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LAYERS, "twice", Kind(lambda site, keep_prob, *, factor=1.0: Twice(keep_prob, factor), on_maps))
    layers = control(LayerSpec("twice", 0.9, options={"factor": 2.0}))
    assert {layer.factor for layer in layers.layers if isinstance(layer, Twice)} == {2.0}
    with pytest.raises(ValueError, match="twice has no option 'size', only factor"):
        install_layers(Detector(), "twice", keep_prob=0.9, size=3)


def test_a_row_says_where_a_block_is_clamped_and_how_a_place_departs_from_the_paper() -> None:
    def table(block_size: int) -> list[dict[str, Any]]:
        layers = control(LayerSpec("dropblock", 0.9, groups=[4], options={"block_size": block_size}))
        return [asdict(row) for row in layers.table]

    assert all(row["clamped"] and row["block"] == (16, 16) for row in table(17))
    # Runs whose rows agree but for `clamped` compute the same.
    assert [{**row, "clamped": True} for row in table(16)] == table(17) == table(40)
    from models import build_model

    layers = LayerControl.install(
        build_model("resnet18", num_classes=2, width=4), [LayerSpec("dropout", 0.9)], torch.zeros(1, 3, 32, 32)
    )
    assert all("basic block: its sites" in row.note for row in layers.table)
    assert table_text(layers.table).count("note: basic block") == 1
    assert isinstance(control(LayerSpec("dropblock", 0.9, options=DROPBLOCK)).layers[0], DropBlock2d)


def test_the_expected_drop_of_a_group_counts_every_unit_once() -> None:
    model = nn.Sequential(Site(4, "conv", "in"), nn.MaxPool2d(2), Site(4, "conv", "pool"))
    model.last_group = 4
    spec = LayerSpec("dropblock", 0.7, [4], schedule="constant", options={"block_size": 3})
    layers = LayerControl.install(model, [spec], torch.zeros(1, 1, 12, 12))
    large, small = expected_drop(0.7, 3, 12, 12), expected_drop(0.7, 3, 6, 6)
    assert layers.expected_drop([0.0])["group4"] == pytest.approx((144 * large + 36 * small) / 180)


def test_drop_path_never_takes_the_shortcut() -> None:
    filled = install_layers(Detector(), "drop_path", keep_prob=0.9, skip=True)
    assert {site.branch for site in filled.values()} == {"conv"}
