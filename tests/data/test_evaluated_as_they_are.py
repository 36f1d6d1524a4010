"""Images are evaluated as they are, normalized by the training set; and AutoAugment draws anew in every epoch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import AugmentConfig, DataConfig
from data import Loading
from data.draws import Draws
from data.image_regularizers import AutoAugment
from data.masks import open_segmentation
from data.samples import Samples, as_it_is
from tests.data import test_digits, test_photographs
from tests.data.test_photographs import photos, tree

__all__ = ["tree"]  # a fixture


def test_small_images_are_evaluated_without_augmentation() -> None:
    for split in ("val", "test"):
        plain, augmented = (
            getattr(test_digits.digits(augment=augment), split).epoch(0) for augment in ({}, test_digits.ALL)
        )
        assert all(test_digits.equal(a, b) for a, b in zip(plain, augmented, strict=True))


def test_photographs_are_evaluated_without_augmentation(tree: Path) -> None:
    plain, augmented = (photos(tree, augment=augment).test.epoch(0) for augment in ({}, test_photographs.ALL))
    assert all(torch.equal(a.images, b.images) for a, b in zip(plain, augmented, strict=True))


def test_the_training_set_can_be_evaluated_without_augmentation(tree: Path) -> None:
    for opened, changed in (
        (test_digits.digits, test_digits.ALL),
        (lambda augment: photos(tree, augment=augment), test_photographs.ALL),
    ):
        data = opened(augment=changed)
        seen = [sample for batch in data.train_unchanged().epoch(3) for sample in batch.indices.tolist()]
        assert seen == sorted(seen)
        assert len(seen) == data.train.num_samples
        plain = [batch.images for batch in opened(augment={}).train_unchanged().epoch(0)]
        for batch, images in zip(data.train_unchanged().epoch(3), plain, strict=True):
            assert torch.equal(batch.images, images)


def test_images_with_masks_are_normalized_by_those_trained_on() -> None:
    def part(level: int) -> Samples:
        images = np.stack([np.full((16, 16, 3), level + 20 * (i % 2), np.uint8) for i in range(4)])
        return Samples({"images": images, "masks": np.zeros((4, 16, 16), np.uint8)}, as_it_is, in_memory=True)

    splits = {"train": part(100), "test": part(200)}  # 110 and 210 on average, the deviation is 10
    made_up = DataConfig("made_up", image_size=16, val_fraction=0.0, task="segmentation")
    data = open_segmentation(made_up, AugmentConfig(), Loading(4), splits, ("a", "b"), None, ())
    assert next(data.train.epoch(0)).images.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert next(data.test.epoch(0)).images.mean().item() == pytest.approx((210 - 110) / 10, rel=1e-4)


def test_autoaugment_draws_anew_in_every_epoch() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    change = AutoAugment("cifar10").on_image
    assert len({change(image, Draws(np.zeros(0), 0, epoch, 5)).tobytes() for epoch in range(20)}) > 5
    assert len({change(image, Draws(np.zeros(0), seed, 0, 5)).tobytes() for seed in range(20)}) > 5
