"""The data card: what is counted before training, and what of it is refused or noted."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import Data
from data.card import card_of, header_of, jpeg_header
from scripts.reporting.runs import read_sweep
from scripts.reporting.tables import as_markdown, data_cards
from tests.box_files import write_coco
from tests.box_files import write_voc as write_boxes
from tests.data.mask_files import write_folder
from tests.opening import build_data as opened
from train import main

TURNED = Image.Exif()
TURNED[0x0112] = 6


def photo(path: Path, size: tuple[int, int] = (16, 16), exif: bool = False, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed + hash(path.name) % 1000).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path, **({"exif": TURNED} if exif else {}))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders: 6 + 4 images in train, 2 + 2 in test."""
    for split, counts in {"train": {"a": 6, "b": 4}, "test": {"a": 2, "b": 2}}.items():
        for known, count in counts.items():
            for i in range(count):
                photo(tmp_path / split / known / f"{split}{i}.png", seed=len(known) + 50 * i + 7 * (split == "test"))
    return tmp_path


def folder(root: Path, **options: Any) -> Data:
    return opened("folder", **{"root": root, "image_size": 16, "batch_size": 2, "val_fraction": 0.0, **options})


def masks(root: Path, **options: Any) -> Data:
    return opened("segmentation_folder", **{"root": root, "image_size": 32, "batch_size": 2, **options})


def noted(data: Data, *words: str) -> bool:
    return any(all(word in note for word in words) for note in card_of(data)["notes"])


def test_what_is_counted(photos: Path) -> None:
    photo(photos / "train" / "a" / "turned.jpg", (20, 10), exif=True)
    Image.new("L", (16, 16)).save(photos / "train" / "b" / "gray.jfif", "JPEG")
    Image.new("RGB", (16, 16)).save(photos / "train" / "b" / "slide.tif")
    for name in ("x.gif", "y.gif", "notes.txt"):
        (photos / "train" / "a" / name).write_bytes(b"x")
    card = card_of(folder(photos, exif="apply"))
    train, test = card["splits"]["train"], card["splits"]["test"]
    assert (train["images"], train["counts"], test["counts"]) == (13, {"a": 7, "b": 6}, {"a": 2, "b": 2})
    assert card["sizes"] == {"16x16": 16, "20x10": 1}
    assert card["modes"] == {"RGB": 16, "L": 1}
    assert card["orientations"] == {"6": 1}
    assert card["unused"] == {".gif": 2, ".txt": 1}
    assert noted(folder(photos), "files of other formats", ".gif 2", "train/a/notes.txt")
    shutil.rmtree(photos / "test")  # test and val are cut from train then, beside the same files
    assert noted(folder(photos), "files of other formats", "(.gif 2, .txt 1)")


def test_a_header_is_read_as_pillow_reads_it(tmp_path: Path) -> None:
    for i, (mode, options) in enumerate(
        [("RGB", {}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True}), ("RGB", {"exif": TURNED})]
    ):
        path = tmp_path / f"{i}.jpg"
        Image.new(mode, (30 + i, 20)).save(path, **options)
        header = header_of(str(path))
        assert (header.width, header.height, header.mode) == (30 + i, 20, mode)
        assert header.orientation == (6 if "exif" in options else 1)
        assert (jpeg_header(path.read_bytes()) is None) == ("exif" in options)  # the rest without Pillow
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    assert "8 bits" in header_of(str(tmp_path / "deep.png")).wrong
    (tmp_path / "no.jpg").write_bytes(b"no image")
    assert header_of(str(tmp_path / "no.jpg")).wrong


def test_animations_and_pipes_are_noted(photos: Path) -> None:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    for name in ("moves.webp", "moves.png"):
        frames[0].save(photos / "train" / "a" / name, save_all=True, append_images=frames[1:])
    os.mkfifo(photos / "train" / "a" / "pipe.png")
    (photos / "train" / "b" / "link.png").symlink_to(photos / "train" / "a" / "pipe.png")
    data = folder(photos)  # and does not wait for the pipe
    assert noted(data, "2 images are animations", "first frame", "train/a/moves.")
    assert card_of(data)["unused"] == {".png": 2}
    frames[0].save(photos / "train" / "a" / "two.tif", save_all=True, append_images=frames[1:])
    assert "several images" in header_of(str(photos / "train" / "a" / "two.tif")).wrong


def test_thousands_of_headers_are_read_in_a_second(photos: Path) -> None:
    """At most a second for 10,000: ten times that is left for a busy machine."""
    for i in range(1000):
        shutil.copy(photos / "train" / "a" / "train0.png", photos / "train" / "a" / f"more{i}.png")
    data = folder(photos, image_size=96)
    start = time.thread_time()
    assert card_of(data)["headers"] == 1014
    assert time.thread_time() - start < 1
    assert card_of(folder(photos, image_size=96)) is card_of(data)  # counted once for one fingerprint


