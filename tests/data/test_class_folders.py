"""Class folders: what is found, what is refused, in one line that names the folder."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets
from PIL import Image

from data.card import card_of
from tests.named import refused
from tests.opening import build_data

CLASSES = ("n01", "n02", "n03")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small tree: three classes, four images each to train and two to evaluate; and no network."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    plant(tmp_path / "photos")
    return tmp_path / "photos"


def plant(root: Path) -> None:
    for split, count in (("train", 4), ("val", 2)):
        for level, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.full((20, 30, 3), 60 * level + 10 * i, np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{name}_{i}.JPEG")


def build(root: Path | None, name: str = "imagenet", **options: object) -> object:
    return build_data(name, **{"root": root, "image_size": 16, "batch_size": 2, "val_fraction": 0.0, **options})  # type: ignore[arg-type]


def test_the_class_map_is_that_of_torchvision(root: Path) -> None:
    data = build(root)
    for split, loader in (("train", data.train), ("val", data.test)):
        theirs = torchvision.datasets.ImageFolder(root / split)
        assert tuple(theirs.classes) == data.classes
        files = loader.samples
        assert [(files.name(i), int(files["labels"][i])) for i in range(len(files))] == theirs.samples
    assert (data.num_classes, data.image_shape) == (3, (3, 16, 16))
    assert "official set has 1,281,167" in data.notes[0]


def test_a_validation_part_is_cut_from_train(root: Path) -> None:
    data = build(root, val_fraction=0.25)
    names = [{loader.samples.name(i) for i in range(loader.num_samples)} for loader in (data.train, data.val)]
    assert not names[0] & names[1]
    assert len(names[0]) == 9
    assert sorted(data.val.samples["labels"].tolist()) == [0, 1, 2]


def test_the_fingerprint_sees_a_new_file_and_another_cut(root: Path) -> None:
    one = build(root).fingerprint
    assert one == build(root, batch_size=4, seed=5, decoder="pil").fingerprint
    assert one != build(root, val_fraction=0.25).fingerprint
    (root / "train" / "n02" / "new.png").write_bytes((root / "train" / "n02" / "n02_0.JPEG").read_bytes())
    assert one != build(root).fingerprint


def test_files_that_are_no_images_are_passed_over(root: Path) -> None:
    before = build(root).fingerprint
    for name in ("train/n01/Thumbs.db", "train/n01/._n01_0.JPEG", "val/.DS_Store", "train/n01.tar"):
        (root / name).write_bytes(b"x")
    assert build(root).fingerprint == before


def test_tiny_imagenet_is_read_as_it_unpacks_or_told_what_to_do(root: Path) -> None:
    before = build(root)
    for folder in (root / "train").iterdir():
        (folder / "images").mkdir()
        for file in list(folder.glob("*.*")):
            file.rename(folder / "images" / file.name)
        (folder / f"{folder.name}_boxes.txt").touch()
    data = build(root)
    assert data.train.num_samples == before.train.num_samples
    assert card_of(data)["unused"] == {".txt": 3}
    (root / "val" / "images").mkdir()
    for folder in list((root / "val").glob("n*")):
        for file in folder.iterdir():
            file.rename(root / "val" / "images" / file.name)
        folder.rmdir()
    (root / "val" / "val_annotations.txt").touch()
    with refused("val/CLASS/", "val_annotations.txt"):
        build(root)


def test_a_class_folder_with_images_of_other_formats_says_so(root: Path) -> None:
    for file in (root / "train" / "n01").iterdir():
        file.rename(file.with_suffix(".gif"))
    with refused("train/n01", ".gif"):
        build(root)


def rename(root: Path, old: str, new: str) -> None:
    (root / old).rename(root / new)


def empty(root: Path, name: str) -> None:
    for file in (root / name).iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: rename(root, "val/n02", "elsewhere"), ["photos/val", "n02"]),
        (lambda root: (root / "val" / "n09").mkdir(), ["photos/train", "n09"]),
        (lambda root: rename(root, "val/n02", "val/n0two"), ["photos/val", "n02", "photos/train", "n0two"]),
        (lambda root: (root / "val" / ".ipynb_checkpoints").mkdir(), ["val", ".ipynb_checkpoints"]),
        (lambda root: (root / "train" / "n01" / ".ipynb_checkpoints").mkdir(), ["train/n01", ".ipynb_checkpoints"]),
        (lambda root: os.mkdir(os.fsencode(root / "train") + b"/caf\xe9"), ["train", "caf\\udce9"]),
        (lambda root: empty(root, "val/n03"), ["val/n03"]),
        (lambda root: empty(root, "train/n03"), ["train/n03"]),
    ],
)
def test_folders_that_differ_or_are_no_classes_are_named(
    root: Path, spoil: Callable[[Path], object], words: list[str]
) -> None:
    spoil(root)
    with refused("imagenet", *words):
        build(root)


@pytest.mark.parametrize("name", ["imagenet", "imagenette"])
@pytest.mark.parametrize("case", ["none", "absent", "empty", "no val", "flat val"])
def test_missing_folders_are_answered_at_once_with_what_to_do(root: Path, name: str, case: str) -> None:
    place: Path | None = root
    if case == "none":
        place = None
    elif case == "absent":
        place = root / "typo"
    elif case == "empty":
        place = root.parent / "bare"
        place.mkdir()
    else:
        rename(root, "val", "../val")
        if case == "flat val":
            (root / "val").mkdir()
            (root / "val" / "ILSVRC2012_val_00000001.JPEG").write_bytes(b"x")
    with refused("data.root", as_a=FileNotFoundError):
        build(place, name)


def test_imagenette_is_found_where_its_archive_unpacks(root: Path) -> None:
    whole = build(root, "imagenette").fingerprint
    (root.parent / "all").mkdir()
    root.rename(root.parent / "all" / "imagenette2-320")
    found = build(root.parent / "all", "imagenette")
    assert found.fingerprint == whole
    assert "320 px" in found.notes[-1]


def test_a_folder_that_may_not_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refuse)
    with refused("imagenet", root / "train"):
        build(root)


def test_imagenette_is_downloaded_aside_and_renamed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reachable:
        def close(self) -> None: ...

    def official(folder: Path, size: str, download: bool) -> None:
        assert download
        assert size == "320px"
        plant(folder / "imagenette2-320")

    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: Reachable())
    monkeypatch.setattr(torchvision.datasets, "Imagenette", official)
    place = root.parent / "new"
    assert build(place, "imagenette").num_classes == 3
    assert sorted(path.name for path in place.iterdir()) == [".download.lock", "imagenette2-320"]


def test_an_unknown_decoder_is_refused(root: Path) -> None:
    with refused("decoder", "opencv"):
        build(root, decoder="opencv")


def test_padding_is_refused_where_boxes_are_cut(root: Path) -> None:

    with refused("crop_padding"):
        build(root, augment={"crop_padding": 4})


def test_a_test_folder_beside_the_official_two_is_mentioned(root: Path) -> None:
    assert not any("not used" in note for note in build(root).notes)
    (root / "test").mkdir()
    assert any("not used" in note and "data=folder" in note for note in build(root).notes)


def test_a_link_to_nowhere_is_an_image_that_cannot_be_read(root: Path) -> None:
    (root / "train" / "n01" / "n01_0.JPEG").unlink()
    (root / "train" / "n01" / "n01_0.JPEG").symlink_to(root / "gone.JPEG")
    with refused("n01_0.JPEG"):
        list(build(root).train.epoch(0))
    skipping = build(root, on_bad_image="skip").train
    list(skipping.epoch(0))
    assert [Path(path).name for path in skipping.bad_images] == ["n01_0.JPEG"]
