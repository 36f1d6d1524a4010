"""The default data set, on the real digits: splits, order, draws, ranks."""

from __future__ import annotations

import pytest
import torch

from data import ClassificationBatch, Data
from tests.named import refused
from tests.opening import build_data

ALL = {"crop_padding": 4, "flip": True, "cutout": 8}


def digits(**options: object) -> Data:
    return build_data("digits", **{"batch_size": 32, "augment": ALL, **options})  # type: ignore[arg-type]


def equal(one: ClassificationBatch, other: ClassificationBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.plain().values(), other.plain().values(), strict=True))


def test_splits_are_stratified_disjoint_and_the_same_for_every_seed() -> None:
    data = digits(seed=1)
    assert (data.train.num_samples, data.val.num_samples, data.test.num_samples) == (1293, 144, 360)
    assert data.fingerprint == digits(seed=2).fingerprint
    assert data.fingerprint != digits(val_fraction=0.2).fingerprint
    for loader in (data.val, data.test):
        counts = torch.bincount(torch.cat([batch.labels for batch in loader.epoch(0)]))
        assert counts.max() - counts.min() <= 2
    assert digits(val_fraction=0).val is None


def test_batches_are_what_the_network_expects() -> None:
    data = digits(channels_last=True)
    batch = next(data.train.epoch(0))
    assert batch.images.shape == (32, *data.image_shape) == (32, 1, 32, 32)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.dtype == batch.indices.dtype == torch.int64


@pytest.mark.parametrize("val_fraction", [0.0, 0.5])
def test_the_images_trained_on_have_mean_0_and_deviation_1(val_fraction: float) -> None:
    count = digits(val_fraction=val_fraction).train.num_samples
    train = digits(val_fraction=val_fraction, augment={}, batch_size=count).train
    images = next(train.epoch(0)).images.double()
    assert abs(images.mean()) < 1e-5
    assert abs(images.std(correction=0) - 1) < 1e-5


def test_training_takes_each_sample_at_most_once_and_drops_the_remainder() -> None:
    train = digits().train
    seen = torch.cat([batch.indices for batch in train.epoch(0)])
    assert len(train) == 1293 // 32
    assert len(seen) == len(seen.unique()) == len(train) * 32
    assert not torch.equal(seen, torch.cat([batch.indices for batch in train.epoch(1)]))


def test_evaluation_takes_each_sample_once_in_order() -> None:
    data = digits(eval_batch_size=100)
    batches = list(data.test.epoch(5))
    assert [len(batch.labels) for batch in batches] == [100, 100, 100, 60]
    assert torch.equal(torch.cat([batch.indices for batch in batches]), torch.arange(360))


@pytest.mark.parametrize(("policy", "start"), [(None, 0), (None, 1), (None, 4), ("svhn", 3)])
def test_an_epoch_can_be_entered_anywhere(policy: str | None, start: int) -> None:
    augment = {"crop_padding": 4, "flip": True, "cutout": 8, "autoaugment": policy}
    train = digits(augment=augment, train_subset=128).train
    whole, rest = list(train.epoch(3)), list(train.epoch(3, start))
    assert len(rest) == len(whole) - start
    assert all(equal(a, b) for a, b in zip(whole[start:], rest, strict=True))


def test_a_picture_is_a_function_of_seed_epoch_and_index_alone() -> None:
    """Another batch size, and thereby another place in another batch: the same picture."""

    def pictures(**options: object) -> dict[int, torch.Tensor]:
        batches = digits(**options).train.epoch(2)
        return {int(i): image for batch in batches for i, image in zip(batch.indices, batch.images, strict=True)}

    small, large = pictures(batch_size=16), pictures(batch_size=64)
    shared = small.keys() & large.keys()
    assert len(shared) > 1200
    assert all(torch.equal(small[i], large[i]) for i in shared)
    other = pictures(seed=1)
    assert sum(torch.equal(small[i], other[i]) for i in shared & other.keys()) < 20


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_out_the_batches_of_a_single_process(world_size: int) -> None:
    alone = digits(eval_batch_size=64)
    ranks = [digits(eval_batch_size=64, rank=r, world_size=world_size) for r in range(world_size)]
    for batch, *shares in zip(alone.train.epoch(1, 7), *(r.train.epoch(1, 7) for r in ranks), strict=True):
        assert torch.equal(batch.indices, torch.cat([share.indices for share in shares]))
        assert torch.equal(batch.images, torch.cat([share.images for share in shares]))
    seen = torch.cat([batch.indices for r in ranks for batch in r.test.epoch(0)])
    assert torch.equal(seen.sort().values, torch.arange(360))
    assert [len(list(r.test.epoch(0))) for r in ranks] == [len(r.test) for r in ranks]


def test_a_subset_is_stratified_and_leaves_val_and_test_alone() -> None:
    data, whole = digits(train_subset=200), digits()
    labels = torch.cat([batch.labels for batch in digits(train_subset=200, batch_size=200).train.epoch(0)])
    assert data.train.num_samples == 200
    assert torch.bincount(labels).min() >= 19
    assert equal(next(data.val.epoch(0)), next(whole.val.epoch(0)))
    assert "200" in data.notes[-1]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"batch_size": 5000}, "batch_size"),
        ({"batch_size": 33, "world_size": 2}, "batch_size"),
        ({"val_fraction": 1.5}, "val_fraction"),
        ({"train_subset": 5000}, "train_subset"),
        ({"classes": ["0"]}, "classes"),
        ({"rank": 2, "world_size": 2}, "rank"),
    ],
)
def test_a_wrong_value_is_answered_in_one_line_that_names_it(options: dict[str, object], word: str) -> None:
    with refused(word):
        digits(**options)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with refused("'digit'", "digits"):
        build_data("digit", batch_size=1)


@pytest.mark.parametrize(
    "wrong",
    [{"autoaugment": "mnist"}, {"crop_padding": -1}, {"scale_min": 0.01}, {"scale_max": 2}, {"photometric": 0.1}],
)
def test_an_augmentation_that_images_in_memory_do_not_have_is_refused(wrong: dict[str, object]) -> None:
    with refused("mnist" if "autoaugment" in wrong else next(iter(wrong))):
        digits(augment=wrong)
