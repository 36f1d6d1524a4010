"""Corrupted images against numpy, scipy and Pillow; they are functions of the image, its number and the seed."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import convolve

from configs.groups import choices, declared
from configs.schema import CORRUPTIONS as NAMES
from configs.schema import DataConfig
from data.cifar10c import corrupted_cifar, corruptions_in
from data.corruptions import CORRUPTIONS, SEVERITIES, corrupted
from data.outside import outside
from tests.data.test_own_folders import plant
from tests.opening import build_data

DRAWS = np.random.default_rng(0)
PIXELS = DRAWS.integers(0, 256, (3, 12, 10, 3)).astype(np.uint8)


def changed(
    name: str, strength: float, pixels: np.ndarray = PIXELS, indices: tuple[int, ...] = (4, 0, 9)
) -> np.ndarray:
    return CORRUPTIONS[name](torch.from_numpy(pixels), np.array(indices), strength=strength, seed=1).numpy()


def as_bytes(values: np.ndarray) -> np.ndarray:
    return np.round(255 * values.clip(0, 1)).astype(int)


def test_brightness_contrast_blur_and_jpeg() -> None:
    values = PIXELS / 255.0
    mean = values.mean((1, 2, 3), keepdims=True)
    line = np.arange(-2, 3)
    disk = (1.2 + 0.5 - np.hypot(line[:, None], line[None, :])).clip(0, 1)
    blurred = [
        np.stack([convolve(image[..., c], disk / disk.sum(), mode="mirror") for c in range(3)], -1) for image in values
    ]
    written = []
    for pixels in PIXELS:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=25)
        written.append(np.array(Image.open(file)))
    for name, strength, expected in (
        ("brightness", 0.2, as_bytes(values + 0.2)),
        ("contrast", 0.3, as_bytes(mean + 0.3 * (values - mean))),
        ("defocus_blur", 0.12, as_bytes(np.stack(blurred))),  # 1.2 of 10 pixels
        ("jpeg", 25, np.stack(written)),
    ):
        assert np.abs(changed(name, strength) - expected).max() <= 1, (
            name
        )  # a value between two levels rounds either way
    grey = changed("jpeg", 25, PIXELS[..., :1])
    assert grey.shape == (3, 12, 10, 1)


def test_noise_is_normal_and_its_own_for_every_image_and_seed() -> None:
    plain = np.full((20, 40, 40, 3), 128, np.uint8)
    noise = (changed("gaussian_noise", 0.1, plain, tuple(range(20))) - 128.0) / 255
    assert noise.mean() == pytest.approx(0, abs=0.002)
    assert noise.std() == pytest.approx(0.1, rel=0.01)
    assert (np.abs(noise) < 0.1).mean() == pytest.approx(0.683, abs=0.01)
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.05
    assert np.array_equal(changed("gaussian_noise", 0.1, plain[:1], (7,))[0], 128 + np.round(255 * noise[7]))
    other = CORRUPTIONS["gaussian_noise"](torch.from_numpy(plain[:1]), np.array([7]), strength=0.1, seed=2).numpy()
    assert not np.array_equal(other[0], 128 + np.round(255 * noise[7]))


@pytest.mark.parametrize("size", [12, 72])  # in memory, and read for each batch
def test_a_corrupted_split_does_not_depend_on_the_batches_and_leaves_the_split_alone(size: int, tmp_path: Path) -> None:
    root = plant(tmp_path, {"train": 4, "test": 3}, size=(80, 90))
    found = {}
    for batch in (2, 5):
        data = build_data("folder", root=root, image_size=size, batch_size=2, eval_batch_size=batch, val_fraction=0)
        before = torch.cat([b.images for b in data.test.epoch(0)])
        loader = corrupted(data.test, "gaussian_noise", 5, seed=0)
        found[batch] = torch.cat([b.images for b in loader.epoch(0)])
        assert torch.equal(torch.cat([b.images for b in data.test.epoch(0)]), before)
        assert not torch.equal(found[batch], before)
    assert torch.equal(found[2], found[5])
    # The mean of a channel of a darkened image moves by what is added, in units of its deviation.
    bright = torch.cat([b.images for b in corrupted(data.test, "brightness", 1, 0).epoch(0)])
    assert ((bright - before).flatten(2).median(2).values > 0.2).all()


@pytest.mark.parametrize("name", SEVERITIES)
def test_padding_is_no_part_of_an_image(name: str) -> None:
    seen = torch.tensor([[9, 10], [12, 10], [12, 1]])
    padded = torch.zeros(3, 12, 12, 3, dtype=torch.uint8)
    alone = []
    for index, (rows, columns) in enumerate(seen.tolist()):
        image = torch.from_numpy(PIXELS[index : index + 1, :rows, :columns])
        padded[index, :rows, :columns] = image
        change = corrupted(SimpleNamespace(to_network=lambda images, *_: images), name, 5, seed=1).to_network
        alone.append(change(image, 0, np.array([index]))[0])
    found = change(padded, 0, np.arange(3), seen)
    for image, expected in zip(found, alone, strict=True):
        rows, columns = expected.shape[:2]
        assert torch.equal(image[:rows, :columns], expected)
        assert image.sum() == expected.sum()
    assert padded[0, :9, :10].numpy().tolist() == PIXELS[0, :9].tolist()  # the batch itself is left alone


@pytest.mark.parametrize("size", [12, 72])
def test_other_images_are_read_as_those_of_the_split(size: int, tmp_path: Path) -> None:
    root = plant(tmp_path / "own", {"train": 4, "test": 3}, size=(80, 90))
    options = {"root": root, "image_size": size, "batch_size": 2, "eval_batch_size": 4, "val_fraction": 0}
    data = build_data("folder", **options)
    assert len(list(data.test.epoch(0))) == 2  # read before, as in evaluate.py
    loader = outside(root / "train", data.test, DataConfig("folder", image_size=size), workers=0)
    assert (loader.num_samples, data.test.num_samples) == (8, 6)
    ours, theirs = (torch.cat([b.images for b in of.epoch(0)]) for of in (data.train_unchanged(), loader))
    assert torch.equal(ours, theirs)
    assert sum(len(batch.labels) for batch in loader.epoch(0)) == 8
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: holds no image"):
        outside(tmp_path / "empty", data.test, DataConfig("folder", image_size=size), workers=0)


def test_cifar10_c_is_read_severity_by_severity(tmp_path: Path) -> None:
    options = {"root": plant(tmp_path / "own", {"train": 4, "test": 3}), "image_size": 32, "batch_size": 2}
    data = build_data("folder", **options, eval_batch_size=3, val_fraction=0)
    images, labels = DRAWS.integers(0, 256, (20, 32, 32, 3)).astype(np.uint8), np.arange(20) % 4 % 2
    place = tmp_path / "CIFAR-10-C"
    place.mkdir()
    with pytest.raises(FileNotFoundError, match="cifar10c="):
        corruptions_in(place)
    np.save(place / "fog.npy", images)
    np.save(place / "labels.npy", labels.astype(np.uint8))
    assert corruptions_in(place) == ["fog"]
    loader = corrupted_cifar(place, "fog", 3, data.test)
    normalized = torch.cat([batch.images for batch in loader.epoch(0)])
    assert torch.cat([batch.labels for batch in loader.epoch(0)]).tolist() == labels[8:12].tolist()
    shown = data.test.to_network(torch.from_numpy(images[8:12]), 0, np.arange(4))
    assert torch.equal(normalized, shown)
    np.save(place / "fog.npy", images[:15])
    with pytest.raises(ValueError, match="not those of CIFAR-10-C"):
        corrupted_cifar(place, "fog", 1, data.test)


def test_the_names_and_strengths_stand_where_users_look() -> None:
    assert [*SEVERITIES] == [*CORRUPTIONS] == [*NAMES]
    rows = re.findall(r"^\| `(\w+)` \| ([\d. |]+) \|", (Path("docs") / "METHOD.md").read_text(), re.MULTILINE)
    shown = {name: tuple(float(cell) for cell in cells.split("|")) for name, cells in rows if name in NAMES}
    assert shown == SEVERITIES
    marked = {name: declared(name).corruptions for name in choices("regularizer") if declared(name).corruptions}
    assert [*marked] == ["autoaugment", "randaugment", "trivialaugment"]
    assert all(names == ["brightness", "contrast"] for names in marked.values())
