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

from data import ClassificationBatch
from data.batch_regularizers import Mixup
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
    few, count = batch_of(2), 4000
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
    loss, sums = Classification("abcdefg", criterion).loss(nn.Identity(), mixed)
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
