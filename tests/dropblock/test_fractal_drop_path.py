"""FractalNet's drop-path as a layer: what it draws, how often, and that a seed fixes it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dropblock.fractal import FractalDropPath, uniforms

JOINS = ((2, 3), (1, 2, 3), (2, 3), (1, 2, 3))
SIZES = [len(columns) for columns in JOINS]


def draws(layer: FractalDropPath, number: int, offset: int = 0) -> Tensor:
    """(number, inputs) weights from as many seeds."""
    rows = []
    for seed in range(offset, offset + number):
        layer.set_mask_seed(seed * 7919 + 1)
        rows.append(layer(torch.ones(1, sum(SIZES), 1, 1)).flatten())
    return torch.stack(rows)


def test_every_join_keeps_one_input_and_its_mean() -> None:
    for keep_prob, share in ((0.85, 0.5), (0.0, 0.0), (0.3, 0.0), (0.5, 1.0)):
        for join in draws(FractalDropPath(JOINS, keep_prob=keep_prob, global_share=share), 100).split(SIZES, dim=1):
            kept = join > 0
            assert kept.any(dim=1).all()
            expected = kept * (join.shape[1] / kept.sum(1, keepdim=True))
            torch.testing.assert_close(join, expected, msg="weights of a mean over the kept inputs")


def test_global_draws_agree_over_the_network_and_reach_every_column() -> None:
    columns = torch.tensor([c for join in JOINS for c in join])
    seen = set()
    for weights in draws(FractalDropPath(JOINS, keep_prob=0.85, global_share=1.0), 60):
        per_join = [set(c[w > 0].tolist()) for c, w in zip(columns.split(SIZES), weights.split(SIZES), strict=True)]
        (column,) = per_join[1]
        assert all(
            kept == ({column} if column in join else set(join)) for kept, join in zip(per_join, JOINS, strict=True)
        )
        seen.add(column)
    assert seen == {1, 2, 3}


def test_local_draws_are_independent_between_joins() -> None:
    """Correlation of two inputs of different joins over 1000 mini-batches; 4.5 standard errors: false alarm 7e-6."""
    dropped = draws(FractalDropPath(JOINS, keep_prob=0.85, global_share=0.0), 1000) == 0
    a, b = dropped[:, 0].float(), dropped[:, 5].float()
    correlation = ((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std())
    assert abs(correlation.item()) < 4.5 / math.sqrt(1000)


@pytest.mark.parametrize(
    ("keep_prob", "share", "batches"),
    [(0.85, 0.0, 400), (0.85, 0.5, 1500), (0.85, 1.0, 400), (0.2, 0.0, 400), (0.0, 0.0, 400)],
)
def test_measured_drop_is_the_expected_one(keep_prob: float, share: float, batches: int) -> None:
    """Over some mini-batches, against 4.5 standard errors of the mean: false alarm 7e-6 a case."""
    layer = FractalDropPath(JOINS, keep_prob=keep_prob, global_share=share)
    per_batch = (draws(layer, batches, offset=10_000) == 0).double().mean(1)
    error = per_batch.std().item() / math.sqrt(batches)
    expected = layer.expected_drop(keep_prob)
    assert abs(per_batch.mean().item() - expected) <= 4.5 * error + 1e-9
    counted = 1 - layer.kept_units.item() / layer.seen_units.item()
    assert counted == pytest.approx(per_batch.mean().item())


def test_identity_in_evaluation_and_at_keep_prob_1() -> None:
    ones = torch.ones(1, sum(SIZES), 1, 1)
    assert torch.equal(FractalDropPath(JOINS, keep_prob=0.5).eval()(ones), ones)
    layer = FractalDropPath(JOINS, keep_prob=1.0)
    assert torch.equal(layer(ones), ones)
    assert layer.expected_drop(1.0) == 0.0


def test_a_seed_fixes_the_draw_and_nothing_is_saved() -> None:
    layer = FractalDropPath(JOINS)
    assert torch.equal(draws(layer, 5), draws(layer, 5))
    assert len({tuple(row.tolist()) for row in draws(layer, 20)}) > 5
    unseeded = FractalDropPath(JOINS)
    torch.manual_seed(0)
    first = [unseeded(torch.ones(1, sum(SIZES), 1, 1)) for _ in range(20)]
    assert len({tuple(row.flatten().tolist()) for row in first}) > 5
    assert not layer.state_dict()
    with pytest.raises(ValueError, match="global_share must lie in"):
        FractalDropPath(JOINS, keep_prob=0.85, global_share=1.5)


def test_uniforms_are_uniform() -> None:
    """Mean of 40 000 draws over neighbouring seeds; 4.5 standard errors: false alarm 7e-6 each of two."""
    u = torch.cat([uniforms(torch.tensor(seed), 40) for seed in range(1000)])
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean().item() - 0.5) < 4.5 * math.sqrt(1 / 12 / 40_000)
    assert abs(u.pow(2).mean().item() - 1 / 3) < 4.5 * math.sqrt(4 / 45 / 40_000)