def test_of_many_files_a_fixed_choice_is_looked_at(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.card.ALL_HEADERS", 10)
    monkeypatch.setattr("data.card.SOME_HEADERS", 5)
    shutil.copy(photos / "train" / "a" / "train0.png", photos / "test" / "a")
    card = card_of(folder(photos))
    assert (card["headers"], card["files"], sum(card["sizes"].values())) == (5, 15, 5)
    assert any("5 of 15 images were looked at" in note for note in card["notes"])
    assert card["shared"]["test"]["images"] == 1  # by its name


def test_one_of_many_files_that_begin_alike_is_found_again(photos: Path) -> None:
    """Uncompressed images with a dark border: equal sizes, equal first bytes."""
    for i in range(8):
        pixels = np.zeros((48, 48, 3), np.uint8)
        pixels[:10] = 30 * i  # a BMP holds its rows from the last to the first
        Image.fromarray(pixels).save(photos / "train" / "a" / f"dark{i}.bmp")
    shutil.copy(photos / "train" / "a" / "dark7.bmp", photos / "test" / "b" / "again.bmp")
    pixels[:10] = 255
    Image.fromarray(pixels).save(photos / "test" / "a" / "another.bmp")
    shared = card_of(folder(photos))["shared"]["test"]
    assert shared == {"images": 1, "example": str(photos / "test" / "b" / "again.bmp")}


def test_imbalance_and_single_images_are_noted(photos: Path) -> None:
    assert not noted(folder(photos), "% of the training images")
    for file in list((photos / "train" / "b").iterdir())[1:]:
        file.unlink()
    data = folder(photos)
    assert noted(data, "86 % of the training images are of class a", "headline=macro_accuracy")
    assert noted(data, "one image to train on of class b")
    assert noted(data, "steps of 25.0 points on test")


def test_a_class_that_cannot_be_learned_is_refused(
    photos: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in list((photos / "train" / "b").iterdir())[1:]:
        file.unlink()
    for i in range(4):  # of 10 + 1 images val takes 5 + 1
        photo(photos / "train" / "a" / f"more{i}.png", seed=99 + i)
    (reason,) = card_of(folder(photos, val_fraction=0.5))["refused"]
    assert "class b (b has 1 in val and 2 in test)" in reason
    assert not card_of(folder(photos, val_fraction=0.5, train_subset=2))["refused"]
    outputs = tmp_path_factory.mktemp("outputs")
    asked = [f"data.root={photos}", "data.val_fraction=0.5", f"output_root={outputs}", "batch_size=2"]
    small = ["data=folder", "model=resnet18", "model.width=4", "regularizer=none"]
    for words in ([], ["plan=true"]):
        assert main([*small, *asked, *words]) == 2
        assert "class b" in capsys.readouterr().err
    assert not list(outputs.iterdir())


def test_masks_of_black_and_white_are_named_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, classes=2)
    (tmp_path / "classes.txt").write_text("background\nlesion\n")
    for path in (tmp_path / "masks").iterdir():
        labels = np.array(Image.open(path))
        labels[:10, :10], labels[10:, 10:] = 0, 1
        Image.fromarray((labels * 255).astype(np.uint8)).save(path)
    for most in (2**27, 0):  # in memory, and in files
        monkeypatch.setattr("data.masks.MAX_IN_MEMORY", most)
        (reason,) = card_of(masks(tmp_path))["refused"]
        assert "class lesion" in reason
        assert "data.mask_values=[0,255]" in reason
        data = masks(tmp_path, mask_values=[0, 255], val_fraction=0.1)
        assert not card_of(data)["refused"]
        counts = [part["counts"] for part in card_of(data)["splits"].values()]
        assert sum(sum(count.values()) for count in counts) == 10 * 600  # nothing is ignored
        assert all(count["lesion"] for count in counts)
    Image.fromarray((labels * 255).astype(np.uint8)).convert("1").save(path)  # white is 255 there as well
    assert card_of(masks(tmp_path, mask_values=[0, 255]))["splits"] == card_of(data)["splits"]


def test_black_and_white_masks_among_others_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, classes=2)
    assert not noted(masks(tmp_path), "0 and 255 alone")
    for path in sorted((tmp_path / "masks").iterdir())[5:]:
        labels = np.array(Image.open(path))
        labels[:10, :10], labels[10:, 10:] = 0, 1
        Image.fromarray((labels * 255).astype(np.uint8)).save(path)
    for most in (2**27, 0):  # in memory, and in files
        monkeypatch.setattr("data.masks.MAX_IN_MEMORY", most)
        data = masks(tmp_path, val_fraction=0.1)
        assert not card_of(data)["refused"]
        assert noted(data, "training masks hold 0 and 255 alone")


