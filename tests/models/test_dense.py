"""The networks for segmentation and detection: sizes, counts, anchors, starts, state, weights for the body."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator

from dropblock import declared_sites
from models import build_model, load_pretrained
from models.anchors import Anchors, cell_anchors
from models.retinanet import DetectorOutput

SMALL = {"body": "resnet18", "width": 4, "fpn_width": 6, "head_width": 8, "stem": "stride2"}
DENSE = ("segmentation_fpn", "retinanet")


def small(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, num_classes=3, **{**SMALL, **options})


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def conv(inputs: int, outputs: int, kernel: int) -> int:
    return outputs * (inputs * kernel**2 + 1)


def pyramid_parameters(levels: int) -> int:
    laterals = sum(conv(channels, 256, 1) for channels in (512, 1024, 2048))
    return laterals + levels * (conv(256, 256, 3) + 2 * 256)


@pytest.mark.parametrize("classes", [80, 90])
def test_parameters_of_retinanet(classes: int) -> None:
    """34.0 M for the released network (tensorflow/tpu, detection/MODEL_ZOO.md), which has outputs for 90 classes."""
    with torch.device("meta"):
        model = build_model("retinanet", num_classes=classes)
        body = count(torchvision.models.resnet50()) - 2049 * 1000
    towers = 2 * 4 * (conv(256, 256, 3) + 5 * 2 * 256)
    assert count(model) == body + pyramid_parameters(5) + towers + conv(256, 9 * classes, 3) + conv(256, 36, 3)
    assert abs(count(model) - 34.0e6) < 0.15e6


def test_parameters_of_the_segmentation_network() -> None:
    with torch.device("meta"):
        model = build_model("segmentation_fpn", num_classes=21)
        body = count(torchvision.models.resnet101()) - 2049 * 1000
    head = 3 * (conv(256, 256, 3) + 3 * 2 * 256) + conv(256, 256, 3) + 2 * 256 + conv(256, 21, 3)
    assert count(model) == body + pyramid_parameters(3) + head


def test_segmentation_at_513_pixels_has_65_logits_a_side() -> None:
    with torch.device("meta"):
        model = build_model("segmentation_fpn", num_classes=21)
        sides: list[int] = []
        model.tower.convs[0].register_forward_hook(lambda _m, _i, y: sides.append(y.shape[-1]))
        logits = model(torch.zeros(2, 3, 513, 513))
    assert sides == [65, 33, 17]
    assert logits.shape == (2, 21, 65, 65)
    assert model.stride == 8


def test_detection_at_640_pixels_has_76725_anchors() -> None:
    with torch.device("meta"):
        output = build_model("retinanet", num_classes=80)(torch.zeros(2, 3, 640, 640))
    assert isinstance(output, DetectorOutput)
    assert output.class_logits.shape == (2, 76725, 80)
    assert output.box_deltas.shape == (2, 76725, 4)
    assert output.anchors.shape == (76725, 4)


def test_anchors_follow_the_formula() -> None:
    """Every anchor of 128 pixels from its own indices, in float64 (released code: retinanet/anchors.py)."""
    strides = (8, 16, 32, 64, 128)
    anchors = Anchors(strides)([torch.zeros(1, 1, 128 // s, 128 // s) for s in strides])
    expected = [
        (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
        for s in strides
        for cy in (s / 2 + i * s for i in range(128 // s))
        for cx in (s / 2 + i * s for i in range(128 // s))
        for octave in (0, 1, 2)
        for fx, fy in ((1, 1), (1.4, 0.7), (0.7, 1.4))
        for w, h in [(4 * s * 2 ** (octave / 3) * fx, 4 * s * 2 ** (octave / 3) * fy)]
    ]
    assert anchors.dtype == torch.float32
    torch.testing.assert_close(anchors.double(), torch.tensor(expected, dtype=torch.float64), atol=1e-4, rtol=0)


def test_torchvisions_generator_would_round_and_shift() -> None:
    """Why its cell anchors are replaced; fails when torchvision changes and the replacement should be looked at."""
    theirs = AnchorGenerator(((32.0 * 2 ** (1 / 3),),), ((1.0,),)).cell_anchors[0]
    assert torch.equal(theirs, torch.tensor([[-20.0, -20.0, 20.0, 20.0]]))
    assert torch.allclose(cell_anchors(8)[3], torch.tensor([-16.1587, -16.1587, 24.1587, 24.1587]), atol=1e-4)


def test_anchors_are_computed_once_for_a_size_and_stay_out_of_the_state() -> None:
    model = small("retinanet").eval()
    with torch.no_grad():
        first, again = (model(torch.zeros(1, 3, 64, 64)).anchors for _ in range(2))
        other = model(torch.zeros(1, 3, 64, 128)).anchors
    assert first is again
    assert len(other) > len(first)
    assert not any("anchor" in key for key in [*model.state_dict(), *dict(model.named_buffers())])


def test_rows_of_the_detector_belong_to_their_anchors() -> None:
    """A change in the corner of the image moves outputs near that corner, and no others, where a map is large."""
    model = small("retinanet").eval()
    x = torch.randn(1, 3, 256, 256)
    y = x.clone()
    y[..., :8, :8] += 10
    cells = 64 * 64 * 9  # of the finest level
    with torch.no_grad():
        a, b = model(x), model(y)
    centres = (a.anchors[:cells, :2] + a.anchors[:cells, 2:]) / 2
    for one, two in ((a.class_logits, b.class_logits), (a.box_deltas, b.box_deltas)):
        change = (one - two)[0, :cells].abs().amax(1)
        assert centres[change.argmax()].max() < 64


def test_start_of_training_says_one_percent_for_every_class() -> None:
    torch.manual_seed(0)
    output = small("retinanet").train()(torch.randn(2, 3, 64, 64))
    assert abs(output.class_logits.sigmoid().mean() - 0.01) < 0.001
    assert output.box_deltas.abs().max() < 0.5


@pytest.mark.parametrize("name", DENSE)
def test_batch_norm_has_the_released_constants_everywhere(name: str) -> None:
    for model, momentum in ((small(name), 0.003), (small(name, bn_momentum=0.1), 0.1)):
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-4, momentum)}


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    result = model(x)
    return list(result) if isinstance(result, tuple) else [result]


@pytest.mark.parametrize("name", DENSE)
def test_a_round_trip_of_the_state_keeps_the_outputs(name: str, tmp_path: Path) -> None:
    model, x = small(name), torch.randn(2, 3, 64, 64)
    outputs(model.train(), x)  # moves the running statistics
    torch.save(model.state_dict(), tmp_path / "state.pt")
    torch.manual_seed(7)
    other = build_model(name, num_classes=3, **SMALL)
    with torch.no_grad():
        assert not torch.equal(outputs(other.eval(), x)[0], outputs(model.eval(), x)[0])
        other.load_state_dict(torch.load(tmp_path / "state.pt"))
        pairs = zip(outputs(other.eval(), x), outputs(model, x), strict=True)
        assert all(torch.equal(one, two) for one, two in pairs)


@pytest.mark.parametrize("name", DENSE)
def test_every_parameter_gets_a_gradient_and_outputs_are_float32_under_autocast(name: str) -> None:
    model = small(name).train()
    with torch.autocast("cpu", torch.bfloat16):
        result = outputs(model, torch.randn(2, 3, 64, 64))
    assert all(y.dtype == torch.float32 for y in result)
    sum(y.square().mean() for y in result if y.requires_grad).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(("name", "heads"), [("segmentation_fpn", 3), ("retinanet", 8)])
def test_sites_stand_in_the_body_and_in_the_head(name: str, heads: int) -> None:
    with torch.device("meta"):
        sites = declared_sites(build_model(name, num_classes=3, body="resnet50"))
        body = declared_sites(build_model("resnet50", num_classes=3))
    assert [path.removeprefix("body.") for path, site in sites.items() if site.group != "head"] == list(body)
    assert sum(site.group == "head" for site in sites.values()) == heads


def test_a_frozen_stem_is_the_first_kernel_alone() -> None:
    model = small("segmentation_fpn", freeze_stem=True)
    assert [key for key, p in model.named_parameters() if not p.requires_grad] == ["body.conv1.weight"]


@pytest.mark.parametrize("name", DENSE)
def test_classifiers_weights_load_into_the_body(name: str, tmp_path: Path) -> None:
    classifier = build_model("resnet18", num_classes=7, width=4, stem="stride2")
    torch.save({"model": classifier.state_dict()}, tmp_path / "w.pt")
    model = small(name, pretrained=tmp_path / "w.pt")
    loaded = {key: value for key, value in classifier.state_dict().items() if not key.startswith("fc.")}
    assert all(torch.equal(model.body.state_dict()[key], value) for key, value in loaded.items())
    assert set(loaded) == set(model.body.state_dict())


def test_torchvisions_weights_load_into_the_body(tmp_path: Path) -> None:
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    model = build_model(
        "retinanet", num_classes=2, body="resnet18", fpn_width=8, head_width=8, pretrained=tmp_path / "w.pth"
    )
    assert torch.equal(model.body.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)


def test_what_does_not_fit_the_body_is_one_line(tmp_path: Path) -> None:
    torch.save(build_model("resnet50", num_classes=7, width=4).state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"not of this ResNet: .*unexpected layer1\.0\.conv3\.weight") as caught:
        small("retinanet", pretrained=tmp_path / "w.pt")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="RetinaNet has no module 'trunk'"):
        load_pretrained(small("retinanet"), tmp_path / "w.pt", into="trunk")
