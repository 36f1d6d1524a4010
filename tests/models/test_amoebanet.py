"""AmoebaNet-B against its specification: parameter counts, map sizes, sites, groups, padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dropblock import declared_sites
from models import build_model
from models.amoebanet_cell import Pool, SameConv2d, pad_same


def meta(**options: object) -> nn.Module:
    with torch.device("meta"):
        return build_model("amoebanet_b", num_classes=1001, **options)


def small(**options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_model("amoebanet_b", num_classes=4, **{"width": 8, "cells": 1, "stem": "small", **options})


def millions(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


# (6, 512) is the 18-cell AmoebaNet-B of the GPipe paper: 557 M there.
@pytest.mark.parametrize(("width", "expected"), [(190, 79.0), (256, 141.8), (512, 557.3)])
def test_parameter_count(width: int, expected: float) -> None:
    assert round(millions(meta(width=width)), 1) == expected


def test_the_auxiliary_head_adds_a_million() -> None:
    assert millions(meta(width=256, auxiliary=True)) - millions(meta(width=256)) == pytest.approx(0.977, abs=1e-3)


def test_map_sizes_at_331_pixels() -> None:
    model = meta(width=256, cells=2)
    shapes: list[tuple[int, int]] = []
    for module in [model.stem_conv, *model.cells]:
        module.register_forward_hook(lambda _m, _i, y: shapes.append((y.shape[1], y.shape[3])))
    with torch.device("meta"):
        model(torch.zeros(1, 3, 331, 331))
    stem, first = [(32, 165), (128, 83), (256, 42)], [(1024, 42)] * 2
    assert shapes == [*stem, *first, (1024, 21), *[(2048, 21)] * 2, (2048, 11), *[(4096, 11)] * 2]


NORMAL_CELLS = [2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 16, 17, 18, 19, 20, 21]  # of (6, F), among all 22 cells


@pytest.mark.parametrize(
    ("last_half", "cells"),
    [
        ("all_cells", [*NORMAL_CELLS[8:12], 15, *NORMAL_CELLS[12:]]),
        ("normal_cells", NORMAL_CELLS[9:]),
    ],
)
def test_groups_3_and_4_are_the_last_half(last_half: str, cells: list[int]) -> None:
    model = meta(width=16, last_half=last_half)
    groups = {name: site.group for name, site in declared_sites(model).items()}
    assert [i for i in range(22) if groups[f"cells.{i}.current.site"] in (3, 4)] == cells
    assert all(groups[f"cells.{i}.current.site"] == 4 for i in cells if i > 14), "11-pixel maps"
    per_cell = [{g for name, g in groups.items() if name.startswith(f"cells.{i}.")} for i in range(22)]
    assert all(len(found) == 1 for found in per_cell)


def test_every_bn_of_a_cell_is_followed_by_a_site_and_every_operation_ends_in_one() -> None:
    model = small(stem="imagenet").eval()
    kept: list[Tensor] = []
    outputs: dict[int, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(
                lambda _m, _i, y, name=name: (kept.append(y), outputs.update({id(y): name}))[0]
            )
    seen: dict[str, str | None] = {}
    for name, site in declared_sites(model).items():
        site.register_forward_pre_hook(lambda _m, x, name=name: seen.__setitem__(name, outputs.get(id(x[0]))))
    with torch.no_grad():
        model(torch.randn(2, 3, 64, 64))
    sites = declared_sites(model)
    assert set(seen) == set(sites)
    after_bn = [seen[name] for name, site in sites.items() if not site.path_only and seen[name] is not None]
    after_bn.remove("stem_bn")  # the stem's output is the first cell's previous output as well
    assert sorted(after_bn) == sorted(outputs.values()), "one site for layers after every BN"
    skips = [name for name, site in sites.items() if site.branch == "skip"]
    assert [name for name in skips if name.startswith("cells.0.")] == [
        "cells.0.previous",
        "cells.0.left.1.0",
        "cells.0.left.3.0",
    ], "a reduction cell: the previous output, none(2), none(3)"
    paths = [name for name, site in sites.items() if site.path_only]
    assert len(paths) == 4 * 8 + 3 * 8, "ten operations a cell, two of them none"
    assert all(sites[name].branch == "conv" and sites[name].ends_branch for name in paths)


def test_none_reads_the_state_as_it_is() -> None:
    """In a normal cell with every other operation silenced, states 3 and 6 of the output tell what `none` passed on."""
    cell = small(cells=2, stem="small").cells[1].eval()
    for pairs in (cell.left, cell.right):
        for op in pairs:
            for module in op.modules():
                if isinstance(module, nn.BatchNorm2d):
                    nn.init.zeros_(module.weight)
    previous = torch.randn(1, cell.previous.convs[0].in_channels, 8, 8)
    current = torch.randn(1, cell.current.convs[0].in_channels, 8, 8)
    with torch.no_grad():
        y = cell(current, previous)
        arrived = cell.previous(previous)
        assert torch.equal(y[:, 8:16], arrived), "state 3 = none(1) + nothing"
        assert torch.equal(y[:, :8], cell.current(current)), "state 0 is part of the output"
        assert y[:, 16:24].eq(0).all(), "state 4 is the sum of two silenced operations"
        expected = F.avg_pool2d(arrived, 3, 1, 1, count_include_pad=False)
        assert torch.equal(y[:, 24:], expected), "state 6 = avg3(1) + nothing"


def same_by_hand(side: int, kernel: int, stride: int) -> tuple[int, int]:
    total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


@pytest.mark.parametrize("side", [6, 7])
@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (3, 1), (3, 2), (5, 1), (5, 2), (1, 2)])
def test_padding_is_same(side: int, kernel: int, stride: int) -> None:
    begin, end = same_by_hand(side, kernel, stride)
    x = torch.ones(1, 1, side, side)
    assert torch.equal(pad_same(x, kernel, stride), F.pad(x, (begin, end, begin, end)))
    conv = SameConv2d(1, 1, kernel, stride)
    expected = F.conv2d(F.pad(x, (begin, end, begin, end)), conv.weight, stride=stride)
    torch.testing.assert_close(conv(x), expected)
    assert conv(x).shape[-1] == -(-side // stride)


def test_pooling_ignores_the_padding() -> None:
    x = -torch.ones(1, 1, 6, 6)
    assert Pool("max", 3, 2)(x).eq(-1).all()
    assert Pool("max", 2, 1)(x).eq(-1).all()
    torch.testing.assert_close(Pool("avg", 3, 1)(x), x)


def test_dilation_is_a_switch() -> None:
    def dilated(model: nn.Module) -> set[tuple[int, int]]:
        return {
            (m.kernel_size[0], m.dilation[0]) for m in model.modules() if isinstance(m, nn.Conv2d) and m.dilation[0] > 1
        }

    assert dilated(small()) == set()
    model = small(dilation=True)
    assert dilated(model) == {(5, 2)}
    assert millions(model) == millions(small())
    assert model.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 4)


@pytest.mark.parametrize("stem", ["small", pytest.param("imagenet", marks=pytest.mark.slow)])
def test_a_small_one_learns(stem: str) -> None:
    model = small(stem=stem, dense_keep_prob=1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 4
    losses = []
    for _ in range(4):
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[3] < losses[0]
    assert all(p.grad is not None for p in model.parameters())


def test_auxiliary_logits_come_in_training_only() -> None:
    model = small(auxiliary=True, image_size=32)
    x = torch.randn(2, 3, 32, 32)
    logits, auxiliary = model(x)
    assert logits.shape == auxiliary.shape == (2, 4)
    auxiliary.sum().backward()
    assert model.cells[model.middle].current.bn.weight.grad is not None
    assert model.cells[model.middle + 1].current.bn.weight.grad is None
    assert model.eval()(x).shape == (2, 4)
    assert model.aux_weight == 0.4
    maps = model.features(x)
    torch.testing.assert_close(model(x), model.fc(maps.mean((2, 3))))
    assert isinstance(small().train()(x), Tensor)


def test_normalisation_and_dropout_options() -> None:
    bn = small(bn_momentum=0.0003, bn_eps=1e-3).cells[0].current.bn
    assert (bn.momentum, bn.eps) == (0.0003, 1e-3)
    assert small().dropout.p == 0.5
    assert small(dense_keep_prob=0.8).dropout.p == pytest.approx(0.2)


def test_wrong_values_are_reported() -> None:
    with pytest.raises(ValueError, match="unknown last_half 'half', choose one of all_cells, normal_cells"):
        small(last_half="half")
    with pytest.raises(ValueError, match="unknown stem"):
        small(stem="large")
    with pytest.raises(ValueError, match="auxiliary head needs maps of 5 pixels or more, not 3"):
        small(auxiliary=True, image_size=7)
    with pytest.raises(ValueError, match="at least 1 cell"):
        small(cells=0)
    with pytest.raises(ValueError, match="amoebanet_b takes no option 'zero_gamma'"):
        small(zero_gamma=True)