def test_masks_are_given_by_gray_levels(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray((np.array(Image.open(path)) * 100).astype(np.uint8)).save(path)
    for values, named in (
        ([0, 100], "3 classes"),
        ([0, 100, 100], "one gray level"),
        ([0, 100, 201], "gray level 200"),
    ):
        with pytest.raises(ValueError, match=named):
            masks(tmp_path, mask_values=values)
    with pytest.raises(ValueError, match=r"label 100.*data.mask_values"):
        masks(tmp_path)
    data = masks(tmp_path, mask_values=[0, 100, 200])
    assert sum(sum(part["counts"].values()) for part in card_of(data)["splits"].values()) == 10 * 600


def test_masks_of_one_bit_and_of_gray_colours(tmp_path: Path) -> None:
    write_folder(tmp_path, classes=2)
    path = tmp_path / "masks" / "3.png"
    gray = np.array(Image.open(path))
    Image.fromarray(gray * 255).convert("1").save(path)
    masks(tmp_path)
    Image.fromarray(gray).convert("RGB").save(path)
    with pytest.raises(ValueError, match=r"convert\('L'\)"):
        masks(tmp_path)


def test_classes_that_test_lacks_are_noted(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        root = write_folder(tmp_path / "flat" / split, count=2, classes=3 if split == "train" else 2)
        for part in ("images", "masks"):
            (tmp_path / part).mkdir(exist_ok=True)
            (root / part).rename(tmp_path / part / ("valid" if split == "val" else split))
    shutil.copy(tmp_path / "flat" / "train" / "classes.txt", tmp_path)
    data = masks(tmp_path)
    assert noted(data, "test has no pixels of class thing 2", "mIoU")
    assert data.val is not None
    assert data.val.num_samples == 2  # the folder `valid`


def test_boxes_are_compared_with_the_picture_that_results(tmp_path: Path) -> None:
    root = write_boxes(tmp_path)
    path = root / "JPEGImages" / "train_0.jpg"  # its annotation says 60x40
    options: dict[str, Any] = {"root": root, "image_size": 64, "batch_size": 2}
    photo(path, (40, 60), exif=True)
    with pytest.raises(ValueError, match=r"EXIF orientation 6.*data.exif=apply"):
        list(opened("voc_detection", **options).train.epoch(0))
    (reason,) = card_of(opened("voc_detection", **options))["refused"]
    assert "train_0.jpg: it has 40x60 pixels" in reason
    data = opened("voc_detection", **options, exif="apply")
    assert not card_of(data)["refused"]
    assert noted(data, "1 of 12 images have an EXIF orientation, which is applied", "boxes")
    list(data.train.epoch(0))
    assert noted(opened("voc_detection", **options), "not applied (data.exif=apply)", "train_0.jpg")


def test_images_that_are_not_annotated_are_noted(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    photo(root / "train2017" / "extra.jpg")
    assert any("1 images in" in note and "extra.jpg" in note for note in opened("coco", root=root, batch_size=2).notes)


def test_unreadable_files_are_refused_before_training(photos: Path) -> None:
    (photos / "test" / "a" / "text.png").write_bytes(b"no image")
    (reason,) = card_of(folder(photos, image_size=96))["refused"]
    assert "text.png" in reason
    assert "data.on_bad_image=skip" in reason
    assert not card_of(folder(photos, image_size=96, on_bad_image="skip"))["refused"]


def test_a_run_and_its_report_have_the_card(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data=folder", f"data.root={photos}", "data.image_size=16", "model=resnet18", "model.width=4"]
    words += [f"output_root={photos.parent / 'outputs'}", "regularizer=none", "epochs=1", "batch_size=4"]
    assert main(["-m", *words, "data.val_fraction=0", "seed=1"]) == 0
    shown = capsys.readouterr().out
    assert "images of 2 classes in train: a 6, b 4" in shown
    (sweep,) = (photos.parent / "outputs" / "sweeps").iterdir()
    (first,) = (photos.parent / "outputs").glob("folder-*/*/seed-*/data_card.json")
    assert json.loads(first.read_text())["splits"]["train"]["counts"] == {"a": 6, "b": 4}
    (table,) = data_cards(read_sweep(sweep))
    title, text = table["title"], as_markdown(table)
    assert "images of each class" in title
    assert [cell.strip() for cell in text.splitlines()[3].strip("|").split("|")] == ["a", "6", "2"]
    from scripts.data_card import main as alone

    capsys.readouterr()
    assert alone([*words[:2]]) == 0
    assert "train (9 images)" in capsys.readouterr().out
