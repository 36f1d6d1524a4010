"""Prepared photographs: what is written is what is read, an interruption costs nothing, damage is noticed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import scripts.prepare_shards as command
from configs.plan import Plan
from configs.schema import DataConfig, ModelConfig, RecipeConfig
from data import Data, shards
from data.folders import open_folders
from data.samples import Samples, image_files
from scripts.prepare_shards import Preparation
from tests.named import refused
from tests.opening import build_data

PHOTOS = load_sample_images().images
SIDE = 48


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes; 11 + 4 photographs of different sizes, one smaller than the shards' short side."""
    root = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 11), ("val", 4)):
        for number in range(count):
            folder = root / split / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            height, width = (40, 90) if number == 3 else (120 + 10 * number, 200 - 9 * number)
            pixels = PHOTOS[number % 2][number : number + height, 5 : 5 + width]
            Image.fromarray(pixels).save(folder / f"{number}.JPEG", quality=92)
    return root


def write(source: Path, target: Path, kind: str = "jpeg", **more: int) -> list[int]:
    counted: list[int] = []
    how = Preparation(SIDE, kind, per_shard=4, **more)
    command.prepare("imagenet", open_folders("imagenet", source, False), target, how, 0, counted.append)
    return counted


def content(samples: Samples, index: int) -> bytes | memoryview:
    return samples.read(samples.row(index))["images"]


