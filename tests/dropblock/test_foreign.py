"""DropBlock in networks of torchvision and timm, from the outside."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
import torchvision.models as tv
from torch import nn
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.vgg import make_layers

from dropblock import (
    DropBlock2d,
    DropLayer,
    KeepProbSchedule,
    Place,
    Site,
    declare_sites,
    declared_sites,
    install,
    install_into,
    installed_layers,
    known_places,
    site_table,
)
from dropblock.kinds import on_branches
from dropblock.sites import map_sizes
from dropblock.table import table_text
from models.resnet import Bottleneck as OurBottleneck
from models.resnet import ResNet


def timm_model(name: str) -> nn.Module:
    return pytest.importorskip("timm").create_model(name, num_classes=4)


def small_vgg() -> nn.Module:
    """Without the 100 million weights of the classifier."""
    stages = make_layers([16, "M", 16, "M", 32, "M", 32, 32, "M", 64, "M"], batch_norm=True)
    with torch.device("meta"):
        model = tv.VGG(nn.Identity(), num_classes=4, init_weights=False)
    model.features, model.classifier = stages, nn.Linear(64 * 49, 4)
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: tv.ResNet(Bottleneck, [2, 2, 2, 2], num_classes=4, width_per_group=16),
    "resnet_basic": lambda: tv.ResNet(BasicBlock, [1, 1, 2, 2], num_classes=4),
    "resnext": lambda: tv.ResNet(Bottleneck, [1, 1, 2, 2], num_classes=4, groups=4, width_per_group=4),
    "densenet": lambda: tv.DenseNet(16, (2, 2, 2, 2), 16, num_classes=4),
    "regnet": lambda: tv.regnet_x_400mf(num_classes=4),
    "efficientnet": lambda: tv.efficientnet_b0(num_classes=4),
    "convnext": lambda: tv.ConvNeXt([CNBlockConfig(16 * g, 16 * (g + 1) if g < 4 else None, 2) for g in (1, 2, 3, 4)]),
    "vgg": lambda: small_vgg(),
    "mobilenet_v2": lambda: tv.mobilenet_v2(num_classes=4, width_mult=0.25),
    "mobilenet_v3": lambda: tv.mobilenet_v3_small(num_classes=4, width_mult=0.25),
    "timm_efficientnet": lambda: timm_model("efficientnet_lite0"),
    "timm_resnet": lambda: timm_model("resnet14t"),
    "timm_regnet": lambda: timm_model("regnetx_002"),
}
IDENTITY_IN_REACH = {"resnet", "resnet_basic", "resnext", "regnet", "timm_resnet", "timm_regnet"}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return NETWORKS[name]()


def block3(site: Site) -> DropBlock2d:
    return DropBlock2d(block_size=3)


# One network of each kind of place; the other families' places are in the tables below, and pass here in the long form.
SHORT = ("resnet", "densenet", "convnext", "vgg", "mobilenet_v3", "timm_resnet")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SHORT else pytest.mark.slow) for name in NETWORKS]
)
def test_keys_and_outputs_stay_and_every_site_drops_what_it_should(name: str) -> None:
    """Maps are independent, units of one map are not: a site of M maps has a standard error of at most
    sqrt(p (1 - p) / M). Five of them: below 6e-7 a site, 5e-4 for the 800 sites of this test."""
    model, x = network(name).eval(), torch.randn(8, 3, 64, 64)
    keys = list(model.state_dict())
    with torch.no_grad():
        before = model(x[:2])
        filled = install_into(model, block3)
        assert torch.equal(model(x[:2]), before), "the identity in evaluation"
    assert list(model.state_dict()) == keys
    rows = {
        row.site: row
        for row in site_table(model, x[:1], KeepProbSchedule(model, 0.9, "constant"))
        if row.layer != "out of reach"
    }
    assert set(rows) == set(filled)
    assert {row.group for row in rows.values()} == {1, 2, 3, 4}
    model.train()
    for step in range(2):
        for i, layer in enumerate(installed_layers(model)):
            layer.set_mask_seed(1000 * step + i)
        model(x).square().mean().backward()
    for path, row in rows.items():
        layer = filled[path].layer
        seen, maps = layer.seen_units.item(), 2 * 8 * row.map_sizes[0][0]
        assert seen == maps * row.map_sizes[0][1] * row.map_sizes[0][2], "called once in a pass"
        p = row.expected_drop
        assert abs(1 - layer.kept_units.item() / seen - p) < 5 * math.sqrt(p * (1 - p) / maps), path
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "vgg"])
def test_the_table_tells_where_the_identity_shortcut_is_out_of_reach(name: str) -> None:
    model = network(name)
    declare_sites(model)
    install(model, block3, lambda site: site.group in (3, 4))
    rows = site_table(model, torch.zeros(1, 3, 64, 64), KeepProbSchedule(model, 0.9, group_divisor=4.0))
    identities = [row for row in rows if row.branch == "skip" and row.after in ("identity", "downsample")]
    reached = {row.layer != "out of reach" for row in identities}
    assert reached == {name in IDENTITY_IN_REACH}
    assert ("out of reach" in table_text(rows)) == (name not in IDENTITY_IN_REACH)
    assert all(row.expected_drop == 0.0 for row in rows if row.layer == "out of reach")


class Nothing(DropLayer):
    """Drops all there is."""

    def forward(self, x: torch.Tensor, call: int = 0) -> torch.Tensor:
        return torch.zeros_like(x)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "vgg"])
def test_a_network_without_its_branches_still_sees_its_input(name: str) -> None:
    """What drop path and ShakeDrop take is never the only path: units that change the size have no shortcut."""
    model, x = network(name).eval(), torch.randn(2, 3, 64, 64)
    filled = install_into(model, lambda _: Nothing(), sites=on_branches)
    with torch.no_grad():
        first, second = model(x)
    assert not torch.equal(first, second)
    assert {3, 4} <= {site.group for site in filled.values()}


def test_every_shortcut_of_an_efficientnet_has_a_branch_that_ends() -> None:
    """Its first stages have units of one and of two convolutions."""
    model = timm_model("efficientnetv2_rw_t")
    filled = install_into(model, block3, sites=on_branches)
    units = {path for path, module in model.named_modules() if getattr(module, "has_skip", False)}
    assert {path.rsplit(".", 2)[0] for path in filled} == units
    assert len(filled) == len(units)


SIZES_OF_GROUPS = {
    1: {32, 16},
    2: {16, 8},
    3: {8, 4},
    4: {4, 2},
}  # at 64 pixels: what a unit is given, and what it gives


@pytest.mark.parametrize("name", ["mobilenet_v2", "mobilenet_v3", "timm_efficientnet", "efficientnet"])
def test_groups_follow_the_size_of_the_maps(name: str) -> None:
    model = network(name)
    install_into(model, block3)
    rows = site_table(model, torch.zeros(1, 3, 64, 64), KeepProbSchedule(model, 0.9))
    for row in rows:
        assert {height for _, height, _ in row.map_sizes} <= SIZES_OF_GROUPS[int(row.group)]
    assert {row.group for row in rows if row.after.startswith("features") or row.map_sizes} == {1, 2, 3, 4}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_group_of_a_branch_is_the_stride_of_its_maps(name: str) -> None:
    """A VGG has no branches; its five stages end at a sixteenth, so its last group is that of stride 16."""
    model = network(name)
    filled = install_into(model, block3)
    ends = {path for path, site in filled.items() if name == "vgg" or (site.ends_branch and site.branch == "conv")}
    rows = site_table(model, torch.zeros(1, 3, 64, 64), KeepProbSchedule(model, 0.9))
    for row in (row for row in rows if row.site in ends):
        ((_, height, _),) = row.map_sizes
        octave = (64 // height).bit_length() - 1  # 2 for stride 4
        assert row.group == max(1, octave - (name != "vgg")), row.site


SMALL = {"weights": None, "weights_backbone": None, "num_classes": 3}
WRAPPED: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    "retinanet": (lambda: tv.detection.retinanet_resnet50_fpn(**SMALL, min_size=64, max_size=64), "backbone.body.", 64),
    "faster_rcnn": (
        lambda: tv.detection.fasterrcnn_mobilenet_v3_large_fpn(**SMALL, min_size=64, max_size=64),
        "backbone.body.",
        44,
    ),
    "fcn": (lambda: tv.segmentation.fcn_resnet50(**SMALL), "backbone.", 64),
    "lraspp": (lambda: tv.segmentation.lraspp_mobilenet_v3_large(**SMALL), "backbone.", 44),
    "data_parallel": (lambda: nn.DataParallel(network("resnet_basic")), "module.", 18),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in ("retinanet", "fcn") else ()) for name in WRAPPED]
)
def test_a_known_backbone_is_found_inside_a_larger_network(name: str) -> None:
    build, prefix, number = WRAPPED[name]
    model = build()
    keys = list(model.state_dict())
    filled = install_into(model, block3)
    assert len(filled) == number
    assert all(path.startswith(prefix) for path in filled)
    assert {site.group for site in filled.values()} == {1, 2, 3, 4}
    assert list(model.state_dict()) == keys
    rows = site_table(model, torch.zeros(1, 3, 64, 64), KeepProbSchedule(model, 0.9))
    assert {row.site for row in rows if row.layer != "out of reach"} == set(filled)


def test_the_known_places_of_a_dilated_backbone_keep_their_groups() -> None:
    dilated = tv.segmentation.lraspp_mobilenet_v3_large(**SMALL).backbone
    plain = tv.mobilenet_v3_large(num_classes=3)
    groups = [[place.group for place in known_places(model)] for model in (dilated, plain)]
    assert groups[0] == groups[1]


def our_name(path: str) -> str:
    """The site of ours that a site of torchvision's bottleneck corresponds to."""
    unit, _, rest = path.partition(".conv2") if ".conv2" in path else path.partition(".conv3")
    if rest:
        return f"{unit}.site1" if ".conv2" in path else f"{unit}.site2"
    return path.replace("bn3.site_after", "site3") if "bn3" in path else path.split(".downsample")[0] + ".site_skip"


