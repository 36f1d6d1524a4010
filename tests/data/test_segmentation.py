"""Segmentation data: masks follow their images, draws are counted, and mistakes name the file."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from configs.compose import plan_of
from data import DATASETS, Data, SegmentationBatch, masks
from data.samples import IGNORE
from engine.run_directory import same_data
from tests.data.mask_files import write_camvid, write_folder, write_mask, write_voc
from tests.named import refused
from tests.opening import build_data
from train import main

JITTER = {"flip": True, "scale_min": 0.6, "scale_max": 1.6}
UNIT = {"mean": [0.0] * 3, "std": [1.0] * 3}


def folder(root: Path, **options: Any) -> Data:
    return build_data("segmentation_folder", **{"root": root, "image_size": 32, "batch_size": 3, **options})


def batches(loader: Any, epoch: int = 0, start: int = 0) -> list[SegmentationBatch]:
    return list(loader.epoch(epoch, start))


def equal(one: list[SegmentationBatch], other: list[SegmentationBatch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(value, b.plain()[name])
        for a, b in zip(one, other, strict=True)
        for name, value in a.plain().items()
    )


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data sets of any size are read per batch."""
    monkeypatch.setattr("data.masks.MAX_IN_MEMORY", 0)


def test_one_draw_moves_image_and_mask_alike(tmp_path: Path) -> None:
    data = folder(write_folder(tmp_path), augment=JITTER, **UNIT)
    agree, inside = 0, 0
    for epoch in range(4):
        for batch in batches(data.train, epoch):
            assert batch.images.shape == (3, 3, 32, 32)
            assert batch.masks.dtype == torch.int64
            seen = batch.masks != IGNORE
            assert (batch.images[:, 1][seen] - 100 / 255).abs().max() < 0.01  # the whole image is labelled,
            assert batch.images[:, 1][~seen].abs().max() == 0  # and padding is the mean colour
            agree += int((batch.images[:, 0] * 255 / 20).round()[seen].eq(batch.masks[seen]).sum())
            inside += int(seen.sum())
    assert agree > 0.9 * inside  # all but interpolated borders of the squares


def test_evaluation_shows_every_image_once_at_its_own_size(tmp_path: Path) -> None:
    data = folder(write_folder(tmp_path), augment=JITTER, **UNIT)
    found = batches(data.test)
    assert torch.cat([batch.indices for batch in found]).tolist() == [0, 1]
    for batch in found:
        assert (batch.masks[:, :20, :30] != IGNORE).all()
        assert (batch.masks[:, 20:] == IGNORE).all()
        assert (batch.masks[:, :, 30:] == IGNORE).all()
        assert (batch.images[:, 0, :20, :30] * 255 / 20).round().equal(batch.masks[:, :20, :30].float())


def test_larger_images_are_reduced_and_the_notes_say_so(tmp_path: Path) -> None:
    data = folder(write_folder(tmp_path), image_size=16)
    assert any("2 test images are evaluated at 16 pixels" in note for note in data.notes)
    assert (batches(data.test)[0].masks[:, :11] != IGNORE).all()


def test_images_that_training_enlarges_and_evaluation_does_not_are_noted(tmp_path: Path) -> None:
    write_folder(tmp_path)  # 30 pixels wide

    def noted(size: int, low: float, high: float) -> list[str]:
        data = folder(tmp_path, image_size=size, augment={"scale_min": low, "scale_max": high})
        return [note for note in data.notes if "training draws" in note]

    (note,) = noted(60, 0.75, 1.5)
    assert "at most 30 pixels, training draws them at 45-90: set data.image_size=30" in note
    assert "draws them at 60:" in noted(60, 1.0, 1.0)[0]
    assert not noted(60, 0.4, 0.6)  # as small in training
    assert not noted(32, 0.75, 1.5)
    assert not noted(30, 1.0, 3.0)


def test_a_small_val_that_was_cut_off_is_noted(tmp_path: Path) -> None:
    write_folder(tmp_path, 26)
    for fraction, images in ((0.04, "1 image,"), (0.9, "19 images,")):
        (note,) = [note for note in folder(tmp_path, batch_size=1, val_fraction=fraction).notes if "val has" in note]
        assert f"val has {images} few to choose the best epoch by" in note
    assert not any("val has" in note for note in folder(tmp_path, batch_size=1, val_fraction=0.95).notes)
    assert not any("val has" in note for note in folder(tmp_path, val_fraction=0.0).notes)
    assert not any("val has" in note for note in folder(with_splits(tmp_path / "own")).notes)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.usefixtures("on_disk")
