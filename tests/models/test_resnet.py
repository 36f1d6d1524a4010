"""ResNet against torchvision's: the same keys, and the same numbers on the same weights."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from dropblock import declared_sites
from models import build_model

DEPTHS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


@pytest.mark.parametrize("name", DEPTHS)
def test_keys_and_shapes_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = build_model(name, num_classes=1000), getattr(torchvision.models, name)()
    shapes = [{k: tuple(v.shape) for k, v in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert list(shapes[0]) == list(shapes[1]), "the order of the keys too"


@pytest.mark.parametrize(
    ("name", "training"),
    [
        ("resnet18", True),
        ("resnet50", False),
        pytest.param("resnet18", False, marks=pytest.mark.slow),
        pytest.param("resnet50", True, marks=pytest.mark.slow),
    ],
)
def test_same_weights_give_the_outputs_of_torchvision(name: str, training: bool) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(num_classes=10)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    ours = build_model(name, num_classes=10)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        expected, got = theirs.train(training)(x), ours.train(training)(x)
    assert torch.equal(got, expected)
    running = "layer4.1.bn1.running_mean"
    assert torch.equal(ours.state_dict()[running], theirs.state_dict()[running])


def test_sites_of_groups_3_and_4_of_resnet50() -> None:
    with torch.device("meta"):
        model = build_model("resnet50", num_classes=10)
    sites = [site for site in declared_sites(model).values() if site.group in (3, 4)]
    assert len(sites) == 36
    assert len([site for site in sites if site.branch == "conv"]) == 27
    assert len([site for site in sites if site.ends_branch and site.branch == "conv"]) == 9, "one per unit"
    assert len([site for site in sites if site.after == "identity"]) == 7, "all units but the first of each group"


def test_the_sites_see_what_the_paper_names() -> None:
    """In one unit: what each site gets, against the same values computed from the modules around it."""
    torch.manual_seed(0)
    unit = build_model("resnet50", num_classes=10, width=8).layer3[0].eval()
    seen: dict[str, torch.Tensor] = {}
    for name, site in declared_sites(unit).items():
        site.register_forward_hook(lambda _m, _i, y, name=name: seen.__setitem__(name, y.clone()))
    x = torch.randn(2, 64, 8, 8)
    with torch.no_grad():
        y = unit(x)
        first = unit.bn1(unit.conv1(x)).relu()
        second = unit.bn2(unit.conv2(first)).relu()
        third, shortcut = unit.bn3(unit.conv3(second)), unit.downsample(x)
    expected = {"site1": first, "site2": second, "site3": third, "site_skip": shortcut}
    assert set(seen) == set(expected)
    assert all(torch.equal(seen[name], expected[name]) for name in expected)
    assert torch.equal(y, (third + shortcut).relu())
    assert first.shape[-1] == 8, "the first unit's conv1 still has the previous resolution: the stride is in the 3x3"
    assert second.shape[-1] == 4


def test_start_of_training() -> None:
    torch.manual_seed(0)
    model = build_model("resnet50", num_classes=1000, zero_gamma=True)
    assert all(unit.bn3.weight.eq(0).all() for group in (model.layer1, model.layer4) for unit in group)
    assert model.layer1[0].bn2.weight.eq(1).all()
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert model.fc.bias.eq(0).all()
    weight = model.layer4[1].conv2.weight
    assert weight.var().item() * 512 * 9 == pytest.approx(1.0, rel=0.01), "variance 1 / fan-in after truncation"
    assert weight.abs().max().item() < 2.0 / 0.879 * (512 * 9) ** -0.5
    assert not build_model("resnet18", num_classes=2, width=4).layer1[0].bn2.weight.eq(0).any()


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 7), ("small", 28)])
def test_features_are_the_maps_before_pooling(stem: str, side: int) -> None:
    model = build_model("resnet18", num_classes=5, in_channels=1, width=4, stem=stem).eval()
    x = torch.randn(2, 1, 224, 224)
    with torch.no_grad():
        maps = model.features(x)
        assert maps.shape == (2, 32, side, side)
        torch.testing.assert_close(model(x), model.fc(maps.mean((2, 3))))
    assert (model.num_classes, model.last_group) == (5, 4)


def test_wrong_values_are_reported_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'resnet5', choose one of resnet18, .*"):
        build_model("resnet5", num_classes=10)
    with pytest.raises(ValueError, match="unknown stem 'tiny', choose one of imagenet, stride2, small"):
        build_model("resnet18", num_classes=10, stem="tiny")
    with pytest.raises(ValueError, match="width must be at least 1, not 0"):
        build_model("resnet18", num_classes=10, width=0)
    with pytest.raises(ValueError, match="resnet18 takes no option 'cells', only zero_gamma"):
        build_model("resnet18", num_classes=10, cells=3)
