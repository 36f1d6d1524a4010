"""Fashion-MNIST, CIFAR and the made-up set: files of the same formats, damaged ones, missing ones, a faked download."""

from __future__ import annotations

import gzip
import os
import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from data import downloads, in_memory
from data.loader import channel_statistics
from tests.data.small_sets import CIFAR, FASHION, idx, official_cifar, write_cifar, write_fashion
from tests.named import refused
from tests.opening import build_data


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FASHION_MNIST", raising=False)
    monkeypatch.setattr(in_memory, "DEBIAN", tmp_path / "debian")
    with official_cifar():
        yield


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("how", ["root", "environment", "debian"])
def test_fashion_mnist_reads_a_folder_of_idx_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, end: str
) -> None:
    folder = tmp_path / ("debian" if how == "debian" else "somewhere")
    arrays = write_fashion(folder, end)
    if how == "environment":
        monkeypatch.setenv("FASHION_MNIST", str(folder))
    data = build_data("fashion_mnist", root=folder if how == "root" else None, batch_size=10, val_fraction=0.25)
    assert (data.train.num_samples, data.val.num_samples, data.test.num_samples) == (30, 10, 20)
    assert data.image_shape == (1, 32, 32)
    assert data.classes[9] == "Ankle boot"
    batch = next(data.test.epoch(0))
    inner = batch.images[:, 0, 2:-2, 2:-2]
    pixels = torch.from_numpy(arrays[FASHION[2]][:10]).float()
    # Normalization is affine, so the correlation with the file's pixels is 1.
    assert torch.corrcoef(torch.stack([inner.flatten(), pixels.flatten()]))[0, 1] > 0.999999
    assert torch.equal(batch.labels, torch.from_numpy(arrays[FASHION[3]][:10]).long())
    assert batch.images[:, :, :2].unique().numel() == 1


def test_the_fingerprint_sees_one_pixel_and_one_label(tmp_path: Path) -> None:
    arrays, seen = write_fashion(tmp_path), set()
    seen.add(build_data("fashion_mnist", root=tmp_path, batch_size=1, val_fraction=0).fingerprint)
    for name, values in arrays.items():
        values.flat[0] ^= 1
        (tmp_path / (name + ".gz")).write_bytes(gzip.compress(idx(values)))
        seen.add(build_data("fashion_mnist", root=tmp_path, batch_size=1, val_fraction=0).fingerprint)
    assert len(seen) == 5


@pytest.mark.skipif(not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="Fashion-MNIST is not installed")
def test_the_real_fashion_mnist() -> None:
    data = build_data("fashion_mnist", root="/usr/share/datasets/fashion-mnist", batch_size=1000)
    assert (data.train.num_samples, data.val.num_samples, data.test.num_samples) == (54000, 6000, 10000)
    labels = torch.cat([batch.labels for batch in data.test.epoch(0)])
    assert torch.equal(torch.bincount(labels), torch.full((10,), 1000))
    images = next(data.train.epoch(0)).images
    assert abs(images.mean()) < 0.05
    assert abs(images.std() - 1) < 0.05


@pytest.mark.parametrize("damage", ["cut", "long", "bits", "text", "empty", "shape", "header"])
@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_damaged_idx_file_is_named_in_one_line(tmp_path: Path, damage: str, end: str) -> None:
    arrays = write_fashion(tmp_path, end)
    path = tmp_path / (FASHION[0] + end)
    whole, raw = path.read_bytes(), idx(arrays[FASHION[0]])
    pack = gzip.compress if end else bytes
    path.write_bytes(
        {
            "cut": whole[: len(whole) // 2],
            "long": pack(raw + b"\0"),
            "bits": whole[:10] + b"\xff\xff" + whole[12:],
            "text": b"<html>404 not found</html>",
            "empty": b"",
            "shape": pack(idx(arrays[FASHION[0]][:, :20])),
            "header": pack(b"\0\0\x08\x03" + b"\xff" * 12),
        }[damage]
    )
    with refused(tmp_path, "idx"):
        build_data("fashion_mnist", root=tmp_path, batch_size=1)


def test_a_missing_idx_file_is_named_and_not_taken_from_elsewhere(tmp_path: Path) -> None:
    write_fashion(tmp_path / "mine")
    write_fashion(tmp_path / "debian")
    (tmp_path / "mine" / (FASHION[3] + ".gz")).unlink()
    with refused(FASHION[3], as_a=FileNotFoundError):
        build_data("fashion_mnist", root=tmp_path / "mine", batch_size=1)


def test_an_environment_variable_that_leads_nowhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fashion(tmp_path / "debian")
    monkeypatch.setenv("FASHION_MNIST", str(tmp_path / "typo"))
    with refused("FASHION_MNIST", tmp_path / "typo", as_a=FileNotFoundError):
        build_data("fashion_mnist", batch_size=1)


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10", "cifar100"])
@pytest.mark.parametrize("options", [{}, {"download": False}, {"root": "ROOT"}])
def test_missing_data_is_answered_at_once_with_what_to_do(
    tmp_path: Path, name: str, options: dict[str, object]
) -> None:
    options = {key: tmp_path / "nothing" if value == "ROOT" else value for key, value in options.items()}
    elsewhere = ("dataset-fashion-mnist", "FASHION_MNIST") if name == "fashion_mnist" else ()
    with refused("data.root", *elsewhere, as_a=FileNotFoundError):
        build_data(name, batch_size=1, **options)
    assert not (tmp_path / "nothing").exists()


def test_a_host_that_does_not_answer_is_given_up_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "PROBE_SECONDS", 0.1)
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: time.sleep(3))
    with refused("cifar10", "0 s", as_a=FileNotFoundError):
        build_data("cifar10", root=tmp_path, batch_size=1)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("inside", [False, True])
