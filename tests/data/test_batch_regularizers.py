"""Batch regularizers: what becomes of images and targets, and what decides the draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from configs.checking import UserError
from configs.compose import plan_of
from data import ClassificationBatch
from data.batch_regularizers import CutMix, Mixup, MixupCutMix
from engine.seeding import mix
from engine.tasks import Classification
from engine.tasks.losses import LabelSmoothing


def batch_of(count: int, classes: int = 7) -> ClassificationBatch:
    draws = torch.Generator().manual_seed(3)
    images = torch.randn(count, 3, 6, 6, generator=draws).contiguous(memory_format=torch.channels_last)
    return ClassificationBatch(images, torch.randint(classes, (count,), generator=draws), torch.arange(count))


def test_mixup_is_the_batch_and_another_order_of_it() -> None:
    batch = batch_of(64)
    mixed = Mixup(alpha=1.0)(batch, partial(mix, 5))
    assert mixed.share is not None
    assert mixed.other_labels is not None
    assert 0 < mixed.share < 1
    assert torch.equal(mixed.labels, batch.labels)
    assert sorted(mixed.other_labels.tolist()) == sorted(batch.labels.tolist())
    assert mixed.images.is_contiguous(memory_format=torch.channels_last)
    rest = (mixed.images - mixed.share * batch.images) / (1 - mixed.share)
    others = torch.cdist(rest.flatten(1), batch.images.flatten(1)).argmin(1)
    assert sorted(others.tolist()) == list(range(64))
    assert torch.equal(batch.labels[others], mixed.other_labels)
    torch.testing.assert_close(rest, batch.images[others], rtol=1e-3, atol=1e-3)


def test_mixup_draws_from_its_seeds_alone() -> None:
    batch, seen = batch_of(16), []
    for seed in (1, 2, 1):
        np.random.seed(seed + 7)
        seen.append(Mixup(alpha=0.4)(batch, partial(mix, seed)))
    assert (seen[0].share, seen[0].images.tolist()) == (seen[2].share, seen[2].images.tolist())
    assert seen[0].share != seen[1].share


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_the_share_has_the_beta_distribution(alpha: float) -> None:
    few, count = batch_of(2), 1500
    shares = np.array([Mixup(alpha)(few, partial(mix, seed)).share for seed in range(count)])
    # Mean 1/2, variance 1 / (4 (2 alpha + 1)); five standard errors of each (the variance's from the fourth moment).
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 5 * np.sqrt(variance / count)
    squares = (shares - 0.5) ** 2
    assert abs(squares.mean() - variance) < 5 * squares.std() / np.sqrt(count)


@pytest.mark.parametrize("criterion", [F.cross_entropy, LabelSmoothing(0.1)])
def test_the_loss_of_a_mixed_batch_is_that_of_the_mixed_target(criterion: Callable[..., torch.Tensor]) -> None:
    batch, logits = batch_of(30), torch.randn(30, 7)
    mixed = replace(batch, images=logits, other_labels=batch.labels.roll(1), share=0.3)
    loss, _, sums = Classification("abcdefg", criterion).loss(nn.Identity(), mixed)
    target = 0.3 * F.one_hot(mixed.labels, 7) + 0.7 * F.one_hot(batch.labels.roll(1), 7)
    if isinstance(criterion, LabelSmoothing):  # as timm's `mixup_target`
        target = 0.9 * target + 0.1 / 7
    torch.testing.assert_close(loss, -(target * logits.log_softmax(1)).sum(1).mean())
    assert sums[1] == (logits.argmax(1) == batch.labels.roll(1)).sum()  # the larger part


def test_a_mixed_batch_splits_and_a_plain_one_is_as_it_was() -> None:
    batch = batch_of(7)
    assert [*batch.plain()] == ["images", "labels", "indices"]
    mixed = Mixup(1.0)(batch, partial(mix, 5))
    first, second = mixed.split(2)
    assert first.share == second.share == mixed.share
    assert torch.equal(torch.cat([first.other_labels, second.other_labels]), mixed.other_labels)  # type: ignore[list-item]


def test_cutmix_by_hand() -> None:
    class Drawn:
        """Probability, share, centre and order as written here."""

        def __init__(self, seed: int) -> None:
            self.centers = [1, 5]

        random_sample = staticmethod(lambda: 0.49)
        beta = staticmethod(lambda a, b: 0.75)  # sides of half an image: 6 x sqrt(1/4) = 3, and 2 as halves are cut
        permutation = staticmethod(lambda count: np.array([2, 0, 1]))

        def randint(self, size: int) -> int:
            return self.centers.pop(0)

    batch = batch_of(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "RandomState", Drawn)
        mixed = CutMix(alpha=1.0, probability=0.5)(batch, partial(mix, 5))
        assert CutMix(alpha=1.0, probability=0.49)(batch, partial(mix, 5)) is batch
    # Rows 0 and 1 around row 1; columns 4 and 5 around column 5: 4 of 36 pixels.
    expected = batch.images.clone()
    expected[:, :, :2, 4:] = batch.images[[2, 0, 1], :, :2, 4:]
    assert torch.equal(mixed.images, expected)
    assert mixed.images.is_contiguous(memory_format=torch.channels_last)
    assert mixed.share == pytest.approx(1 - 4 / 36)
    assert torch.equal(mixed.labels, batch.labels)
    assert torch.equal(mixed.other_labels, batch.labels[[2, 0, 1]])  # type: ignore[arg-type]


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_boxes_of_cutmix_have_the_areas_of_the_definition(alpha: float) -> None:
    change, count, (height, width) = CutMix(alpha, 1.0), 4000, (200, 300)
    draws = np.random.RandomState(0)
    found = [change.box(height, width, draws) for _ in range(count)]
    areas = np.array([(r.stop - r.start) * (c.stop - c.start) for r, c in found]) / (height * width)
    # By the definition with numbers of its own: r = size x sqrt(1 - share), centre anywhere, cut at the border.
    own = np.random.default_rng(0)
    share, centers = own.beta(alpha, alpha, 100_000), own.random((2, 100_000))
    half = np.sqrt(1 - share) / 2
    low, high = np.maximum(centers - half, 0), np.minimum(centers + half, 1)
    expected = np.prod(high - low, axis=0)
    for power in (1, 2):
        error = 5 * (expected**power).std() / np.sqrt(count)
        assert (areas**power).mean() == pytest.approx((expected**power).mean(), abs=error + 0.01)  # whole pixels
    tops = np.array([r.start for r, _ in found])
    assert (tops == 0).mean() == pytest.approx((low[0] * height < 1).mean(), abs=0.05)


def test_the_share_is_that_of_the_pixels_that_were_kept() -> None:
    count = 8
    images = torch.arange(count).float()[:, None, None, None].expand(count, 1, 24, 16)
    batch = ClassificationBatch(images, torch.arange(count), torch.arange(count))
    shares = []
    for seed in range(30):
        mixed = CutMix(1.0, 1.0)(batch, partial(mix, seed))
        assert mixed.share is not None
        assert mixed.other_labels is not None
        moved = mixed.other_labels != mixed.labels
        kept = (mixed.images == images).float().mean((1, 2, 3))
        assert torch.allclose(kept[moved], torch.tensor(mixed.share))
        assert {*mixed.images.flatten(1)[0].tolist()} <= {0.0, float(mixed.other_labels[0])}
        shares.append(mixed.share)
    assert len({*shares}) > 15


def test_a_switch_between_mixup_and_cutmix() -> None:
    batch, cut = batch_of(16), 0
    change = MixupCutMix(mixup_alpha=0.8, cutmix_alpha=1.0, switch=0.25)
    for seed in range(200):
        seed_of = partial(mix, seed)
        found = change(batch, seed_of)
        as_cutmix = CutMix(1.0, 1.0)(batch, seed_of)
        is_cut = torch.equal(found.images, as_cutmix.images)
        assert is_cut or torch.equal(found.images, Mixup(0.8)(batch, seed_of).images)
        cut += is_cut
    assert cut / 200 == pytest.approx(0.25, abs=5 * np.sqrt(0.25 * 0.75 / 200))


@pytest.mark.parametrize("change", [CutMix(1.0, 0.7), MixupCutMix(0.8, 1.0, 0.5)])
def test_draws_are_those_of_the_seeds_alone(change: Callable[..., ClassificationBatch]) -> None:
    batch, seen = batch_of(16), []
    for seed in (1, 2, 1):
        np.random.seed(seed + 7)
        torch.manual_seed(seed)
        seen.append(change(batch, partial(mix, seed)))
    assert torch.equal(seen[0].images, seen[2].images)
    assert not torch.equal(seen[0].images, seen[1].images)


def test_the_gradient_of_a_mixed_batch_is_that_of_the_dense_target() -> None:
    network, batch = nn.Sequential(nn.Flatten(), nn.Linear(108, 7)), batch_of(20)
    mixed = CutMix(1.0, 1.0)(batch, partial(mix, 11))
    assert mixed.share is not None
    assert mixed.other_labels is not None
    loss, *_ = Classification("abcdefg").loss(network, mixed)
    found = torch.autograd.grad(loss, list(network.parameters()))
    target = mixed.share * F.one_hot(mixed.labels, 7) + (1 - mixed.share) * F.one_hot(mixed.other_labels, 7)
    dense = F.cross_entropy(network(mixed.images), target)
    torch.testing.assert_close(loss, dense)
    torch.testing.assert_close(found, torch.autograd.grad(dense, list(network.parameters())))


def test_two_that_mix_are_refused_in_favour_of_their_union() -> None:
    with pytest.raises(UserError, match=r"regularizer=\[.*mixup.*\].*mixup_cutmix"):
        plan_of("data=digits", "regularizer=[mixup,cutmix]")
    for name in ("cutmix", "mixup_cutmix", "trivialaugment", "random_erasing"):
        with pytest.raises(UserError, match=f"regularizer={name}"):
            plan_of("data=digit_masks", f"regularizer={name}")