def test_torchvisions_resnet_has_the_very_sites_of_ours() -> None:
    """The same weights and the same masks give the same numbers in training, gradients included."""
    torch.manual_seed(0)
    theirs = tv.ResNet(Bottleneck, [1, 1, 2, 2], num_classes=4).train()
    ours = ResNet(OurBottleneck, [1, 1, 2, 2], num_classes=4).train()
    ours.load_state_dict(theirs.state_dict())
    filled = {our_name(path): site for path, site in install_into(theirs, block3).items()}
    install(ours, block3, lambda site: True)
    assert set(filled) == set(declared_sites(ours))
    for i, (name, site) in enumerate(declared_sites(ours).items()):
        same = filled[name]
        assert (site.group, site.branch, site.ends_branch) == (same.group, same.branch, same.ends_branch)
        site.layer.set_mask_seed(i)
        filled[name].layer.set_mask_seed(i)
    x = torch.randn(4, 3, 64, 64)
    y, expected = theirs(x), ours(x)
    assert torch.equal(y, expected)
    y.square().sum().backward()
    expected.square().sum().backward()
    gradients = dict(ours.named_parameters())
    for name, p in theirs.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name].grad, msg=name)


def test_patterns_of_ones_own() -> None:
    """A projection that is an nn.Sequential gets no further step, and the first of two places on one side counts."""
    model = network("resnet")
    places = [
        Place("layer4.*.bn3", group=2, ends_branch=True),
        Place("layer[34].*.bn3", group=3),
        Place("layer4.0.downsample", group=4, branch="skip"),
        Place("layer4.1.downsample", "in", group=4, branch="skip"),
    ]
    filled = install_into(model, block3, places)
    assert {path: site.group for path, site in filled.items()} == {
        "layer3.0.bn3.site_after": 3,
        "layer3.1.bn3.site_after": 3,
        "layer4.0.bn3.site_after": 2,
        "layer4.1.bn3.site_after": 2,
        "layer4.0.downsample.1.site_after": 4,
        "layer4.1.downsample": 4,
    }
    assert len(model.layer4[0].downsample) == 2
    assert set(declare_sites(model, places)) == set(filled), "declaring again changes nothing"
    only = install_into(network("resnet"), block3, places, lambda site: site.branch == "skip")
    assert set(only) == {"layer4.0.downsample.1.site_after", "layer4.1.downsample"}


