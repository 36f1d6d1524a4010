"""`data=folder`: a user's own class folders, from the files to a finished run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.card import card_of
from tests.named import refused
from tests.opening import build_data
from train import main

CLASSES = ("pears 2", "äpfel")
Build = Callable[..., object]


def plant(root: Path, counts: dict[str, int], mode: str = "RGB", size: tuple[int, int] = (12, 12)) -> Path:
    """Class folders with that many images a class; the second class is brighter."""
    draws = np.random.default_rng(0)
    for split, count in counts.items():
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                shape = size if mode == "L" else (*size, 3)
                pixels = draws.integers(100 * label, 100 * label + 80, shape).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
    return root


def build(root: Path | None, **options: object) -> object:
    return build_data("folder", **{"root": root, "image_size": 12, "batch_size": 4, **options})  # type: ignore[arg-type]


def samples(loader: object) -> torch.Tensor:
    return torch.cat([batch.images for batch in loader.epoch(0)])


def test_train_val_and_test_are_the_folders_own(tmp_path: Path) -> None:
    data = build(plant(tmp_path, {"train": 6, "val": 3, "test": 4}))
    assert (data.train.num_samples, data.val.num_samples, data.test.num_samples) == (12, 6, 8)
    assert (data.classes, data.image_shape, data.task) == (CLASSES, (3, 12, 12), "classification")
    images = samples(data.train)
    assert images.mean((0, 2, 3)).abs().max() < 1e-5
    assert (images.std((0, 2, 3), correction=0) - 1).abs().max() < 1e-4
    assert next(data.test.epoch(0)).labels.tolist() == [0, 0, 0, 0]


def test_a_root_of_another_level_or_layout_is_answered_with_what_it_is(tmp_path: Path) -> None:
    root = plant(tmp_path / "mine", {"train": 2, "val": 2})
    with pytest.raises(FileNotFoundError, match=rf"it is itself a split: data.root={root}$"):
        build(root / "train")
    (root / "train").rename(root / "train2017")
    for known in CLASSES:
        photo = next((root / "train2017" / known).iterdir())
        photo.rename(root / "train2017" / photo.name)
    with pytest.raises(FileNotFoundError, match="it holds train2017: name the splits train, val and test"):
        build(root)
    (root / "annotations").mkdir()
    with pytest.raises(FileNotFoundError, match="data=coco"):
        build(root)
    (root / "val").rename(root / "classes")
    with pytest.raises(FileNotFoundError, match="holds 2 folders of images: move them into train/"):
        build(root / "classes")


def test_what_is_missing_is_cut_from_train_once_and_for_all(tmp_path: Path) -> None:
    plant(tmp_path, {"train": 20})
    one, other = build(tmp_path, val_fraction=0.25, seed=1), build(tmp_path, val_fraction=0.25, seed=2)
    assert (one.train.num_samples, one.val.num_samples, one.test.num_samples) == (24, 8, 8)
    assert one.fingerprint == other.fingerprint
    every = torch.cat([loader.windows.flatten(1) for loader in (one.train, one.val, one.test)])
    assert len(every.unique(dim=0)) == 40
    assert one.test.labels.bincount().tolist() == [4, 4]
    assert any("no test folder, 8 of the training images" in note for note in one.notes)


def test_a_subset_and_a_fraction_give_exact_numbers(tmp_path: Path) -> None:
    data = build(plant(tmp_path, {"train": 20, "test": 3}), val_fraction=0.1, train_subset=10)
    assert (data.train.num_samples, data.val.num_samples, data.test.num_samples) == (10, 4, 6)
    assert data.train.labels.bincount().tolist() == [5, 5]
    assert data.val.labels.bincount().tolist() == [2, 2]


def test_gray_images_have_one_channel(tmp_path: Path) -> None:
    plant(tmp_path, {"train": 6, "test": 2}, mode="L")
    assert build(tmp_path).image_shape == (1, 12, 12)
    Image.new("RGB", (12, 12), (9, 80, 200)).save(tmp_path / "test" / CLASSES[0] / "colour.png")
    assert build(tmp_path).image_shape == (3, 12, 12)


def test_other_sizes_are_resized_and_cropped(tmp_path: Path) -> None:
    plant(tmp_path, {"train": 4, "test": 2}, size=(30, 21))
    data = build(tmp_path)
    assert data.image_shape == (3, 12, 12)
    assert any("12 of 12 images came in another size" in note for note in data.notes)


def test_held_out_images_that_are_trained_on_are_noted(tmp_path: Path) -> None:
    """Names are no sign, equal contents are; each split for itself."""
    plant(tmp_path, {"train": 6, "val": 2, "test": 3})
    for split in ("train", "test"):  # neither can be read
        (tmp_path / split / CLASSES[0] / "gone.png").symlink_to(tmp_path / "nowhere")
        (tmp_path / split / CLASSES[0] / "empty.png").touch()
    data = build(tmp_path, on_bad_image="skip")
    assert any("4 unreadable files are left out" in note for note in data.notes)
    assert not card_of(data)["shared"]
    for image in (tmp_path / "train").glob("*/1.png"):
        shutil.copy(image, tmp_path / "test" / image.parent.name / "other.png")
    card = card_of(build(tmp_path, on_bad_image="skip"))
    assert card["shared"]["test"]["images"] == 2
    (note,) = (note for note in card["notes"] if "in train as well" in note)
    assert note.endswith("/other.png")


def test_given_statistics_are_used(tmp_path: Path) -> None:
    plant(tmp_path, {"train": 4, "test": 2})
    plain = build(tmp_path, mean=[0.0, 0.0, 0.0], std=[1.0, 1.0, 1.0])
    values = samples(plain.test) * 255
    assert (values - values.round()).abs().max() < 1e-3


def test_large_images_are_read_per_batch(tmp_path: Path) -> None:
    plant(tmp_path, {"train": 4, "test": 2}, size=(80, 90))
    data = build(tmp_path, image_size=72)
    assert next(data.train.epoch(0)).images.shape == (4, 3, 72, 72)
    before = data.fingerprint
    file = tmp_path / "test" / CLASSES[0] / "0.png"
    Image.new("RGB", (90, 80)).save(file)  # another image under the same name
    assert build(tmp_path, image_size=72).fingerprint != before


def unreadable(root: Path) -> None:
    (root / "train" / CLASSES[0] / "0.png").write_bytes(b"no image")


def sixteen_bits(root: Path) -> None:
    Image.fromarray(np.zeros((12, 12), np.uint16)).save(root / "train" / CLASSES[0] / "0.png")


def five_unreadable(root: Path) -> None:
    for i, name in enumerate(("a", "b", "c", "d", "e")):
        (root / "train" / CLASSES[0] / f"{name}.png").write_bytes(b"no image" * (i + 1))


def classes_at_the_root(root: Path) -> None:
    for folder in list((root / "train").iterdir()):
        folder.rename(root / folder.name)
    (root / "train").rmdir()


def test_the_unreadable_images_of_a_batch_are_named_together(tmp_path: Path) -> None:
    plant(tmp_path, {"train": 4, "val": 2, "test": 2}, size=(80, 90))
    five_unreadable(tmp_path)
    data = build(tmp_path, image_size=72)
    with refused("png", "data.on_bad_image=skip"):
        list(data.train.epoch(0))


@pytest.mark.parametrize(
    ("damage", "options", "expected"),
    [
        (unreadable, {}, ["0.png", "data.on_bad_image=skip"]),
        (five_unreadable, {}, ["a.png", "1 more"]),
        (classes_at_the_root, {}, ["2 folders", "train/"]),
        (sixteen_bits, {}, ["0.png", "8 bits"]),
        (lambda root: (root / "train" / CLASSES[0]).rename(root / "elsewhere"), {}, ["train", "äpfel"]),
        (lambda root: (root / "test" / CLASSES[0]).rename(root / "test" / "plums"), {}, ["test", "pears 2"]),
        (lambda root: (root / "train").rename(root / "training"), {}, ["train", "data.root", "train/<class>/<image>"]),
        (lambda root: None, {"mean": [0.5]}, ["data.mean", "data.std"]),
        (lambda root: None, {"mean": [0.5], "std": [0.2]}, ["data.mean", "1 channels", "3"]),
        (lambda root: None, {"std": [2.0], "mean": [0.5]}, ["data.std=[2.0]"]),
        (lambda root: None, {"prepared": True}, ["prepared"]),
        (lambda root: None, {"root": None}, ["data.root"]),
        (lambda root: None, {"list": "train"}, ["data.list", "mean, std"]),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, damage: Callable[[Path], object], options: dict[str, object], expected: list[str]
) -> None:
    damage(plant(tmp_path, {"train": 4, "test": 2}))
    with refused(*expected, as_a=(ValueError, FileNotFoundError)):
        build(**{"root": tmp_path, **options})


def test_skip_leaves_a_damaged_file_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    unreadable(plant(tmp_path, {"train": 4, "val": 1, "test": 2}))
    data = build(tmp_path, on_bad_image="skip")
    assert data.train.num_samples == 7
    assert [Path(path).name for path in data.train.bad_images] == ["0.png"]
    assert "left out" in caplog.text
    assert any("1 unreadable file is left out" in note for note in data.notes)


@pytest.mark.parametrize("size", [12, 72])  # in memory, and read for each batch
def test_skip_leaves_out_a_few_alone(tmp_path: Path, size: int) -> None:
    plant(tmp_path, {"train": 4, "test": 4}, size=(80, 90))
    for path in sorted((tmp_path / "test").rglob("*.png"))[:3]:
        path.write_bytes(b"no image")
    with refused("3 of 8 images", "2 may be left out", "0.png"):
        list(build(tmp_path, image_size=size, on_bad_image="skip").test.epoch(0))


def test_a_run_through_the_command_line_is_named_after_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(tmp_path / "my fruit", {"train": 16, "test": 8})
    words = ["data=folder", f"data.root={tmp_path / 'my fruit'}", "data.image_size=12", "model=resnet18"]
    words += ["model.width=4", "epochs=2", "batch_size=8", "progress=false", "device=cpu", f"output_root={tmp_path}"]
    assert main([*words, "regularizer=none"]) == 0
    (run,) = tmp_path.glob("folder-my-fruit-resnet18/none-*/seed-1")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["last"]["test/top1"] >= 50
    assert main([*words, "regularizer=none"]) == 0
    assert "already done" in capsys.readouterr().out
    shutil.copytree(tmp_path / "my fruit", tmp_path / "copy" / "my fruit")
    moved = [word for word in words if not word.startswith("data.root")] + [
        f"data.root={tmp_path / 'copy' / 'my fruit'}"
    ]
    assert main([*moved, "regularizer=none"]) == 0
    assert "already done" in capsys.readouterr().out  # the same files in another place
    gone = tmp_path / "my fruit" / "train" / CLASSES[0] / "0.png"
    gone.rename(tmp_path / "0.png")
    assert main([*words, "regularizer=none", "seed=2"]) == 2  # before its first step
    assert f"{run} was trained on other files of folder" in capsys.readouterr().err
    assert [path.name for path in run.parent.iterdir()] == ["seed-1"]
    (tmp_path / "0.png").rename(gone)
    (tmp_path / "copy" / "my fruit" / "train" / CLASSES[0] / "0.png").unlink()
    assert main([*moved, "regularizer=none"]) == 2
    error = capsys.readouterr().err
    assert f"trained on other data, in {tmp_path / 'my fruit'}; data.title=NAME" in error
    assert json.loads((run / "summary.json").read_text()) == summary


def test_the_command_line_asks_for_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data=folder", "regularizer=none"]) == 2
    assert "data.root=PATH" in capsys.readouterr().err


def test_a_link_to_nowhere_among_photographs_is_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    plant(tmp_path, {"train": 8, "val": 2, "test": 2}, size=(90, 90))
    name = tmp_path / "train" / CLASSES[0] / "7.png"
    name.unlink()
    name.symlink_to(tmp_path / "gone.png")
    with refused(name):
        list(build(tmp_path, image_size=80).train.epoch(0))
    data = build(tmp_path, image_size=80, on_bad_image="skip")
    list(data.train.epoch(0))
    assert [Path(path).name for path in data.train.bad_images] == ["7.png"]


def test_class_names_of_any_script_are_text(tmp_path: Path) -> None:
    names = sorted(["می‌شود", "New\u00a0York"])
    plant(tmp_path, {"train": 6, "test": 2})
    for split in ("train", "test"):
        for old, new in zip(CLASSES, names, strict=True):
            (tmp_path / split / old).rename(tmp_path / split / new)
    assert build(tmp_path).classes == tuple(names)