def test_workers_and_a_resume_see_the_same_batches(tmp_path: Path, workers: int) -> None:
    augment = {**JITTER, "photometric": 0.4}
    write_folder(tmp_path)
    whole = batches(folder(tmp_path, augment=augment, seed=4, batch_size=2).train, 3)
    loader = folder(tmp_path, augment=augment, seed=4, batch_size=2, workers=workers).train
    assert equal(whole[2:], batches(loader, 3, start=2))
    assert not equal(whole, batches(loader, 4))
    assert not equal(whole, batches(folder(tmp_path, augment=JITTER, seed=4, batch_size=2).train, 3))


def test_ranks_share_out_the_batches(tmp_path: Path) -> None:
    write_folder(tmp_path)
    options = {"augment": JITTER, "batch_size": 4, "eval_batch_size": 2}
    alone = folder(tmp_path, **options)
    ranks = [folder(tmp_path, rank=rank, world_size=2, **options) for rank in range(2)]
    for split in ("train", "test"):
        for batch, *shares in zip(*(batches(getattr(d, split), 1) for d in (alone, *ranks)), strict=True):
            for name, value in batch.plain().items():
                assert value.equal(torch.cat([share.plain()[name] for share in shares]))


def test_memory_and_disk_give_the_same_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path)
    memory = batches(folder(tmp_path, augment=JITTER, **UNIT).train, 1)
    monkeypatch.setattr("data.masks.MAX_IN_MEMORY", 0)
    assert equal(memory, batches(folder(tmp_path, augment=JITTER, **UNIT).train, 1))


def test_test_and_val_are_cut_where_the_folder_has_none(tmp_path: Path) -> None:
    data = folder(write_folder(tmp_path), val_fraction=0.25)
    assert (data.train.num_samples, data.val.num_samples, data.test.num_samples) == (6, 2, 2)
    assert any("no test folder" in note for note in data.notes)
    assert data.classes == ("thing 0", "thing 1", "thing 2")
    assert data.fingerprint == folder(tmp_path, val_fraction=0.25, seed=9, batch_size=2).fingerprint
    assert data.fingerprint != folder(tmp_path, val_fraction=0.4).fingerprint


def with_splits(root: Path) -> Path:
    """`segmentation_folder` with 6, 2 and 2 pairs."""
    write_folder(root)
    for split, numbers in (("train", range(6)), ("val", range(6, 8)), ("test", range(8, 10))):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir()
            for i in numbers:
                (root / kind / f"{i}.png").rename(root / kind / split / f"{i}.png")
    return root


def test_a_folder_with_splits_of_its_own(tmp_path: Path) -> None:
    data = folder(with_splits(tmp_path))
    assert (data.train.num_samples, data.val.num_samples, data.test.num_samples) == (6, 2, 2)


def test_what_lies_in_no_split_is_noted(tmp_path: Path) -> None:
    assert not [note for note in folder(with_splits(tmp_path)).notes if "in no split" in note]
    (tmp_path / "images" / "train" / "more").mkdir()
    (tmp_path / "images" / ".hidden").mkdir()
    (tmp_path / "masks" / "holdout").mkdir()
    (tmp_path / "images" / "11.png").write_bytes(b"")
    (note,) = (note for note in folder(tmp_path).notes if "in no split" in note)
    assert all(name in note for name in ("images/11.png", "images/train/more", "masks/holdout", "3 "))
    assert "hidden" not in note


def test_an_image_that_moved_from_train_to_val_is_other_data(tmp_path: Path) -> None:
    data = folder(with_splits(tmp_path))
    for kind in ("images", "masks"):  # the last image trained on becomes the first of val
        (tmp_path / kind / "train" / "5.png").rename(tmp_path / kind / "val" / "5.png")
    moved = folder(tmp_path)
    assert (moved.train.num_samples, moved.val.num_samples) == (5, 3)
    assert not same_data(data.fingerprint, moved.fingerprint)
    assert same_data(data.fingerprint.partition("-")[0], data.fingerprint)  # as older runs have it on record


def test_a_split_without_a_labelled_pixel_is_refused_before_training(tmp_path: Path) -> None:
    with_splits(tmp_path)
    for path in (tmp_path / "masks" / "val").iterdir():
        write_mask(path, np.full((20, 30), IGNORE))
    with refused("segmentation_folder", "val"):
        folder(tmp_path)


