"""Places proposed for networks that nobody has described, held to the known families and to networks written here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from dropblock import DropBlock2d, Place, declare_sites, install_into, installed_layers, suggest
from dropblock.sites import map_sizes
from dropblock.suggestion import group_of
from examples.own_unet import UNet

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


class ConvNeXtUnit(nn.Module):
    """Depthwise convolution, LayerNorm and an MLP with channels last, a learned scale, drop path."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm, self.first = nn.LayerNorm(channels), nn.Linear(channels, 4 * channels)
        self.last, self.drop_path = nn.Linear(4 * channels, channels), nn.Identity()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.last(F.gelu(self.first(y))).permute(0, 3, 1, 2)
        return self.drop_path(self.scale * y) + x


class NormFreeUnit(nn.Module):
    """NFNet: an activation, then a branch with a gain, beside a projection of the activated input."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.downsample = nn.Conv2d(channels, out, 1, stride) if stride > 1 else None
        self.conv1, self.conv2 = nn.Conv2d(channels, out, 3, stride, 1), nn.Conv2d(out, out, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(x) * 1.7
        shortcut = x if self.downsample is None else self.downsample(active)
        y = self.conv2(F.relu(self.conv1(active)))
        return y.mul_(self.gain) * 0.2 + shortcut


class Squeeze(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(F.silu(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class Inverted(nn.Module):
    """EfficientNetV2 and MobileNetV4: fused, or depthwise with squeeze and excitation; added where the sizes agree."""

    def __init__(self, channels: int, out: int, stride: int = 1, fused: bool = False) -> None:
        super().__init__()
        wide = 4 * channels
        depthwise = (
            nn.Conv2d(channels, channels, 5, padding=2, groups=channels),
            unit(channels, wide),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide),
            Squeeze(wide),
        )
        self.inner = unit(channels, wide, stride) if fused else nn.Sequential(*depthwise)
        self.project = nn.Sequential(nn.Conv2d(wide, out, 1), nn.BatchNorm2d(out))
        self.added = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.inner(x))
        return x + y if self.added else y


class RegNetUnit(nn.Module):
    """A branch and a projection that both end in an identity."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv3 = unit(channels, out, stride), nn.Sequential(nn.Conv2d(out, out, 1), nn.Identity())
        self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride), nn.Identity()) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv3(self.conv1(x)) + (x if self.downsample is None else self.downsample(x)))


