"""The networks of CIFAR and of few-shot learning: shortcuts, sites, groups, starts. Sizes: test_parameter_counts.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dropblock import LayerControl, LayerSpec, declared_sites, install_layers
from models import build_model
from tests.dropblock import resnet12 as few_shot

# Each in a size that trains in milliseconds.
SMALL: dict[str, dict[str, Any]] = {
    "resnet20": {"width": 4},
    "wide_resnet28_10": {"width": 4, "depth": 10, "widen_factor": 2},
    "pyramidnet110": {"width": 4, "depth": 14},
    "pyramidnet200": {"width": 4, "depth": 20},
    "resnet12": {"width": 4},
}
THREE_STAGES = [name for name in SMALL if name != "resnet12"]


def small(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    return build_model(name, num_classes=5, stem=options.pop("stem", "small"), **{**SMALL[name], **options})


@pytest.mark.parametrize("name", SMALL)
def test_it_learns_and_regularizers_add_no_keys(name: str) -> None:
    model = small(name)
    keys = list(model.state_dict())
    x, labels = torch.randn(10, 3, 32, 32), torch.arange(10) % 5
    specs = [LayerSpec("dropblock", 0.9, skip=True, group_divisor=4.0, options={"block_size": 3})]
    control = LayerControl.install(model, specs, x[:1])
    control.set_progress(0.5)
    assert list(model.state_dict()) == keys
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    losses = []
    for _ in range(5):
        loss = F.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert control.take_counts().keys() == {"group3", "group4"}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_maps_channels_and_strides(name: str, stem: str) -> None:
    model = small(name, stem=stem, in_channels=1).eval()
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        maps = model.stages(x)
        features = model.features(x)
        torch.testing.assert_close(model(x), model.fc(features.mean((2, 3))))
    assert [tuple(m.shape) for m in maps] == [
        (2, channels, 64 // stride, 64 // stride)
        for channels, stride in zip(model.channels, model.strides, strict=True)
    ]
    assert features.shape == maps[-1].shape
    assert (model.num_classes, model.last_group, len(maps)) == (5, 4, 4 if name == "resnet12" else 3)


@pytest.mark.parametrize("name", THREE_STAGES)
def test_three_stages_are_groups_2_to_4(name: str) -> None:
    model = small(name)
    groups = {int(path[len("layer")]): site.group for path, site in declared_sites(model).items()}
    assert groups == {1: 2, 2: 3, 3: 4}
    # A regularizer for all groups is for those there are; one for a group that is none is refused.
    everywhere = install_layers(model, "stochastic_depth", keep_prob=0.5, groups=[1, 2, 3, 4])
    blocks = [path for path, module in model.named_modules() if hasattr(module, "site_skip")]
    assert [path.rpartition(".")[0] for path in everywhere] == blocks
    for missing in ([1], [1, 5], [2, 5]):
        with pytest.raises(ValueError, match=r"groups=.*this network has the groups \[2, 3, 4\]"):
            install_layers(model, "dropout", keep_prob=0.5, groups=missing)


# What each site sees: the site that ends the conv branch, those within it, and the first shortcut of group 3.
PLACES = {
    "resnet20": ("bn2", {"relu(bn1)", "bn2"}, "zero-padded"),
    "wide_resnet28_10": ("conv2", {"relu(bn2)", "conv2"}, "downsample"),
    "pyramidnet110": ("bn3", {"relu(bn2)", "bn3"}, "zero-padded"),
    "pyramidnet200": ("bn4", {"relu(bn2)", "relu(bn3)", "bn4"}, "zero-padded"),
}


@pytest.mark.parametrize("name", THREE_STAGES)
def test_the_sites_of_a_block_see_what_they_say(name: str) -> None:
    model = small(name).eval()
    unit = model.layer2[0]
    sites = declared_sites(unit)
    end, inner, skip = PLACES[name]
    assert {site.after for site in sites.values() if site.branch == "conv"} == inner
    assert [site.after for site in sites.values() if site.branch == "conv" and site.ends_branch] == [end]
    assert sites["site_skip"].after == skip
    seen: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    for path, site in sites.items():
        site.register_forward_hook(lambda _m, x, _y, path=path: seen.__setitem__(path, x[0].clone()))
    for path, module in unit.named_children():
        if isinstance(module, nn.BatchNorm2d | nn.Conv2d):
            module.register_forward_hook(lambda _m, _x, y, path=path: outputs.__setitem__(path, y.clone()))
    with torch.no_grad():
        y = unit(torch.randn(2, model.channels[0], 8, 8))
    for path, site in sites.items():
        if site.branch == "conv":
            expected = outputs[site.after.removeprefix("relu(").removesuffix(")")]
            assert torch.equal(seen[path], expected.relu() if site.after.startswith("relu") else expected), path
    summed = outputs[end] + seen["site_skip"]
    assert torch.equal(y, summed.relu() if name == "resnet20" else summed)


def test_shortcuts_are_the_papers() -> None:
    def shortcut(unit: nn.Module, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        unit.site_skip.register_forward_hook(lambda _m, _x, y: kept.append(y))  # type: ignore[union-attr]
        with torch.no_grad():
            unit.eval()(x)
        return kept[0]

    x = torch.randn(2, 4, 5, 5)
    resnet = shortcut(small("resnet20").layer2[0], x)
    assert torch.equal(resnet[:, :4], x[:, :, ::2, ::2]), "every second pixel"
    assert resnet.shape == (2, 8, 3, 3)
    assert not resnet[:, 4:].any()

    pyramid = small("pyramidnet200", depth=11, alpha=16).layer2[0]
    x = torch.randn(2, pyramid.conv1.in_channels, 5, 5)
    averaged = shortcut(pyramid, x)
    assert torch.equal(averaged[:, : x.shape[1]], F.avg_pool2d(x, 2, ceil_mode=True))
    assert averaged.shape[1] == pyramid.bn4.num_features > x.shape[1]
    assert not averaged[:, x.shape[1] :].any()

    wide = small("wide_resnet28_10").layer2[0]
    x = torch.randn(2, wide.conv1.in_channels, 6, 6)
    with torch.no_grad():
        assert torch.equal(shortcut(wide, x), wide.downsample(wide.bn1(x).relu())), "of the activated input"
    assert small("wide_resnet28_10", depth=16).layer2[1].downsample is None


def test_channels_of_a_pyramid_grow_by_alpha() -> None:
    with torch.device("meta"):
        model = build_model("pyramidnet200", num_classes=100, width=16, depth=65)
        half = build_model("pyramidnet200", num_classes=100, width=8, depth=11)
    ends = [unit.bn4.num_features // 4 for stage in (model.layer1, model.layer2, model.layer3) for unit in stage]
    assert ends == [round(16 + 240 * k / 21) for k in range(1, 22)]
    assert half.channels[-1] == 512


def test_dropout_of_a_wide_resnet() -> None:
    model = small("wide_resnet28_10", dropout=0.3)
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.3}
    assert list(model.state_dict()) == list(small("wide_resnet28_10").state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize(("name", "last"), [("resnet20", "bn2"), ("pyramidnet110", "bn3"), ("pyramidnet200", "bn4")])
def test_zero_gamma_makes_every_block_its_shortcut(name: str, last: str) -> None:
    model = small(name, zero_gamma=True)
    units = [unit for stage in (model.layer1, model.layer2, model.layer3) for unit in stage]
    for unit in units:
        zero = {path for path, m in unit.named_children() if isinstance(m, nn.BatchNorm2d) and m.weight.eq(0).all()}
        assert zero == {last}
    assert all(unit.get_submodule(last).weight.eq(1).all() for unit in small(name).layer1)
    with pytest.raises(ValueError, match="wide_resnet28_10 takes no option 'zero_gamma'"):
        small("wide_resnet28_10", zero_gamma=True)


@pytest.mark.parametrize(
    ("name", "mode"), [("resnet20", "fan_in"), ("wide_resnet28_10", "fan_out"), ("pyramidnet110", "fan_out")]
)
def test_convolutions_start_with_variance_2_over_fan(name: str, mode: str) -> None:
    model = small(name, width=16)
    conv = model.layer2[0].conv1
    fan = {"fan_in": conv.in_channels, "fan_out": conv.out_channels}[mode] * 9
    # The variance of some thousand normal numbers: a standard error of 2.1 % at most, 4.5 of them.
    assert conv.weight.numel() > 4500
    assert conv.weight.var().item() * fan / 2 == pytest.approx(1, abs=0.095)


def test_resnet12_has_its_sites_where_few_shot_code_or_the_paper_has_them() -> None:
    for places, expected in (("output", {"pool"}), ("branches", {"relu(bn1)", "relu(bn2)", "bn3", "shortcut"})):
        model = small("resnet12", places=places)
        filled = install_layers(model, "dropblock", keep_prob=0.9, groups=[1, 2, 3, 4], skip=True, block_size=1)
        assert {site.after for site in filled.values()} == expected
        assert {site.group for site in filled.values()} == {1, 2, 3, 4}
        ends = install_layers(small("resnet12", places=places), "drop_path", keep_prob=0.9, groups=[1, 2, 3, 4])
        assert [site.after for site in ends.values()] == ["bn3"] * 4
    assert small("resnet12", zero_gamma=True).layer1.bn3.weight.eq(0).all()


def test_resnet12_is_that_of_few_shot_code() -> None:
    """The same keys and outputs as the code that docs/MIGRATE.md starts from, whose DropBlock is its own."""
    ours, theirs = small("resnet12").eval(), few_shot.ResNet12(5, width=4).eval()
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(2, 3, 84, 84)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("name", "options", "key"),
    [
        ("wide_resnet28_10", {"depth": 27}, "depth=27"),
        ("wide_resnet28_10", {"widen_factor": 0}, "widen_factor=0"),
        ("wide_resnet28_10", {"dropout": 1.0}, "dropout=1"),
        ("pyramidnet110", {"depth": 111}, "depth=111"),
        ("pyramidnet200", {"depth": 110, "alpha": -1}, "alpha=-1"),
        ("resnet12", {"places": "head"}, "places 'head'"),
        ("resnet20", {"stem": "big"}, "stem 'big'"),
        ("resnet20", {"depth": 32}, "'depth'"),
    ],
)
def test_wrong_values_are_named(name: str, options: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        small(name, **options)