@pytest.mark.usefixtures("on_disk")
def test_another_mask_under_the_same_name_is_another_fingerprint(tmp_path: Path) -> None:
    before = folder(write_folder(tmp_path)).fingerprint
    write_mask(tmp_path / "masks" / "3.png", np.zeros((20, 30)))
    assert folder(tmp_path).fingerprint != before


def other_size(root: Path) -> None:
    write_mask(root / "masks" / "3.png", np.zeros((20, 20)))


def label_above(root: Path) -> None:
    write_mask(root / "masks" / "3.png", np.full((20, 30), 7))


def colours(root: Path) -> None:
    Image.new("RGB", (30, 20)).save(root / "masks" / "3.png")


def only_a_test_folder(root: Path) -> None:
    for kind in ("images", "masks"):
        (root / kind / "test").mkdir()
        (root / kind / "3.png").rename(root / kind / "test" / "3.png")


MISTAKES: list[tuple[Callable[[Path], object], list[str]]] = [
    (other_size, ["masks/3.png", "20x20", "30x20"]),
    (label_above, ["masks/3.png", "label 7", "0 ... 2"]),
    (colours, ["masks/3.png", "mode RGB"]),
    (lambda root: (root / "masks" / "3.png").write_bytes(b"no mask"), ["masks/3.png"]),
    (lambda root: (root / "images" / "3.png").write_bytes(b"no image"), ["images/3.png"]),
    (lambda root: (root / "masks" / "3.png").unlink(), ["'3'", "mask"]),
    (lambda root: (root / "images" / "3.png").unlink(), ["masks", "3"]),
    (lambda root: (root / "classes.txt").unlink(), ["classes.txt"]),
    (lambda root: (root / "classes.txt").write_text("\ufeffone\none\n"), ["classes.txt", "one"]),
    (lambda root: (root / "classes.txt").write_text("one\n"), ["classes.txt", "1 classes"]),
    (lambda root: (root / "classes.txt").write_text("one\none\n"), ["classes.txt", "one"]),
    (lambda root: (root / "masks").rename(root / "labels"), ["no folder", "masks", "classes.txt"]),
    (only_a_test_folder, ["images/test", "train/"]),
]


