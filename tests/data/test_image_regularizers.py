"""Regularizers of training images: their draws, what they leave alone, and the rectangles of random erasing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms as T
from PIL import Image

from configs.compose import plan_of
from data import draws
from data.image_regularizers import AugMix, AutoAugment, RandAugment, RandomErasing, TrivialAugment
from engine.distributed import Ranks
from experiment.build import open_data

POLICIES: dict[str, tuple[Any, Any]] = {
    "augmix": (AugMix(3), T.AugMix(all_ops=False)),
    "randaugment": (RandAugment(2, 9), T.RandAugment()),
    "trivialaugment": (TrivialAugment(), T.TrivialAugmentWide()),
}
ERASING = {"probability": 0.5, "area_least": 0.02, "area_most": 0.33, "aspect": 0.3}


def key(index: int, seed: int = 1, epoch: int = 2) -> draws.Draws:
    return draws.Draws(np.zeros(0), seed, epoch, index)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_torchvisions_and_a_function_of_its_key(name: str, channels: int) -> None:
    ours, theirs = POLICIES[name]
    image = np.random.default_rng(0).integers(0, 256, (32, 32, channels), np.uint8)
    before = torch.default_generator.get_state()
    found = {index: ours.on_image(image, key(index)) for index in range(12)}
    assert torch.equal(torch.default_generator.get_state(), before)
    assert len({outcome.tobytes() for outcome in found.values()}) > 5
    for index in reversed(range(12)):  # in another order, and by torchvision alone
        assert np.array_equal(ours.on_image(image, key(index)), found[index])
        torch.manual_seed(int(draws.hashed(ours.purpose, 1, 2, index)[0] >> np.uint64(1)))
        expected = np.array(theirs(Image.fromarray(image if channels == 3 else image[:, :, 0])))
        assert np.array_equal(found[index], expected.reshape(image.shape))
    torch.default_generator.set_state(before)


def test_every_policy_draws_for_itself() -> None:
    assert len({policy.purpose for policy, _ in POLICIES.values()} | {AutoAugment("auto").purpose}) == 4


def test_rectangles_of_random_erasing_have_the_distribution_of_the_definition() -> None:
    count, height, width = 40_000, 64, 96
    boxes = RandomErasing(**ERASING, value="zero").boxes(height, width, 5, 0, np.arange(count))
    top, left, high, wide = boxes[boxes[:, 2] > 0].T
    assert len(top) / count == pytest.approx(0.5, abs=0.0125)  # five standard errors
    assert (top + high).max() <= height
    assert (left + wide).max() <= width
    # Every place is reached, also the last one; none of the draws is another's.
    assert {0, 1} <= {*top.tolist()} & {*left.tolist()}
    assert (top + high == height).any()
    assert (left + wide == width).any()
    shares, aspects = high * wide / (height * width), np.log(high / wide)
    assert 0.018 < shares.min() < 0.03
    assert 0.3 < shares.max() < 0.34
    # Too large or too long rectangles are drawn anew: the quarter of small areas, of which all fit, is uniform.
    small = shares[shares < 0.1]
    assert small.mean() == pytest.approx(0.06, abs=5 * 0.08 / np.sqrt(12 * len(small)) + 1e-3)
    bounded = np.log(1 / 0.3)
    assert np.abs(aspects).max() < bounded + 0.1
    upright = aspects[shares < 0.1]
    assert upright.mean() == pytest.approx(0, abs=0.05)
    assert upright.std() == pytest.approx(2 * bounded / np.sqrt(12), rel=0.03)


@pytest.mark.parametrize("value", ["zero", "random"])
def test_random_erasing_changes_its_rectangle_alone_whatever_the_batch(value: str) -> None:
    change, indices = RandomErasing(**ERASING, value=value), np.arange(40)
    images = torch.randn(40, 20, 30, 3, generator=torch.Generator().manual_seed(0))
    erased = change.on_batch(images.clone(), 3, 1, indices)
    boxes, numbers = change.boxes(20, 30, 3, 1, indices), []
    for image, before, (top, left, high, wide) in zip(erased, images, boxes.tolist(), strict=True):
        hole, expected = image[top : top + high, left : left + wide], before.clone()
        numbers.append(hole.flatten())
        expected[top : top + high, left : left + wide] = hole
        assert torch.equal(image, expected)
    inside = torch.cat(numbers)
    assert len(inside) > 1000
    if value == "zero":
        assert not inside.any()
    else:
        assert abs(float(inside.mean())) < 5 / len(inside) ** 0.5
        assert float(inside.std()) == pytest.approx(1, abs=0.1)
        assert inside.unique().numel() > 0.99 * len(inside)  # no image has the draws of another
    # One by one and in another order they are the same; in another epoch not.
    for index in (17, 3):
        assert torch.equal(change.on_batch(images[index][None].clone(), 3, 1, np.array([index]))[0], erased[index])
    assert not torch.equal(change.on_batch(images.clone(), 3, 2, indices), erased)


def test_its_draws_are_in_places_of_their_own() -> None:
    assert draws.ERASE == draws.MOST
    purposes = [draws.ORDER, draws.AUGMENT, draws.POLICY, draws.SPLIT, draws.FAKE, draws.SCENE]
    assert purposes == [*range(6)]  # where they were before others came
    assert len({*purposes, draws.TRIVIAL, draws.RANDOM, draws.AUGMIX, draws.ERASED}) == 10


def test_batches_do_not_depend_on_workers_or_on_a_resume(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    for name in [f"{part}/{label}/{i}.png" for part in ("train", "test") for label in "ab" for i in range(4)]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbers.integers(0, 256, (72, 72, 3), np.uint8)).save(tmp_path / name)
    words = ("regularizer=[trivialaugment,randaugment,augmix,random_erasing]", "recipe=imagenette", "device=cpu")
    own = ("data=folder", f"data.root={tmp_path}", "data.image_size=72", "batch_size=2", "data.val_fraction=0", *words)

    def batches(workers: int, start: int) -> list[torch.Tensor]:
        data = open_data(plan_of(*own, f"workers={workers}"), torch.device("cpu"), Ranks())
        return [batch.images for batch in data.train.epoch(1, start)]

    expected = batches(0, 0)
    assert len(expected) == 4
    for found, start in ((batches(2, 0), 0), (batches(0, 2), 2)):
        assert all(torch.equal(one, other) for one, other in zip(found, expected[start:], strict=True))


def test_a_range_of_areas_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"area_least=0\.4 is above area_most=0\.33"):
        RandomErasing(0.5, area_least=0.4, area_most=0.33, aspect=0.3, value="zero")
