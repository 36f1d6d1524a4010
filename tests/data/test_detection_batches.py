"""Batches of images with boxes: fixed shapes, equal for any number of workers and on resume, every image once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data.interface import Data, DetectionBatch
from engine.tasks.boxes import Detections
from engine.tasks.coco_metrics import CocoEvaluator
from tests.box_files import change_json, voc_xml, write_coco, write_voc
from tests.named import refused
from tests.opening import build_data

JITTERED = {"flip": True, "scale_min": 0.8, "scale_max": 1.2}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_coco(tmp_path_factory.mktemp("detection") / "coco")


def coco(root: Path, **options: Any) -> Data:
    given = {"image_size": 64, "batch_size": 4, "eval_batch_size": 2, "val_fraction": 0.2, "augment": JITTERED}
    return build_data("coco", root=root, **{**given, **options})


def equal(one: DetectionBatch, other: DetectionBatch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.plain().values(), other.plain().values(), strict=True))


def test_shapes_types_and_padding(root: Path) -> None:
    data = coco(root)
    assert (data.task, data.num_classes, data.image_shape) == ("detection", 3, (3, 64, 64))
    for batch in (*data.train.epoch(0), *data.test.epoch(0)):
        n = batch.size
        assert batch.images.shape == (n, 3, 64, 64)
        assert batch.images.dtype == batch.boxes.dtype == torch.float32
        assert batch.boxes.shape == (n, 100, 4)
        assert batch.labels.shape == (n, 100)
        assert batch.labels.dtype == batch.image_ids.dtype == batch.indices.dtype == torch.int64
        assert batch.scales.dtype == torch.float64
        real = batch.labels >= 0
        assert (batch.boxes[~real] == -1).all()
        assert (batch.labels[~real] == -1).all()
        corners = batch.boxes[real]
        assert (corners >= 0).all()
        assert (corners <= 64).all()
        assert (corners[:, 2:] - corners[:, :2] >= 1).all()
        assert (real.int().diff(dim=1) <= 0).all()  # the boxes come first, the padding after


def test_workers_and_resume_change_no_bit(root: Path) -> None:
    alone, helped = coco(root), coco(root, workers=2)
    for one, other in ((alone.train, helped.train), (alone.test, helped.test)):
        assert all(equal(a, b) for a, b in zip(one.epoch(1), other.epoch(1), strict=True))
    assert all(equal(a, b) for a, b in zip(list(alone.train.epoch(1))[1:], helped.train.epoch(1, 1), strict=True))


def test_evaluation_meets_every_image_once_whatever_the_ranks(root: Path) -> None:
    for split in ("val", "test"):
        loaders = [getattr(coco(root, rank=rank, world_size=2), split) for rank in range(2)]
        seen = sorted(i for loader in loaders for batch in loader.epoch(0) for i in batch.image_ids.tolist())
        assert seen == sorted(image["id"] for image in loaders[0].truth["images"])
    data = coco(root)
    assert len(data.val.truth["images"]) == 2
    trained = {i for batch in data.train.epoch(0) for i in batch.image_ids.tolist()}
    assert not trained & {image["id"] for image in data.val.truth["images"]}


def test_scaled_back_boxes_and_ids_are_the_truth(root: Path) -> None:
    """The round trip: what a perfect detector would hand to the evaluation."""
    data = coco(root)
    truth = data.test.truth
    expected = sorted(
        (entry["image_id"], entry["category_id"], *np.round(entry["bbox"], 3))
        for entry in truth["annotations"]
        if not entry["iscrowd"]
    )
    found = []
    for batch in data.test.epoch(0):
        for row in range(batch.size):
            real = batch.labels[row] >= 0
            boxes = batch.boxes[row][real].double() / batch.scales[row]
            sides = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
            for box, label in zip(sides.tolist(), batch.labels[row][real].tolist(), strict=True):
                found.append((int(batch.image_ids[row]), truth["categories"][label]["id"], *np.round(box, 3)))
    assert np.allclose(sorted(found), expected, atol=2e-3)


@pytest.mark.parametrize("size", [64, 32])
def test_the_truth_taken_for_detections_scores_100(root: Path, tmp_path: Path, size: int) -> None:
    voc = write_voc(tmp_path)
    (voc / "Annotations" / "test_0.xml").write_text(
        voc_xml(40, 60, [("cat", (7, 9, 7, 9), 0), ("dog", (2, 2, 9, 9), 1)])
    )

    def found(_: nn.Module, batch: DetectionBatch) -> list[Detections]:
        real = batch.labels >= 0
        pairs = zip(batch.boxes, batch.labels, real, strict=True)
        return [Detections(boxes[r], torch.ones(int(r.sum())), labels[r]) for boxes, labels, r in pairs]

    lists = {"val_split": "val", "test_split": "test"}
    for data in (
        coco(root, image_size=size),
        build_data("voc_detection", root=voc, batch_size=2, image_size=size, **lists),
    ):
        for loader in (data.val, data.test):
            evaluator = CocoEvaluator(data.classes, loader.truth, found)
            for batch in loader.epoch(0):
                evaluator.update(nn.Identity(), batch)
            metrics = evaluator.metrics()
            assert min(metrics["ap"], metrics["ap50"], metrics["ar100"], metrics["voc_ap50"]) > 100 - 1e-9


def test_padding_is_exactly_zero_and_the_image_is_not(root: Path) -> None:
    batch = next(coco(root).test.epoch(0))  # 40x60 and 60x40 at 64: padded below, and on the right
    assert (batch.images[0, :, 43:] == 0).all()
    assert (batch.images[0, :, :43].abs().amin(0) > 0).any(1).all()
    assert (batch.images[1, :, :, 43:] == 0).all()
    assert (batch.images[1, :, :, :43].abs().amin(0) > 0).any(0).all()
    assert batch.scales.tolist() == [64 / 60, 64 / 60]


def test_images_without_boxes_are_trained_on(root: Path) -> None:
    data = coco(root, val_fraction=0.0, batch_size=5)
    counts = {
        int(number): int((labels >= 0).sum())
        for batch in data.train.epoch(0)
        for number, labels in zip(batch.image_ids, batch.labels, strict=True)
    }
    assert counts[1010] == 0
    assert counts[1000] == 2  # neither its crowd nor its boxes without an area


def test_of_more_than_100_boxes_the_largest_are_taken(tmp_path: Path) -> None:
    voc = write_voc(tmp_path)
    small = [("dog", (1 + i % 50, 1, 2 + i % 50, 2), 0) for i in range(90)]
    large = [("cat", (1 + i, 1, 20 + i, 20 + i), 0) for i in range(15)]
    (voc / "Annotations" / "val_0.xml").write_text(voc_xml(40, 60, small + large))
    data = build_data("voc_detection", root=voc, batch_size=4, image_size=64)
    batch = next(data.test.epoch(0))
    assert (batch.labels[0] == 0).sum() == 15
    assert (batch.labels[0] == 1).sum() == 85
    assert any("1 images with more than 100" in note for note in data.notes)
    assert len([a for a in data.test.truth["annotations"] if a["image_id"] == 0]) == 105


def test_lists_of_voc_make_the_splits(tmp_path: Path) -> None:
    voc = write_voc(tmp_path)
    data = build_data("voc_detection", root=voc, batch_size=2, image_size=64, val_split="val", test_split="test")
    assert (data.train.num_samples, data.val.num_samples, data.test.num_samples) == (8, 4, 3)
    assert data.classes == ("cat", "dog")
    cut = build_data("voc_detection", root=voc, batch_size=2, image_size=64, val_fraction=0.25)
    assert (cut.train.num_samples, cut.val.num_samples, cut.test.num_samples) == (6, 2, 4)
    assert data.fingerprint != cut.fingerprint
    few = build_data("voc_detection", root=voc, batch_size=2, image_size=64, val_fraction=0.25, train_subset=3)
    assert few.train.num_samples == 3


def test_damaged_and_mismatched_images_end_the_run_or_are_left_out(root: Path, tmp_path: Path) -> None:
    copy = write_coco(tmp_path / "coco")
    bad = copy / "val2017" / "005000.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    with refused(bad, "data.on_bad_image=skip"):
        list(coco(copy).test.epoch(0))
    Image.new("RGB", (61, 40)).save(bad)
    with refused(bad, "61x40", "60x40"):
        list(coco(copy).test.epoch(0))
    for split in ("train", "test"):
        first = copy / f"{split.replace('test', 'val')}2017" / ("005000.jpg" if split == "test" else "001000.jpg")
        first.write_bytes(b"")
        loader, sound = (getattr(coco(r, on_bad_image="skip", val_fraction=0.0), split) for r in (copy, root))
        with_gap, whole = (torch.cat([b.image_ids for b in part.epoch(0)]).tolist() for part in (loader, sound))
        missing = 5000 if split == "test" else 1000
        assert list(loader.bad_images) == [str(first)] if missing in whole else not loader.bad_images
        if split == "test":
            assert with_gap == [i for i in whole if i != 5000]
        else:
            assert with_gap == [1010 if i == 1000 else i for i in whole]


def test_the_fingerprint_knows_boxes_labels_and_crowds(root: Path, tmp_path: Path) -> None:
    known = {coco(root).fingerprint}
    copy = write_coco(tmp_path / "coco")
    assert coco(copy).fingerprint in known
    for change in ({"category_id": 90}, {"bbox": [2.5, 3.0, 20.0, 16.0]}, {"iscrowd": 1}):
        change_json(copy, "train2017", lambda content, change=change: content["annotations"][4].update(change))
        known.add(coco(copy).fingerprint)
    assert len(known) == 4


def test_augmentation_of_other_tasks_is_refused(root: Path) -> None:
    with refused("recipe.augment.crop_padding"):
        coco(root, augment={"crop_padding": 4})
    plain = coco(root, augment={})
    assert next(plain.train.epoch(0)).images.shape == (4, 3, 64, 64)


def test_digit_boxes_are_square_scenes_of_disjoint_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data.box_sets.TRAIN_SCENES", 20)
    monkeypatch.setattr("data.box_sets.TEST_SCENES", 6)
    data = build_data("digit_boxes", image_size=128, batch_size=10, val_fraction=0.2, augment=JITTERED)
    assert (data.train.num_samples, data.val.num_samples, data.test.num_samples) == (20, 4, 6)
    assert (data.classes, data.image_shape) == (tuple("0123456789"), (3, 128, 128))
    batch = next(data.test.epoch(0))
    assert batch.scales.tolist() == [1.0] * 6
    assert ((batch.labels >= 0).sum(1) >= 1).all()
    assert len(data.test.truth["annotations"]) == int((batch.labels >= 0).sum())
    assert batch.images.mean().abs() < 0.3
    assert build_data("digit_boxes", image_size=128, batch_size=10, val_fraction=0.0).val is None
    assert not torch.equal(next(data.train.epoch(0)).images, next(data.train.epoch(1)).images)


def test_photometric_jitter_recolours_training_images_alone(root: Path) -> None:
    plain, coloured = coco(root), coco(root, augment={**JITTERED, "photometric": 0.3})
    one, other = next(plain.train.epoch(0)), next(coloured.train.epoch(0))
    assert torch.equal(one.boxes, other.boxes)
    assert not torch.equal(one.images, other.images)
    assert equal(next(plain.test.epoch(0)), next(coloured.test.epoch(0)))
