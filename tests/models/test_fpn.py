"""Pyramid and shared heads against torchvision's pyramid and the rules of the released code."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torchvision.ops import FeaturePyramidNetwork

from dropblock import DropBlock2d
from models import build_model
from models.fpn import FeaturePyramid, SharedTower, bilinear_pyramid, resize


def maps(*sides: int, channels: tuple[int, ...] = (4, 6, 8)) -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(2, c, side, side) for c, side in zip(channels, sides, strict=True)]


def test_stages_are_the_groups_outputs_and_features_the_last() -> None:
    torch.manual_seed(0)
    model = build_model("resnet50", num_classes=3, width=4).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        stages = model.stages(x)
        assert torch.equal(model.features(x), stages[-1])
        assert torch.equal(model(x), model.fc(stages[-1].mean((2, 3))))
    assert [tuple(c.shape[1:]) for c in stages] == [(16, 16, 16), (32, 8, 8), (64, 4, 4), (128, 2, 2)]
    assert model.channels == (16, 32, 64, 128)
    assert model.strides == (4, 8, 16, 32)


@pytest.mark.parametrize(
    ("stem", "strides"), [("imagenet", (4, 8, 16, 32)), ("stride2", (2, 4, 8, 16)), ("small", (1, 2, 4, 8))]
)
def test_strides_are_what_the_maps_show(stem: str, strides: tuple[int, ...]) -> None:
    with torch.device("meta"):
        model = build_model("resnet18", num_classes=3, width=4, stem=stem)
        sides = [64 // c.shape[-1] for c in model.stages(torch.zeros(1, 3, 64, 64))]
    assert model.strides == strides == tuple(sides)


def test_a_bilinear_pyramid_differs_from_torchvisions_in_the_resizing_only() -> None:
    torch.manual_seed(0)
    fpn = FeaturePyramidNetwork([4, 6, 8], 5)

    def theirs(x: list[torch.Tensor]) -> list[torch.Tensor]:
        return [*fpn(OrderedDict((str(i), level) for i, level in enumerate(x))).values()]

    flat = [x.mean((2, 3), keepdim=True).expand_as(x) for x in maps(9, 5, 3)]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(bilinear_pyramid(fpn, flat), theirs(flat), strict=True))
    x = maps(9, 5, 3)
    c3, c4, c5 = (block(y) for block, y in zip(fpn.inner_blocks, x, strict=True))
    c4 = c4 + F.interpolate(c5, (5, 5), mode="bilinear", align_corners=True)
    c3 = c3 + F.interpolate(c4, (9, 9), mode="bilinear", align_corners=True)
    expected = [block(y) for block, y in zip(fpn.layer_blocks, (c3, c4, c5), strict=True)]
    assert all(torch.equal(a, b) for a, b in zip(bilinear_pyramid(fpn, x), expected, strict=True))
    assert not torch.allclose(theirs(x)[0], expected[0], atol=1e-3)


@pytest.mark.parametrize("stem", ["imagenet", "stride2", "small"])
def test_levels_lie_at_their_positions_at_every_size(stem: str) -> None:
    """A ramp of the pixel positions, taken at the positions of a level, comes out as the ramp of the finest one."""
    with torch.device("meta"):
        model = build_model("segmentation_fpn", num_classes=2, body="resnet18", width=4, stem=stem)
    _, fine, *coarser = model.body.strides
    for side in (33, 40, 47, 64, 65, 96, 97, 101, 240, 241, 480, 513):
        finest = torch.arange(0, side, fine).double().expand(1, 1, -(-side // fine), -1)
        for stride in coarser:
            ramp = torch.arange(0, side, stride).double().expand(1, 1, -(-side // stride), -1)
            placed = resize(ramp, finest, stride // fine)
            assert placed.shape == finest.shape
            assert torch.allclose(placed, finest.clamp(max=ramp.max().item()), atol=1e-9)
            if (side - 1) % stride == 0:  # the released code's
                theirs = F.interpolate(ramp, finest.shape[-2:], mode="bilinear", align_corners=True)
                assert torch.equal(placed, theirs)


def test_nearest_neighbours_are_those_by_position_at_every_size() -> None:
    """RetinaNet's rule needs no change: position i of a level takes i // 2 of the next, for odd sides as for even."""
    for side in range(1, 200):
        coarse = torch.arange(-(-side // 2)).double().expand(1, 1, 1, -1)
        assert F.interpolate(coarse, (1, side), mode="nearest")[0, 0, 0].tolist() == [i // 2 for i in range(side)]


def test_coarse_levels_read_p5_and_relu_p6_before_their_bns() -> None:
    torch.manual_seed(0)
    pyramid = FeaturePyramid([4, 6, 8], 5, coarse=True, bilinear=False)
    for norm in pyramid.norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
    before = pyramid.fpn(OrderedDict((str(i), x) for i, x in enumerate(maps(16, 8, 4))))
    _, _, p5, p6, p7 = before.values()
    extra = pyramid.fpn.extra_blocks
    assert torch.equal(p6, extra.p6(p5))
    assert torch.equal(p7, extra.p7(p6.relu()))
    outputs = pyramid.eval()(maps(16, 8, 4))
    assert [y.shape[-1] for y in outputs] == [16, 8, 4, 2, 1]
    for norm, x, y in zip(pyramid.norms, before.values(), outputs, strict=True):
        assert torch.equal(y, norm(x))
    assert outputs[0].min() < 0, "no ReLU behind the BN"


def test_start_of_the_pyramid_is_glorot_with_biases_0() -> None:
    torch.manual_seed(0)
    fpn = FeaturePyramid([64, 128, 512], 64, coarse=True, bilinear=False).fpn
    convs = [module for module in fpn.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == 8
    for conv in convs:
        area = conv.weight[0, 0].numel()
        limit = (6 / (area * (conv.in_channels + conv.out_channels))) ** 0.5
        assert 0.98 * limit < conv.weight.abs().max() <= limit
        assert conv.bias.eq(0).all()


def test_a_tower_shares_convolutions_and_keeps_one_bn_a_level() -> None:
    torch.manual_seed(0)
    tower = SharedTower(4, 6, depth=2, levels=3, name="class")
    inputs = maps(8, 4, 2, channels=(4, 4, 4))
    inputs[1] = 3 * inputs[1] + 1  # another distribution
    outputs = tower(inputs)
    first = [norms.running_mean.clone() for norms in tower.norms[0]]
    assert not torch.allclose(first[0], first[1])
    for level, (x, y) in enumerate(zip(inputs, outputs, strict=True)):
        for i in range(2):
            x = tower.convs[i](x)
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, unbiased=False)
            x = ((x - mean) / (var + tower.norms[i][level].eps).sqrt()).relu()
        assert torch.allclose(x, y, atol=1e-5), level


def test_the_tower_meets_each_of_its_sites_once_a_level_after_the_relu() -> None:
    tower = SharedTower(4, 6, depth=2, levels=3, name="class")
    seen: dict[int, list[Tensor]] = {0: [], 1: []}
    for i, site in enumerate(tower.sites):
        assert site.group == "head"
        site.register_forward_hook(lambda _m, _i, y, i=i: seen[i].append(y))
    tower(maps(8, 4, 2, channels=(4, 4, 4)))
    for calls in seen.values():
        assert [y.shape[-1] for y in calls] == [8, 4, 2]
        assert all(y.min() == 0 for y in calls)


def test_two_levels_of_one_size_have_masks_of_their_own_that_checkpointing_and_compile_keep() -> None:
    torch.manual_seed(0)
    tower = SharedTower(4, 64, depth=1, levels=3, name="class")
    seen: list[Tensor] = []
    site = tower.sites[0]
    site.layer = DropBlock2d(block_size=1, keep_prob=0.5)
    site.layer.group = "head"
    site.layer.set_mask_seed(5)
    # Ones behind the ReLU: a unit is 0 only where it was dropped.
    for norm in tower.norms[0]:
        nn.init.zeros_(norm.weight)
        nn.init.ones_(norm.bias)
    site.register_forward_hook(lambda _m, _i, y: seen.append(y.detach() != 0))
    inputs = [x.requires_grad_() for x in maps(4, 2, 2, channels=(4, 4, 4))]

    masks = [y != 0 for y in tower(inputs)]
    agreement = (masks[1] == masks[2]).float().mean()  # 512 fair draws: beyond 0.1 in 1 of 10^5 seeds
    assert abs(agreement - 0.5) < 0.1

    # Recomputed in backward, level by level and last level first.
    def level(i: int, x: Tensor) -> Tensor:
        return site(torch.relu(tower.norms[0][i](tower.convs[0](x))), i).square()

    seen.clear()
    sum(checkpoint(level, i, x, use_reentrant=False).sum() for i, x in enumerate(inputs)).backward()
    assert len(seen) == 6
    assert all(torch.equal(one, mask) for one, mask in zip([*seen[:3], *seen[:2:-1]], [*masks, *masks], strict=True))

    compiled = torch.compile(tower, fullgraph=True, backend="aot_eager")
    assert all(torch.equal(y != 0, mask) for y, mask in zip(compiled(inputs), masks, strict=True))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"body": "resnet51"}, "unknown body 'resnet51', choose one of resnet18, "),
        ({"head_depth": 0}, "head_depth must be at least 1"),
        ({"head_depth": 1.5}, r"model\.options\.head_depth=1\.5: must be of type int"),
        ({"bn_momentum": "small"}, r"model\.options\.bn_momentum=small: must be of type float"),
        ({"head_width": 0}, "head_width must be at least 1"),
        ({"fpn_width": 0}, "fpn_width must be at least 1"),
        ({"bn_momentum": 0.0}, "bn_momentum must lie in"),
        ({"head_deep": 3}, "takes no option 'head_deep'"),
        ({"stem": "large"}, "unknown stem 'large'"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason), torch.device("meta"):
        build_model("retinanet", num_classes=2, **options)