def open_data(root: Path, **more: object) -> Data:
    options: dict[str, object] = {"batch_size": 4, "val_fraction": 0.0, "image_size": 32, "augment": {"flip": True}}
    return build_data("imagenet", root=root, **{**options, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", shards.KINDS)
def test_what_is_written_is_what_is_read(source: Path, tmp_path: Path, kind: str) -> None:
    assert sum(write(source, tmp_path, kind)) == 15
    assert len(list(tmp_path.glob("train-*.bin"))) == 3
    original, found = open_folders("imagenet", source, False), shards.open_prepared("imagenet", tmp_path)
    assert found.classes == original.classes
    for there, here in ((original.train, found.train), (original.test, found.test)):
        assert np.array_equal(there["name"], here["name"])
        assert np.array_equal(there["labels"], here["labels"])
        for index in range(len(there)):
            expected = Preparation(SIDE, kind)(content(there, index))
            assert bytes(content(here, index)) == expected
            assert bytes(content(here.part(np.array([index, 0])), 0)) == expected
        assert there["name"][1].decode() in here.name(1)
    sizes = [Image.open(io.BytesIO(bytes(content(found.train, i)))).size for i in range(11)] if kind == "jpeg" else []
    assert all(min(size) == SIDE for size in sizes if size != (90, 40))
    assert kind == "raw" or (90, 40) in sizes  # a smaller one is not enlarged


def test_raw_pixels_are_the_reduced_image(source: Path, tmp_path: Path) -> None:
    write(source, tmp_path, "raw")
    file = shards.open_prepared("imagenet", tmp_path).train
    pixels = shards.raw_pixels(content(file, 0))
    original = Image.open(source / "train" / file["name"][0].decode())
    expected = np.asarray(original.resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.BICUBIC))
    assert np.abs(pixels.astype(int) - expected).max() <= 2  # the two kernels round differently
    assert np.array_equal(shards.raw_pixels(content(file, 0), lambda h, w: (3, 5, 10, 20)), pixels[3:13, 5:25])


@pytest.mark.parametrize("kind", shards.KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_are_the_same_samples_as_from_the_files(source: Path, tmp_path: Path, kind: str, workers: int) -> None:
    write(source, tmp_path, kind)
    files, prepared = open_data(source), open_data(tmp_path, prepared=True, workers=workers)
    for one, other in zip(files.train.epoch(1), prepared.train.epoch(1), strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.labels, other.labels)
        # Crops of the same places of an image that was reduced before: alike, not equal.
        assert 0 < (one.images - other.images).abs().mean() < 0.5
    assert prepared.fingerprint != files.fingerprint
    assert any("not the paper's" in note for note in prepared.notes)
    assert not any("not the paper's" in note for note in files.notes)


def test_an_interruption_costs_only_the_shard_it_fell_into(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    write(source, whole)
    calls = 0

    def fails(self: Preparation, content: bytes) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        return made(self, content)

    made = Preparation.__call__
    part = tmp_path / "part"
    with monkeypatch.context() as patch:
        patch.setattr(Preparation, "__call__", fails)
        with pytest.raises(KeyboardInterrupt):
            write(source, part)
    assert [path.name for path in part.glob("*.bin")] == ["train-00000.bin"]
    assert not list(part.glob("*.tmp*"))
    assert not shards.is_prepared(part)
    with refused("data.root", "prepare_shards", as_a=FileNotFoundError):
        open_data(part, prepared=True)

    counted = 0

    def counts(self: Preparation, content: bytes) -> bytes:
        nonlocal counted
        counted += 1
        return made(self, content)

    monkeypatch.setattr(Preparation, "__call__", counts)
    assert sum(write(source, part)) == 15
    assert counted == 11  # four were there
    for path in whole.glob("*.bin"):
        assert (part / path.name).read_bytes() == path.read_bytes()
    assert (part / "prepared.json").read_text() == (whole / "prepared.json").read_text()
    assert sum(write(source, part)) == 15
    assert counted == 11


def test_a_shard_of_other_images_is_made_anew(source: Path, tmp_path: Path) -> None:
    write(source, tmp_path)
    before = (tmp_path / "train-00000.bin").read_bytes()
    (tmp_path / "prepared.json").unlink()
    write(source, tmp_path, quality=50)
    assert (tmp_path / "train-00000.bin").read_bytes() != before
    with refused(tmp_path, "quality"):
        write(source, tmp_path, quality=90)


def test_damage_is_noticed_and_mended(source: Path, tmp_path: Path) -> None:
    write(source, tmp_path)
    shard = tmp_path / "train-00001.bin"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with refused("train-00001.bin", f"instead of {len(whole):,}"):
        open_data(tmp_path, prepared=True)
    shard.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with refused("train-00001.bin", "damaged"):
        command.check(tmp_path, lambda _: None)
    shard.unlink()
    with refused("train-00001.bin", "missing"):
        open_data(tmp_path, prepared=True)
    write(source, tmp_path)
    assert shard.read_bytes() == whole
    command.check(tmp_path, lambda _: None)
    listing = (tmp_path / "train.npz").read_bytes()
    for content in (b"", listing[:50], b"x"):
        (tmp_path / "train.npz").write_bytes(content)
        with refused(tmp_path / "train.npz"):
            open_data(tmp_path, prepared=True)


def test_what_is_prepared_and_what_is_not_are_distinguished(source: Path, tmp_path: Path) -> None:
    write(source, tmp_path, "raw")
    with refused("data.prepared=true"):
        open_data(tmp_path)
    with refused("data.root", "prepare_shards", as_a=FileNotFoundError):
        open_data(source, prepared=True)
    with refused("decoder=auto"):
        open_data(tmp_path, prepared=True, decoder="pil")
    with refused(tmp_path, "imagenet"):
        build_data("imagenette", root=tmp_path, prepared=True, batch_size=2)
    with refused("prepared", "digits"):
        build_data("digits", prepared=True, batch_size=2)
    manifest = json.loads((tmp_path / "prepared.json").read_text())
    (tmp_path / "prepared.json").write_text(json.dumps({**manifest, "version": 99}))
    with refused("prepared.json", "version"):
        open_data(tmp_path, prepared=True)


def test_runs_on_prepared_photographs_have_folders_of_their_own() -> None:
    def plan(**data: bool) -> Plan:
        return Plan(
            ModelConfig("resnet18", 4, "small"), DataConfig("imagenet", **data), RecipeConfig("quick"), ["none"]
        )

    assert plan().run_dir() != plan(prepared=True).run_dir()


def test_the_command(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    words = ["imagenet", str(source), str(target), "--short-side", "48", "--workers", "1"]
    assert command.main(words) == 0
    assert "15 images in" in capsys.readouterr().out
    assert command.main([*words, "--check"]) == 0
    assert command.main([*words[:1], "/nowhere", *words[2:]]) == 2
    assert "/nowhere" in capsys.readouterr().err
    monkeypatch.setattr(command, "open_folders", lambda *_, **__: broken(source, tmp_path))
    assert command.main([*words[:2], str(tmp_path / "other"), *words[3:-1], "0"]) == 2
    assert "bad.JPEG: not a readable image" in capsys.readouterr().err


def broken(source: Path, place: Path) -> SimpleNamespace:
    (place / "bad.JPEG").write_bytes(b"no image")
    found = open_folders("imagenet", source, False)
    bad = image_files(place, [b"bad.JPEG"], np.array([0]))
    return SimpleNamespace(train=bad, test=bad, classes=found.classes, notes=())


@pytest.mark.parametrize(("wrong", "names"), [({"kind": "png"}, "kind"), ({"quality": 0}, "quality")])
def test_wrong_values_are_named(wrong: dict[str, object], names: str) -> None:
    with refused(names):
        Preparation(**wrong)  # type: ignore[arg-type]


def test_training_on_prepared_photographs(source: Path, tmp_path: Path, train: Callable[..., int]) -> None:
    write(source, tmp_path / "small", "raw")
    root = f"data.root={tmp_path / 'small'}"
    words = ["data=imagenet", root, "data.prepared=true", "data.image_size=32", "workers=0", "batch_size=4", "epochs=1"]
    assert train(*words, "regularizer=none", "recipe.warmup_epochs=0") == 0
    assert train(*words[:2], *words[3:], "regularizer=none", "recipe.warmup_epochs=0") == 2