def test_a_shortcut_without_steps_takes_one() -> None:
    """GhostNet's identity shortcuts are empty nn.Sequentials, which would call a child and its hook."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential())
    install_into(model, block3, [Place("1", branch="skip")])
    assert list(map_sizes(model, torch.zeros(1, 3, 8, 8), declared_sites(model))) == ["1.site_after"]
    assert (model.train()(torch.ones(2, 3, 8, 8)) == 0).any()


def test_a_copy_has_layers_of_its_own() -> None:
    model = network("resnet").train()
    install_into(model, block3)
    twin = copy.deepcopy(model)
    twin(torch.randn(2, 3, 64, 64))
    assert all(layer.seen_units > 0 for layer in installed_layers(twin))
    assert all(layer.seen_units == 0 for layer in installed_layers(model))


def test_compiled_network_drops_the_same_units() -> None:
    """Without a graph break, and without recompilation when keep_prob and seed change."""
    torch._dynamo.reset()
    model = tv.ResNet(BasicBlock, [1, 1, 1, 2], num_classes=4).train()
    install_into(model, block3, sites=lambda site: site.group == 4)
    twin = copy.deepcopy(model)
    graphs: list[object] = []

    def count(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(twin, backend=count, fullgraph=True)
    x = torch.randn(4, 3, 64, 64)
    for step, keep_prob in enumerate((0.9, 0.5, 0.7)):
        for net in (model, twin):
            for i, layer in enumerate(installed_layers(net)):
                layer.keep_prob.fill_(keep_prob)
                layer.set_mask_seed(100 * step + i)
        torch.testing.assert_close(compiled(x), model(x))
    assert len(graphs) == 1
    counts = [[layer.kept_units.item() for layer in installed_layers(net)] for net in (model, twin)]
    assert counts[0] == counts[1]
    assert 0 < sum(counts[0]) < sum(layer.seen_units.item() for layer in installed_layers(model))


def test_mistakes_are_reported_in_one_line() -> None:
    model = network("resnet")
    with pytest.raises(ValueError, match=r"no module of ResNet matches 'layer9.\*.conv2'; near it: .*layer\d.\*.conv2"):
        declare_sites(model, [Place("layer9.*.conv2", "before")])
    with pytest.raises(ValueError, match=r"no slot that holds None of ResNet matches 'layer4.0.downsample'"):
        declare_sites(model, [Place("layer4.0.downsample", "in")])
    assert not declared_sites(model)
    with pytest.raises(ValueError, match="where must be one of before, after, in, out of reach, not 'behind'"):
        Place("layer4", "behind")
    with pytest.raises(ValueError, match="no places known for Sequential: give patterns"):
        declare_sites(nn.Sequential(nn.Conv2d(3, 3, 1)))
    convnext = network("convnext")
    with pytest.raises(ValueError, match="and the 8 asked for are out of reach"):
        install_into(convnext, block3, sites=lambda site: site.branch == "skip")


def test_a_module_called_thrice_or_without_maps_is_no_site() -> None:
    x = torch.zeros(1, 3, 64, 64)
    model = network("resnet")
    install_into(model, block3, [Place("layer4.0.relu")])
    with pytest.raises(ValueError, match=r"layer4.0.relu.site_after is called 3 times in one pass"):
        site_table(model, x, KeepProbSchedule(model, 0.9))
    model = network("resnet")
    install_into(model, block3, [Place("fc", "before")])
    with pytest.raises(ValueError, match=r"fc.site_before sees a tensor of shape \(1, 2048\)"):
        site_table(model, x, KeepProbSchedule(model, 0.9))
