"""Batched augmentation against the same thing done image by image; the law of the draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision import transforms

from configs.schema import AugmentConfig
from data import Loading, draws, splits
from data.image_regularizers import AutoAugment, Cutout
from data.tensors import TensorLoader


def test_crop_flip_and_cutout_are_those_of_each_image_by_itself() -> None:
    images = torch.randint(0, 256, (50, 3, 12, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    statistics = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    loading = Loading(10, seed=3, regularizers=[Cutout(5 / 12)])
    augment = AugmentConfig(crop_padding=2, flip=True)
    loader = TensorLoader(images.numpy(), np.arange(50), loading.batches(50, True), statistics, augment, loading)
    plain = transforms.Normalize(*statistics)
    seen = set()
    for batch in loader.epoch(7):
        for picture, index in zip(batch.images, batch.indices.tolist(), strict=True):
            top, left, flip, row, column = draws.uniforms(3, 7, np.array([index]), 0, 5)[0]
            t, x = int(top * 5), int(left * 5)
            expected = F.pad(images[index], [2] * 4)[:, t : t + 12, x : x + 9]
            expected = plain((expected.flip(-1) if flip < 0.5 else expected) / 255)
            t, x = int(row * 12) - 2, int(column * 9) - 2
            expected[:, max(t, 0) : max(t + 5, 0), max(x, 0) : max(x + 5, 0)] = 0
            assert torch.allclose(picture, expected, atol=1e-5)
            seen.add(index)
    assert len(seen) == 50


@pytest.mark.parametrize("side", [1, 8, 16, 33])
def test_cutout_is_centred_anywhere_and_cut_at_the_border(side: int) -> None:
    ends = torch.tensor([[0, 0], [31, 31], [16, 16]])
    holes = Cutout(side / 32).at(torch.ones(3, 32, 32, 2), ends) == 0
    first, last = side // 2, side - side // 2  # pixels of the square before its centre pixel, and from it on
    expected = [2 * min(last, 32) ** 2, 2 * min(first + 1, 32) ** 2, 2 * min(side, 32) ** 2]
    assert holes.sum((1, 2, 3)).tolist() == expected


def test_a_pick_reaches_every_choice_and_none_beyond() -> None:
    edge = np.array([0.0, 0.5, 1.0 - 2.0**-53])
    for choices in (1, 2, 5, 9, 224, 1000):
        assert draws.pick(edge, choices).tolist() == [0, choices // 2, choices - 1]


def test_draws_do_not_depend_on_company_and_fill_the_unit_interval_evenly() -> None:
    many = draws.uniforms(5, 2, np.arange(20_000), 0, 4)
    assert np.array_equal(many[[7, 13_000]], draws.uniforms(5, 2, np.array([7, 13_000]), 0, 4))
    assert np.array_equal(many[:, 2:], draws.uniforms(5, 2, np.arange(20_000), 2, 2))
    # 80,000 uniforms in 64 bins: chi-square with 63 degrees of freedom, above 120.8 with probability 1.6e-5 under the
    # null; the seeds are fixed, so the outcome is too.
    counts = np.bincount((many.ravel() * 64).astype(int), minlength=64)
    assert ((counts - 1250) ** 2 / 1250).sum() < 120.8
    # Neighbours in every part of the key are unrelated: |correlation| of 20,000 pairs below 5 / sqrt(20,000), false
    # alarm 6e-7 each.
    for other in (draws.uniforms(6, 2, np.arange(20_000), 0, 4), draws.uniforms(5, 3, np.arange(20_000), 0, 4)):
        assert abs(np.corrcoef(many.ravel()[:20_000], other.ravel()[:20_000])[0, 1]) < 5 / 20_000**0.5
    assert abs(np.corrcoef(many[:-1, 0], many[1:, 0])[0, 1]) < 5 / 20_000**0.5
    assert abs(np.corrcoef(many[:, 0], many[:, 1])[0, 1]) < 5 / 20_000**0.5


def test_permutations_are_permutations_and_the_same_everywhere() -> None:
    order = draws.permutation(0, 0, 1000)
    assert np.array_equal(np.sort(order), np.arange(1000))
    assert not np.array_equal(order, draws.permutation(0, 1, 1000))
    # Written down once: a change of these numbers would change every published run.
    assert draws.permutation(1, 2, 8).tolist() == PERMUTATION
    assert draws.hashed(1, -1, 2**64 + 3).tolist() == draws.hashed(1, 2**64 - 1, 3).tolist()


PERMUTATION = [3, 2, 7, 1, 5, 0, 4, 6]


def test_stratified_choice_is_in_proportion_to_the_last_sample() -> None:
    labels = np.repeat([0, 1, 2, 3], [1000, 100, 10, 1])[draws.permutation(0, 0, 1111)]
    chosen = splits.stratified(labels, 112, splits.VAL)
    assert len(chosen) == len(set(chosen.tolist())) == 112
    assert np.bincount(labels[chosen], minlength=4).tolist() == [101, 10, 1, 0]
    assert splits.stratified(labels, 0, splits.VAL).size == 0
    assert splits.stratified(labels, 1111, splits.VAL).tolist() == list(range(1111))


@pytest.mark.parametrize(("samples", "batch", "world"), [(10, 4, 4), (9, 8, 8), (1, 4, 2), (17, 5, 3), (16, 4, 2)])
def test_every_evaluation_sample_goes_to_one_rank(samples: int, batch: int, world: int) -> None:
    ranks = [splits.Batches(samples, batch, rank=rank, world_size=world) for rank in range(world)]
    shares = [list(rank.epoch(0)) for rank in ranks]
    assert [len(share) for share in shares] == [len(rank) for rank in ranks]
    assert all(len(part) for share in shares for part in share)
    assert sorted(i for share in shares for part in share for i in part.tolist()) == list(range(samples))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", ["imagenet", "cifar10", "svhn"])
def test_autoaugment_is_a_function_of_its_key_and_leaves_the_global_generator_alone(policy: str, channels: int) -> None:
    apply = AutoAugment(policy).on_image
    image = np.random.default_rng(0).integers(0, 256, (32, 32, channels), np.uint8)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    keys = [draws.Draws(np.zeros(0), 1, 2, index) for index in range(20)]
    outcomes = [apply(image, key) for key in keys]
    assert torch.equal(torch.rand(3), expected)
    assert all(outcome.shape == image.shape and outcome.dtype == np.uint8 for outcome in outcomes)
    assert all(np.array_equal(apply(image, key), outcome) for key, outcome in zip(keys, outcomes, strict=True))
    assert len({outcome.tobytes() for outcome in outcomes}) > 5