class RegNetStage(nn.Module):
    """Units with names, b1 and b2, in place of numbers."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.b1, self.b2 = RegNetUnit(channels, out, 2), RegNetUnit(out, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b2(self.b1(x))


# A stage of each family, which halves the maps; what ends a branch in stage {}: pattern, side, branch.
STAND_INS: dict[str, tuple[Callable[[int, int], nn.Module], set[tuple[str, str, str]]]] = {
    "convnext": (
        lambda i, o: nn.Sequential(nn.Conv2d(i, o, 2, 2), ConvNeXtUnit(o), ConvNeXtUnit(o)),
        {("s{}.*.drop_path", "after", "conv")},
    ),
    "resnetv2": (
        lambda i, o: nn.Sequential(nn.Conv2d(i, o, 2, 2), PreActivation(o), PreActivation(o)),
        {("s{}.*.last", "after", "conv")},
    ),
    "nfnet": (
        lambda i, o: nn.Sequential(NormFreeUnit(i, o, 2), NormFreeUnit(o, o, 1)),
        {("s{}.*.conv2", "after", "conv"), ("s{}.0.downsample", "after", "skip")},
    ),
    "efficientnetv2": (  # the first unit of a stage adds nothing
        lambda i, o: nn.Sequential(Inverted(i, o, 2, fused=True), Inverted(o, o, fused=True), Inverted(o, o)),
        {("s{}.1.project", "after", "conv"), ("s{}.2.project", "after", "conv")},
    ),
    "regnet": (
        RegNetStage,
        {
            ("s{}.b*.conv3", "after", "conv"),
            ("s{}.b1.downsample", "after", "skip"),
            ("s{}.b2.downsample", "in", "skip"),
        },
    ),
}


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


@pytest.mark.parametrize("name", STAND_INS)
def test_families_that_are_named_nowhere(name: str) -> None:
    make, ends_of_stage = STAND_INS[name]
    model = nn.Sequential(unit(3, 4, 2))
    for stage in range(1, 5):  # at strides 4 to 32, so stage g is group g
        model.add_module(f"s{stage}", make(4 * stage, 4 * stage + 4))
    model.append(nn.AdaptiveAvgPool2d(1))
    x = torch.randn(2, 3, 64, 64)
    before, keys = model.eval()(x), list(model.state_dict())
    found = suggest(model, X)
    assert list(model.state_dict()) == keys
    wanted = {(at.format(group), where, branch, group) for at, where, branch in ends_of_stage for group in (1, 2, 3, 4)}
    assert {(place.modules, place.where, place.branch, place.group) for place in found if place.ends_branch} == wanted
    assert len(found) == len(wanted)
    install_into(model, lambda _: DropBlock2d(block_size=3), found)
    assert torch.equal(model(x), before)
    model.train()(x)
    assert all(int(layer.seen_units) > 0 for layer in installed_layers(model))


# One network of each family with feature maps.
TORCHVISION = (
    "alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t "
    "mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_y_400mf resnet18 resnet50 shufflenet_v2_x0_5 squeezenet1_0 "
    "vgg11_bn"
)
TIMM = (
    "caformer_s18 coatnet_nano_rw_224 convmixer_768_32 convnext_tiny cspdarknet53 cspresnet50 darknet53 "
    "davit_tiny densenet121 dla34 dm_nfnet_f0 dpn68 edgenext_xx_small efficientformer_l1 efficientformerv2_s0 "
    "efficientnet_b0 efficientnetv2_s efficientvit_b0 efficientvit_m0 ese_vovnet19b_dw fastvit_t8 fbnetc_100 "
    "focalnet_tiny_srf gcvit_xxtiny gernet_s ghostnet_100 halonet26t hgnetv2_b0 hrnet_w18_small "
    "inception_next_tiny inception_resnet_v2 inception_v4 lambda_resnet26t mambaout_femto maxvit_nano_rw_256 "
    "mobilenetv4_conv_small mobilenetv4_hybrid_medium mobileone_s0 mobilevit_xxs mobilevitv2_050 nextvit_small "
    "nf_resnet50 nfnet_l0 poolformer_s12 rdnet_tiny regnety_004 regnetz_b16 repghostnet_050 repvgg_a0 repvit_m1 "
    "res2net50_26w_4s resnest50d resnet50 resnetv2_50 rexnet_100 selecsls42b senet154 shvit_s1 skresnet18 "
    "starnet_s1 swiftformer_xs tf_efficientnetv2_b0 tiny_vit_5m_224 tresnet_m visformer_tiny xception41"
)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TORCHVISION.split(), *(f"timm {name}" for name in TIMM.split())])
def test_group_is_stride_in_every_family_of_two_libraries(name: str) -> None:
    if name.startswith("timm "):
        model = pytest.importorskip("timm").create_model(name.removeprefix("timm "))
        side = model.default_cfg["input_size"][1]
    else:
        model, side = torchvision.models.get_model(name, weights=None), 224
    x = torch.zeros(1, 3, side, side, device="meta")
    found = suggest(model.to("meta"), x)
    declared = declare_sites(model, found)
    for path, [(size, _)] in map_sizes(model, x, {path: declared[path] for path in declared}).items():
        assert declared[path].group == group_of(side / size[-1]), (path, size)


def test_networks_of_ones_own() -> None:
    found = suggest(Yolo(), X)
    by_name = {(place.modules, place.group, place.ends_branch) for place in found}
    assert {("units.0.*.last", 1, True), ("units.1.*.last", 2, True), ("units.2.*.last", 3, True)} <= by_name
    assert ("units.3.*.last", 4, True) in by_name
    assert not any(place.modules.startswith(("lateral", "up", "out")) for place in found)
    # Those of eight units, and the one around the pooling.
    assert found.notes == ["identity shortcuts that are no module, and get no site: 9"]

    unet = suggest(UNet(), X[:, :1])
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
