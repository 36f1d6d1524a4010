"""Networks of torchvision and timm through the same builder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision

from data.interface import ClassificationBatch
from dropblock import declared_sites
from engine.tasks.classification import Classification
from models import build_model


def test_torchvision_comes_with_sites_and_its_own_keys(tmp_path: Path) -> None:
    theirs = torchvision.models.resnet18(num_classes=3)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    model = build_model("torchvision", num_classes=3, architecture="resnet18", pretrained=tmp_path / "w.pth")
    assert list(model.state_dict()) == list(theirs.state_dict())
    assert len(declared_sites(model)) == 24
    assert (model.num_classes, model.last_group) == (3, 4)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(model.eval()(x), theirs.eval()(x))


def test_places_of_ones_own_and_a_family_without_any() -> None:
    places = [{"modules": "features.*", "where": "after", "group": 2}]
    with torch.device("meta"):
        assert len(declared_sites(build_model("torchvision", num_classes=3, architecture="alexnet"))) == 0
        alexnet = build_model("torchvision", num_classes=3, architecture="alexnet", places=places)
    assert {site.group for site in declared_sites(alexnet).values()} == {2}


def test_timm() -> None:
    pytest.importorskip("timm")
    model = build_model("timm", num_classes=3, in_channels=1, architecture="resnet10t")
    assert {site.group for site in declared_sites(model).values()} == {1, 2, 3, 4}
    assert model(torch.randn(2, 1, 64, 64)).shape == (2, 3)


def test_wrong_values_are_reported() -> None:
    with pytest.raises(ValueError, match="torchvision has no network 'resnet51'; nearest: resnet50"):
        build_model("torchvision", num_classes=3, architecture="resnet51")
    with pytest.raises(ValueError, match="takes images of 3 channels, not 1"):
        build_model("torchvision", num_classes=3, in_channels=1)
    with pytest.raises(ValueError, match="takes no option 'depth', only architecture, places"):
        build_model("torchvision", num_classes=3, depth=3)
    for places in ([{"module": "layer4"}], [{"where": "after"}], ["layer4"], 4, [{"modules": "layer4", "group": "4"}]):
        with pytest.raises(ValueError, match=r"model\.options\.places: .*: a place has modules"):
            build_model("torchvision", num_classes=3, architecture="resnet18", places=places)


def test_auxiliary_classifiers_learn() -> None:
    batch = ClassificationBatch(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]), torch.arange(2))
    googlenet = build_model("torchvision", num_classes=3, architecture="googlenet")
    task = Classification("abc", aux_weight=googlenet.aux_weight)
    loss, *_ = task.loss(googlenet, batch)
    loss.backward()
    assert googlenet.aux1.fc2.weight.grad.abs().sum() > 0