# On the disk the loader meets what only the content of a file says: the first five.
@pytest.mark.parametrize(
    ("damage", "expected", "memory"), [*((*m, True) for m in MISTAKES), *((*m, False) for m in MISTAKES[:5])]
)
def test_mistakes_are_one_line_that_names_the_file(
    tmp_path: Path,
    damage: Callable[[Path], object],
    expected: list[str],
    memory: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not memory:
        monkeypatch.setattr("data.masks.MAX_IN_MEMORY", 0)
    damage(write_folder(tmp_path))
    with refused(*expected, as_a=(ValueError, FileNotFoundError)):
        data = folder(tmp_path, batch_size=1)
        for loader in (data.train, data.val, data.test):  # on disk the loader meets it
            batches(loader)


def test_a_list_with_endings_gets_a_hint(tmp_path: Path) -> None:
    path = write_voc(tmp_path) / "ImageSets" / "Segmentation" / "val.txt"
    path.write_text("v0.jpg\nv1.jpg\n")
    with refused("'v0.jpg'", "endings", as_a=FileNotFoundError):
        build_data("voc_segmentation", root=tmp_path, batch_size=2)


@pytest.mark.parametrize("memory", [True, False])
def test_skip_leaves_a_bad_pair_out(tmp_path: Path, memory: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not memory:
        monkeypatch.setattr("data.masks.MAX_IN_MEMORY", 0)
    label_above(write_folder(tmp_path))
    data = folder(tmp_path, batch_size=1, on_bad_image="skip")
    seen = [batch.masks for loader in (data.train, data.val, data.test) for batch in batches(loader)]
    assert all(((mask < 3) | (mask == IGNORE)).all() for mask in seen)
    bad = [path for loader in (data.train, data.val, data.test) for path in loader.bad_images]
    assert [Path(path).name for path in bad] == ["3.png"]


def test_a_decompression_bomb_is_named_or_left_out(tmp_path: Path) -> None:
    image = write_folder(tmp_path) / "images" / "3.png"
    content = bytearray(image.read_bytes())
    content[16:24] = struct.pack(">II", 65_000, 65_000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    image.write_bytes(content)
    with refused(image, "data.on_bad_image=skip"):
        folder(tmp_path, batch_size=1)
    data = folder(tmp_path, batch_size=1, on_bad_image="skip")
    bad = [path for loader in (data.train, data.val, data.test) for path in loader.bad_images]
    assert [Path(path).name for path in bad] == ["3.png"]


def test_a_mean_of_another_number_of_channels_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    with refused("data.mean", "data.std", "1 channels"):
        folder(tmp_path, mean=[0.5], std=[0.5])


def test_augmentation_of_classification_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    with refused("recipe.augment.crop_padding"):
        folder(tmp_path, augment={"crop_padding": 4})


def test_camvid_ignores_void(tmp_path: Path) -> None:
    data = build_data("camvid", root=write_camvid(tmp_path), image_size=32, batch_size=2)
    assert (data.train.num_samples, data.val.num_samples, data.test.num_samples) == (3, 2, 2)
    assert len(data.classes) == 11
    for i, mask in enumerate(batches(data.test)[0].masks):
        raw = np.array(Image.open(tmp_path / "testannot" / f"{i}.png"))
        assert (mask[:20, :30].numpy() == np.where(raw == 11, IGNORE, raw)).all()


def test_voc_reads_palettes_as_indices(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOCdevkit" / "VOC2012")
    mask = tmp_path / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "v0.png"
    raw = np.array(Image.open(mask))
    raw[0] = IGNORE
    write_mask(mask, raw)
    data = build_data("voc_segmentation", root=tmp_path, image_size=33, batch_size=1, val_fraction=0.0)
    assert (data.train.num_samples, data.val, data.test.num_samples, data.num_classes) == (3, None, 2, 21)
    assert (batches(data.test)[0].masks[0, :20, :30].numpy() == raw).all()
    assert any("official list has 1,464" in note for note in data.notes)


def test_trainaug_is_checked(tmp_path: Path) -> None:
    lists = write_voc(tmp_path) / "ImageSets" / "Segmentation"

    def trainaug() -> Data:
        return build_data("voc_segmentation", root=tmp_path, image_size=33, batch_size=1, list="trainaug")

    with refused("trainaug.txt", "train, val", as_a=FileNotFoundError):
        trainaug()
    (lists / "trainaug.txt").write_text("t0\nt1\n")
    with refused("trainaug.txt", "2 images", "10,582"):
        trainaug()
    (lists / "trainaug.txt").write_text("t0\nv1\n")
    with refused("data.list=trainaug", "v1"):
        trainaug()
    (lists / "trainaug.txt").write_text("".join(f"t{i}\n" for i in range(10_582)))
    with refused("'t3'", as_a=FileNotFoundError):  # the list is accepted, its files are missing
        trainaug()


def test_digit_masks_are_scenes() -> None:
    data = build_data("digit_masks", image_size=32, batch_size=10, train_subset=40)
    assert (data.task, data.num_classes, data.image_shape) == ("segmentation", 11, (3, 32, 32))
    assert (data.train.num_samples, data.val.num_samples, data.test.num_samples) == (40, 300, 500)
    batch = batches(data.test)[0]
    assert batch.masks.max() == 10
    assert not (batch.masks == IGNORE).any()


def test_a_mask_file_is_never_taken_for_more_than_it_is() -> None:
    with refused("label 3"):
        masks.Labels(("a", "b", "c")).checked(np.array([[0, 3]], np.uint8))
    assert masks.Labels(("a", "b"), void=2).checked(np.array([[0, 2]], np.uint8)).tolist() == [[0, IGNORE]]


def test_ones_own_masks_train_through_the_command_line(tmp_path: Path) -> None:
    write_folder(tmp_path / "fields")
    words = ["data=segmentation_folder", f"data.root={tmp_path / 'fields'}", "data.image_size=32", "model.width=4"]
    words += ["model.options.fpn_width=8", "model.options.head_width=8", "epochs=2", "batch_size=3", "progress=false"]
    assert main([*words, "regularizer=none", "device=cpu", f"output_root={tmp_path}"]) == 0
    (run,) = tmp_path.glob("segmentation_folder-fields-segmentation_fpn/none-*/seed-1")
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["headline"], summary["task"]) == ("miou", "segmentation")
    assert set(summary["last"]) >= {"val/miou", "test/miou", "test/pixel_accuracy"}


def test_the_yamls_of_segmentation_name_data_sets_that_exist() -> None:
    for name in ("camvid", "digit_masks", "voc_segmentation", "segmentation_folder"):
        root = () if name == "digit_masks" else ("data.root=/nowhere",)
        plan = plan_of(f"data={name}", *root, "regularizer=none")
        assert (plan.data.name, plan.data.task, plan.model.name) == (name, "segmentation", "segmentation_fpn")
        assert name in DATASETS
