"""Draws by seed and position, and what a layer of one's own makes of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dropblock import (
    DropLayer,
    KeepProbSchedule,
    LayerControl,
    Site,
    apply_mask,
    install,
    random_mask,
    random_uniform,
    table_text,
)

SEED = torch.tensor(7)


def test_uniform_draws_are_uniform_and_a_function_of_the_seed() -> None:
    drawn = random_uniform((4, 250_000), SEED)
    assert torch.equal(drawn, random_uniform((4, 250_000), SEED))
    assert drawn.dtype == torch.float32
    assert 0.0 <= drawn.min() < drawn.max() < 1.0
    counts = torch.bincount((drawn.flatten() * 16).long(), minlength=16).double()
    # Chi-squared with 15 degrees of freedom; above 60 with probability 2e-7.
    assert ((counts - 62_500) ** 2 / 62_500).sum() < 60
    other = random_uniform((4, 250_000), SEED + 1)
    # The correlation of a million independent pairs: standard error 0.001; five of them, 6e-7.
    for a, b in ((drawn, other), (drawn[0], drawn[1]), (drawn[:, :-1], drawn[:, 1:])):
        r = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1]
        assert abs(r) < 5 / math.sqrt(a.numel())


def test_a_mask_keeps_what_is_asked_also_where_keep_prob_differs_by_place() -> None:
    keep_prob = torch.tensor([[0.0], [0.25], [1.0]])
    shares = random_mask((3, 100_000), keep_prob, SEED).double().mean(1)
    # Standard error 0.00137; five of them, 6e-7.
    assert (shares[0], shares[2]) == (0.0, 1.0)
    assert abs(shares[1] - 0.25) < 5 * 0.00137


class Rows(DropLayer):
    """Drops whole rows, as a user would write it."""

    def drop(self, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        rows = random_mask((*x.shape[:3], 1), self.keep_prob, seed)
        return apply_mask(x, rows.expand_as(x))


def test_a_layer_with_a_mask_of_its_own_needs_one_method() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), Site(4, "conv", "conv"))
    install(model, lambda site: Rows(keep_prob=0.7))
    layers = LayerControl(model, torch.zeros(1, 1, 8, 8), {"rows": KeepProbSchedule(model, 0.7, "constant")})
    assert "4x8x8  -      0.7" in table_text(layers.table)
    layers.set_seeds(lambda i: i + 3)
    x = torch.randn(256, 1, 8, 8)
    y = torch.compile(model, backend="eager", fullgraph=True)(x)
    dropped = (y == 0).all(-1)
    assert torch.equal((y == 0).any(-1), dropped)
    (row,) = layers.drops([0.0])
    # 8,192 rows, standard error 0.0051; five of them, 6e-7.
    assert row.measured is not None
    assert abs(row.measured - 0.3) < 5 * 0.0051
    kept = y[~dropped].sum() / model[0](x).detach()[~dropped].sum()
    assert abs(kept - 1 / (1 - row.measured)) < 1e-3
