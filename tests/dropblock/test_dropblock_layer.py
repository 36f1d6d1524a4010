"""The module: a keep_prob, a seed and two counters around the operator, and no trace in a checkpoint."""

from typing import Any

import pytest
import torch
from torch import nn

from dropblock import DropBlock2d, KeepProbSchedule, expected_drop, keep_prob_at, keep_prob_in_group


def small_network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), DropBlock2d(block_size=3, keep_prob=0.8), nn.ReLU()
    )


def test_it_leaves_no_key_in_a_state_dict() -> None:
    layer = DropBlock2d(block_size=7, keep_prob=0.9)
    assert layer.state_dict() == {}
    assert list(layer.parameters()) == []
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Identity(), nn.ReLU())
    assert small_network().state_dict().keys() == plain.state_dict().keys()


def test_it_is_the_identity_in_evaluation_and_counts_nothing_there() -> None:
    layer, x = DropBlock2d(block_size=3, keep_prob=0.5).eval(), torch.randn(2, 4, 8, 8)
    assert layer(x) is x
    assert int(layer.seen_units) == 0


def test_it_counts_what_it_kept() -> None:
    layer, x = DropBlock2d(block_size=7, keep_prob=0.9), torch.ones(64, 64, 14, 14)
    kept = sum(int((layer(x) != 0).sum()) for _ in range(2))
    assert int(layer.kept_units) == kept
    assert int(layer.seen_units) == 2 * x.numel()
    # 8192 maps; the share dropped of one map has a standard deviation of about .13: 5 sigma = .007, false alarm 6e-7.
    assert 1 - kept / (2 * x.numel()) == pytest.approx(layer.expected_drop(0.9, 14, 14), abs=0.0075)


def test_the_same_seed_gives_the_same_mask() -> None:
    layer, x = DropBlock2d(block_size=3, keep_prob=0.7), torch.ones(4, 8, 9, 9)
    outputs = []
    for seed in (5, 6, 5):
        layer.set_mask_seed(seed)
        outputs.append(layer(x))
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], outputs[1])


def test_in_a_head_the_levels_have_masks_of_their_own() -> None:
    """Every unit is a block of its own: equal draws would give the second map the first one's beginning."""

    def masks(group: int | str) -> list[torch.Tensor]:
        layer = DropBlock2d(block_size=1, keep_prob=0.5)
        layer.group = group
        layer.set_mask_seed(5)
        return [layer(torch.ones(1, 1, side, 32)).ne(0) for side in (32, 16)]

    (body, body_again), (head, head_again), repeated = masks(3), masks("head"), masks("head")
    assert torch.equal(body[:, :, :16], body_again)
    agreement = (head[:, :, :16] == head_again).float().mean()  # 512 fair draws: beyond 0.1 in 1 of 10^5 seeds
    assert abs(agreement - 0.5) < 0.1
    assert torch.equal(head, repeated[0])


def test_before_a_seed_was_set_torch_manual_seed_governs() -> None:
    layer, x = DropBlock2d(block_size=3, keep_prob=0.7), torch.ones(4, 8, 9, 9)
    torch.manual_seed(1)
    first, second = layer(x), layer(x)
    torch.manual_seed(1)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)


def test_it_tells_its_rates() -> None:
    layer = DropBlock2d(block_size=7, keep_prob=0.9)
    assert layer.block(5, 20) == (5, 7)
    assert layer.expected_drop(0.9, 14, 14) == expected_drop(0.9, 7, 14, 14)
    assert repr(layer) == "DropBlock2d(block_size=7, keep_prob=0.9)"
    layer.keep_prob.fill_(0.95)
    assert "keep_prob=0.95" in repr(layer)


@pytest.mark.parametrize(("block", "keep_prob"), [(0, 0.9), (7, 1.1), (7, -0.1)])
def test_impossible_layers_are_refused(block: int, keep_prob: float) -> None:
    with pytest.raises(ValueError, match="must"):
        DropBlock2d(block_size=block, keep_prob=keep_prob)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"keep_prob": True}, "keep_prob must be a number"),
        ({"p": False}, "p must be a number"),
        ({"block_size": True}, "block_size must be an integer, not True"),
    ],
)
def test_arguments_of_another_type_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        DropBlock2d(**arguments)


def test_values_of_the_schedule() -> None:
    assert keep_prob_at(0.9, 0.0) == 1.0
    assert keep_prob_at(0.9, 0.5) == pytest.approx(0.95)
    assert keep_prob_at(0.9, 1.0) == pytest.approx(0.9)
    assert keep_prob_at(0.9, 0.0, "constant") == 0.9
    assert keep_prob_in_group(0.9, 4) == pytest.approx(0.9)
    assert keep_prob_in_group(0.9, 3) == pytest.approx(0.975)
    assert keep_prob_in_group(0.9, 2) == pytest.approx(1 - 0.1 / 16)
    assert keep_prob_in_group(0.9, 3, divisor=1.0) == pytest.approx(0.9)
    for wrong in ((1.1, 0.5, "linear"), (0.9, 1.5, "linear"), (0.9, 0.5, "quadratic")):
        with pytest.raises(ValueError, match=r"must lie|unknown schedule"):
            keep_prob_at(*wrong)


def test_the_schedule_fills_every_layer_by_its_group() -> None:
    network = nn.Sequential(small_network(), small_network())
    network[0][2].group, network[1][2].group = 3, 4
    assert KeepProbSchedule(network, 0.9, group_divisor=4.0).set(0.5) == pytest.approx(0.95)
    assert network[0][2].keep_prob.item() == pytest.approx(1 - 0.05 / 4)
    assert network[1][2].keep_prob.item() == pytest.approx(0.95)
    with pytest.raises(ValueError, match="no layer"):
        KeepProbSchedule(nn.ReLU(), 0.9)
