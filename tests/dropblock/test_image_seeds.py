"""Masks of single images, for averages over masks: a function of the seed and the image, whatever the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dropblock import DropBlock1d, DropBlock2d, DropConnect, DropLayer, Dropout, DropPath, ShakeDrop, SpatialDropout
from dropblock.compat import timm, torchvision
from dropblock.operator import dense_each
from dropblock.rates import expected_drop, geometry, seed_rate
from dropblock.reference import dense_apply, dense_draw
from dropblock.sparse_cpu import positions_of_each

IMAGES = torch.arange(40)
LAYERS = {
    "block 3": DropBlock2d(block_size=3, keep_prob=0.8),
    "block 1": DropBlock2d(block_size=1, keep_prob=0.8),
    "whole map": DropBlock2d(block_size=7, keep_prob=0.7),
    "dropout": Dropout(keep_prob=0.8),
    "channels": SpatialDropout(keep_prob=0.7),
    "branch": DropPath(keep_prob=0.5),
    "shaken": ShakeDrop(keep_prob=0.5),
    "torchvision's": torchvision.DropBlock2d(0.3, block_size=3),
}


def dropped(layer: DropLayer, x: Tensor, images: Tensor, seed: int = 3) -> Tensor:
    layer.set_image_seeds(seed, images)
    return layer.train()(x)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels last"])
def test_an_image_is_dropped_alike_in_any_batch(layer: DropLayer, last: bool) -> None:
    x = torch.randn(len(IMAGES), 4, 6, 5, generator=torch.Generator().manual_seed(0))
    x = x.to(memory_format=torch.channels_last) if last else x
    whole = dropped(layer, x, IMAGES)
    some = torch.tensor([17, 3, 28])
    assert torch.equal(dropped(layer, x[some], IMAGES[some]), whole[some])
    assert not torch.equal(dropped(layer, x, IMAGES, seed=4), whole)
    assert len(dropped(layer, torch.ones_like(x), IMAGES).flatten(1).unique(dim=0)) > 1


@pytest.mark.parametrize("block", [1, 3, 4, 9])
def test_every_image_has_the_rate_and_a_normaliser_of_its_own(block: int) -> None:
    layer = DropBlock2d(block_size=block, keep_prob=0.8)
    ones = torch.ones(3000, 2, 8, 8)
    y = dropped(layer, ones, torch.arange(3000))
    kept = (y != 0).flatten(1).double().mean(1)
    # Over images, so the spread of their mean is known; 5 standard errors: one run in a million fails by chance.
    assert abs(kept.mean() - (1 - expected_drop(0.8, block, 8, 8))) < 5 * kept.std() / len(kept) ** 0.5
    means = y.flatten(1).double().mean(1)
    assert torch.allclose(means[kept > 0], torch.ones((), dtype=torch.float64), atol=1e-6)
    assert (means[kept == 0] == 0).all()
    assert int(layer.kept_units) == int((y != 0).sum())
    assert int(layer.seen_units) == y.numel()
    assert torch.isfinite(dropped(layer, torch.full_like(ones[:9], torch.nan), torch.arange(9))[y[:9] == 0]).all()


def test_dropout_of_single_images_is_scaled_by_its_rate() -> None:
    layer, ones = Dropout(keep_prob=0.8), torch.ones(500, 3, 8, 8)
    y = dropped(layer, ones, torch.arange(500))
    assert set(y.unique().tolist()) == {0.0, 1.25}
    share = (y == 0).double().mean().item()
    assert share == pytest.approx(0.2, abs=5 * (0.16 / y.numel()) ** 0.5)
    assert int(layer.kept_units) == int((y != 0).sum())
    assert not dropped(Dropout(keep_prob=0.0), ones, torch.arange(500)).any()


def test_block_seeds_of_each_are_independent_trials() -> None:
    """Counts of successes have the binomial's mean and variance, and every place its rate, near the ends as well."""
    trials, rate, count = 50, 0.06, 20_000
    found = positions_of_each(trials, rate, torch.arange(count)).long()
    assert torch.equal(found, found.sort().values)
    hits = torch.bincount(found, minlength=trials * count).view(count, trials).double()
    assert hits.max() == 1
    error = (rate * (1 - rate) / count) ** 0.5
    assert ((hits.mean(0) - rate).abs() < 5 * error).all()
    variance = trials * rate * (1 - rate)
    assert hits.sum(1).var().item() == pytest.approx(variance, rel=5 * (2 / count) ** 0.5 + 0.02)
    neighbours = (hits[:, 1:] * hits[:, :-1]).mean()
    assert neighbours.item() == pytest.approx(rate**2, abs=5 * rate / (count * trials) ** 0.5)
    for sure, number in ((0.0, 0), (1.0, 3 * trials)):
        assert len(positions_of_each(trials, sure, torch.arange(3))) == number


def test_the_dense_form_is_the_backend_image_by_image() -> None:
    x, seeds, keep_prob = torch.randn(5, 3, 7, 7), torch.arange(5) * 977, torch.tensor(0.7)
    y, kept = dense_each(x, keep_prob, 3, seeds)
    for image, seed, ours, count in zip(x, seeds, y, kept, strict=True):
        number, mask = dense_draw(image[None], keep_prob, 3, seed)
        assert torch.equal(dense_apply(image[None], number, mask, 3)[0], ours)
        assert number == count
    assert geometry(3, 7, 7).seeds * seed_rate(0.7, 3, 7, 7) > 1  # so that something is dropped


def test_signals_too_and_weights_are_drawn_once_for_all_images() -> None:
    x = torch.randn(6, 2, 9)
    layer = DropBlock1d(block_size=3, keep_prob=0.7)
    assert torch.equal(dropped(layer, x[2:4], torch.arange(2, 4)), dropped(layer, x, torch.arange(6))[2:4])
    weights = DropConnect(keep_prob=0.5)
    weight = torch.randn(6, 2, 3, 3)
    assert torch.equal(dropped(weights, weight, torch.arange(6)), dropped(weights, weight, torch.arange(2)))


def test_a_layer_with_a_drop_of_its_own_drops_single_images_by_it() -> None:
    class OneChannel(Dropout):
        def drop(self, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
            y, kept = super().drop(x[:, :1], seed)
            return y.expand_as(x), kept * x.shape[1]

    for layer in (timm.DropBlock2d(0.3, block_size=3), OneChannel(keep_prob=0.7)):
        y = dropped(layer, torch.ones(4, 3, 8, 8), torch.arange(4))
        assert ((y == 0) == (y[:, :1] == 0)).all()
        assert int(layer.kept_units) == int((y != 0).sum()) < y.numel()


def test_a_mask_seed_ends_the_masks_of_single_images() -> None:
    layer, x = DropBlock2d(block_size=3, keep_prob=0.7), torch.randn(4, 2, 7, 7)
    fresh = DropBlock2d(block_size=3, keep_prob=0.7)
    dropped(layer, x, torch.arange(4))
    for one in (layer, fresh):
        one.set_mask_seed(9)
    assert torch.equal(layer(x), fresh(x))