def test_cifar_batches_are_read_and_normalized(tmp_path: Path, name: str, inside: bool) -> None:
    write_cifar(tmp_path, name)
    data = build_data(name, root=tmp_path / CIFAR[name].base_folder if inside else tmp_path, batch_size=20)
    theirs = CIFAR[name](tmp_path, train=False)  # torchvision's own reading of the same files
    batch = next(data.test.epoch(0))
    assert data.classes == tuple(theirs.classes)
    assert data.train.num_samples + data.val.num_samples == (1000 if name == "cifar10" else 200)
    assert batch.labels.tolist() == theirs.targets[:20]
    scaled = batch.images * torch.tensor([0.25, 0.24, 0.26])[:, None, None] + 0.48
    assert torch.allclose(scaled, torch.from_numpy(theirs.data[:20]).permute(0, 3, 1, 2) / 255, atol=0.1)


def test_a_damaged_or_missing_cifar_batch_is_named(tmp_path: Path) -> None:
    batch = write_cifar(tmp_path, "cifar10") / CIFAR["cifar10"].base_folder / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:-100])
    with refused(batch, "damaged"):
        build_data("cifar10", root=tmp_path, batch_size=1)
    batch.unlink()
    with refused(batch, "missing"):
        build_data("cifar10", root=tmp_path, batch_size=1)


def test_a_hostile_cifar_batch_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path}/ran",)

    folder = write_cifar(tmp_path, "cifar10") / CIFAR["cifar10"].base_folder
    data = pickle.dumps({"data": Payload(), "labels": []}, protocol=2)
    (folder / "test_batch").write_bytes(data)
    with refused(folder / "test_batch"):
        build_data("cifar10", root=tmp_path, batch_size=1)
    assert not (tmp_path / "ran").exists()


class Reachable:
    def close(self) -> None: ...


def test_a_download_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Reachable())

    def broken(folder: Path) -> None:
        (folder / "set").mkdir()
        raise RuntimeError("File not found or corrupted.")

    with refused("set", "do it", as_a=FileNotFoundError):
        downloads.fetch("set", "http://x", tmp_path, "set", broken, "do it")
    assert not (tmp_path / "set").exists()
    calls = []

    def whole(folder: Path) -> None:
        calls.append((folder / "set").mkdir())

    downloads.fetch("set", "http://x", tmp_path, "set", whole, "do it")
    downloads.fetch("set", "http://x", tmp_path, "set", whole, "do it")  # as the second of two ranks would
    assert (tmp_path / "set").is_dir()
    assert len(calls) == 1
    assert not list(tmp_path.glob(".download-*"))


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Reachable())
    (tmp_path / "file").write_bytes(b"")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with refused("fashion_mnist", root):
            build_data("fashion_mnist", root=root, batch_size=1)


def test_a_channel_without_variation_has_a_deviation_to_divide_by() -> None:
    images = torch.stack([torch.zeros(4, 8, 8), torch.full((4, 8, 8), 255.0)], dim=1).byte()
    assert channel_statistics(images.numpy()) == ((0.0, 1.0), (1 / 255, 1 / 255))


def test_fake_has_the_asked_size_and_a_signal() -> None:
    data = build_data("fake", image_size=16, batch_size=64)
    assert (data.num_classes, data.image_shape) == (10, (3, 16, 16))
    train, test = next(data.train.epoch(0)), next(data.test.epoch(0))
    means = torch.stack([train.images[train.labels == c].mean(0) for c in range(10)])
    nearest = torch.cdist(test.images.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == test.labels).float().mean() > 0.95
    assert torch.equal(train.images, next(build_data("fake", image_size=16, batch_size=64).train.epoch(0)).images)
