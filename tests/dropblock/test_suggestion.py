"""Places proposed for networks that nobody has described, held to the known families and to networks written here."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from dropblock import DropBlock2d, Place, declare_sites, install_into, installed_layers, suggest

X = torch.zeros(1, 3, 64, 64)


def unit(channels: int, out: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3, stride, padding=1), nn.BatchNorm2d(out), nn.ReLU())


class PreActivation(nn.Module):
    """A branch that ends in a convolution, scaled, beside the plain input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.first = nn.BatchNorm2d(channels), nn.Conv2d(channels, channels, 3, padding=1)
        self.last = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.2 * self.last(F.relu(self.first(self.norm(x))))


class Yolo(nn.Module):
    """A stem, stages with a cross-stage connection around residual units, pooling of several sizes, a neck."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = unit(3, 8, 2), nn.ModuleList([unit(8 * 2**i, 16 * 2**i, 2) for i in range(4)])
        self.split = nn.ModuleList([nn.Conv2d(16 * 2**i, 8 * 2**i, 1) for i in range(4)])
        self.units = nn.ModuleList([nn.Sequential(PreActivation(8 * 2**i), PreActivation(8 * 2**i)) for i in range(4)])
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.lateral = nn.ModuleList([nn.Conv2d(16 * 2**i, 8, 1) for i in range(4)])
        self.up = nn.ModuleList([nn.Upsample(scale_factor=2) for _ in range(3)])
        self.out = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps, x = [], self.stem(x)
        for down, split, units in zip(self.down, self.split, self.units, strict=True):
            x = down(x)
            x = torch.cat([units(split(x)), split(x)], 1)
            maps.append(x)
        maps[-1] = maps[-1] + self.pool(maps[-1])
        top = self.lateral[3](maps[3])
        outputs = [self.out(top)]
        for level in (2, 1):  # the top-down path adds a larger map, and is no residual branch
            top = self.lateral[level](maps[level]) + self.up[level](top)
            outputs.append(self.out(top))
        return outputs


class UNet(nn.Module):
    """Four scales, each joined to the decoder by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleList([unit(3, 8), unit(8, 16), unit(16, 32), unit(32, 64)])
        self.decoder = nn.ModuleList([unit(96, 32), unit(48, 16), unit(24, 8)])
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        for stage in self.encoder:
            x = stage(F.max_pool2d(x, 2) if maps else x)
            maps.append(x)
        for stage, skip in zip(self.decoder, maps[-2::-1], strict=True):
            x = stage(torch.cat([F.interpolate(x, scale_factor=2), skip], 1))
        return self.head(x)


def ends(model: nn.Module, places: list[Place] | None = None) -> set[tuple[str, object, str]]:
    """Where branches end, by the sites that places come to."""
    sites = declare_sites(model, places)
    return {(path, site.group, site.branch) for path, site in sites.items() if site.ends_branch}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_resnet_gets_the_ends_of_branches_that_are_known_for_it(name: str) -> None:
    with torch.device("meta"):
        known, fresh = (torchvision.models.get_model(name, weights=None) for _ in range(2))
        found = suggest(fresh, torch.zeros(1, 3, 224, 224))
    assert ends(fresh, found) == ends(known)
    assert len(found) < 13  # patterns, not single modules
    assert found.notes == []


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "vgg11", "convnext_tiny"])
def test_groups_follow_the_stride(name: str) -> None:
    seen: dict[str, int] = {}
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
        places = suggest(model, torch.zeros(1, 3, 224, 224))
        for path, module in model.named_modules():
            module.register_forward_hook(lambda _, args, out, path=path: seen.update({path: out.shape[-1]}) or out)
        model(torch.zeros(1, 3, 224, 224))
    assert {place.group for place in places} == {1, 2, 3, 4}
    for place in places:
        for path, side in seen.items():
            if place.names(path) and side > 1:  # convnext's maps are (N, H, W, C) inside a block
                assert 224 / side <= 4 * 2 ** (int(place.group) - 1), (path, side)
                assert place.group == 1 or 224 / side > 2 ** int(place.group), (path, side)


def test_networks_of_ones_own() -> None:
    found = suggest(Yolo(), X)
    by_name = {(place.modules, place.group, place.ends_branch) for place in found}
    assert {("units.0.*.last", 1, True), ("units.1.*.last", 2, True), ("units.2.*.last", 3, True)} <= by_name
    assert ("units.3.*.last", 4, True) in by_name
    assert not any(place.modules.startswith(("lateral", "up", "out")) for place in found)
    assert "9 identity shortcuts" in found.notes[0]  # of eight units and of the pooling

    unet = suggest(UNet(), X)
    assert {(place.modules, place.where, place.branch) for place in unet} >= {("encoder.3", "after", "conv")}
    assert not any(place.ends_branch for place in unet)


def test_what_is_printed_can_be_pasted_and_trained_with() -> None:
    model = Yolo().train()
    model.stem.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    places = suggest(model, X)
    assert [module.training for module in (model, model.stem, model.units)] == [True, False, True]
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())

    text = str(places)
    pasted = eval(text[text.index("places = ") + 9 : text.rindex("]") + 1], {"Place": Place})
    assert pasted == list(places)

    sites = install_into(
        model, lambda _: DropBlock2d(block_size=1, keep_prob=0.8), places, lambda site: site.group == 3
    )
    assert len(sites) == 2
    torch.stack([out.square().mean() for out in model(torch.randn(8, 3, 64, 64))]).sum().backward()
    assert all(p.grad is not None for p in model.units.parameters())
    for layer in installed_layers(model):
        assert layer.kept_units / layer.seen_units == pytest.approx(0.8, abs=0.03)


def test_a_network_without_maps_is_named() -> None:
    tokens = nn.TransformerEncoderLayer(16, 2, batch_first=True)
    vit = nn.Sequential(nn.Conv2d(3, 16, 16, 16), nn.Flatten(2), nn.Unflatten(2, (16,)), Transposed(), tokens)
    with pytest.raises(ValueError, match="works on tokens"):
        suggest(vit, X)
    with pytest.raises(ValueError, match="no place found in Conv2d"):
        suggest(nn.Conv2d(3, 4, 1), X)
    with pytest.raises(ValueError, match=r"example: .* not \(1, 4\)"):
        suggest(nn.Linear(4, 4), torch.zeros(1, 4))


class Transposed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)
