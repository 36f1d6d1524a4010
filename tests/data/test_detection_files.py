"""What the readers of COCO and VOC make of their files, and which one line they end with on others."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.coco import read_coco
from data.voc_xml import read_list, read_scene, read_voc
from tests.box_files import change_json, coco_json, voc_xml, write_coco, write_voc
from tests.named import refused
from tests.opening import build_data


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "coco")


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    return write_voc(tmp_path / "voc")


def test_category_ids_with_gaps_become_labels_and_back(coco: Path) -> None:
    found = read_coco(coco, "train2017")
    assert found.categories.ids == (3, 7, 90)
    assert found.categories.names == ("thing3", "thing7", "thing90")
    listed = json.loads((coco / "annotations/instances_train2017.json").read_text())
    truth = found.truth()
    assert [entry["id"] for entry in truth["categories"]] == [3, 7, 90]
    kept = [entry for entry in listed["annotations"] if min(entry["bbox"][2:]) > 0]

    def facts(entries: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
        return sorted((e["image_id"], e["category_id"], e["iscrowd"], e["area"], *e["bbox"]) for e in entries)

    assert facts(truth["annotations"]) == facts(kept)
    assert sorted(entry["id"] for entry in truth["annotations"]) == list(range(1, len(kept) + 1))
    assert {entry["id"] for entry in truth["images"]} == {entry["id"] for entry in listed["images"]}


def test_degenerate_boxes_go_crowds_stay_and_images_without_boxes_too(coco: Path) -> None:
    found = read_coco(coco, "train2017")
    assert len(found) == 10
    assert found.degenerate == 2
    assert found.of(0).ignored.tolist() == [False, False, True]
    assert len(found.of(1)) == 0
    notes = " ".join(build_data("coco", root=coco, batch_size=2, val_fraction=0.0).notes)
    assert " 4 boxes" in notes
    assert " 2 crowds" in notes


def test_an_area_that_is_not_given_is_that_of_the_box(coco: Path) -> None:
    change_json(coco, "train2017", lambda content: content["annotations"][0].update(area=None))
    found = read_coco(coco, "train2017").objects
    assert found.areas[0] == found.boxes[0, 2] * found.boxes[0, 3]


def test_numbers_and_truth_values_may_be_text(coco: Path) -> None:
    """As exporters write them: nothing moves."""

    def as_text(content: dict[str, Any]) -> None:
        for part in ("images", "annotations", "categories"):
            for entry in content[part]:
                for key, value in entry.items():
                    if key in ("id", "image_id", "category_id", "height", "width"):
                        entry[key] = f"{value}" if value % 2 else float(value)
                if part == "annotations":
                    entry["bbox"] = [str(side) for side in entry["bbox"]]
                    entry["iscrowd"] = {0: "0", 1: "true"}[entry["iscrowd"]]

    before = read_coco(coco, "train2017")
    change_json(coco, "train2017", as_text)
    after = read_coco(coco, "train2017")
    assert after.truth() == before.truth()
    change_json(coco, "train2017", lambda content: [e.update(area=0) for e in content["annotations"]])
    assert all(
        row["area"] == row["bbox"][2] * row["bbox"][3] for row in read_coco(coco, "train2017").truth()["annotations"]
    )


@pytest.mark.parametrize(("key", "value"), [("id", 1.5), ("image_id", "a"), ("iscrowd", "maybe"), ("bbox", "1 2 3 4")])
def test_what_may_mean_two_things_is_refused(coco: Path, key: str, value: Any) -> None:
    path = change_json(coco, "train2017", lambda content: content["annotations"][3].update({key: value}))
    change_json(coco, "train2017", lambda content: content["images"][0].update(id=value) if key == "id" else None)
    with refused(path, key, repr(value)):
        read_coco(coco, "train2017")


@pytest.mark.parametrize("what", ["image", "category"])
def test_an_id_that_a_float_would_round_is_refused(coco: Path, what: str) -> None:
    def long(content: dict[str, Any]) -> None:
        listed, key = content["images" if what == "image" else "categories"][0], f"{what}_id"
        for entry in content["annotations"]:
            entry[key] = 2**53 + 1 if entry[key] == listed["id"] else entry[key]
        listed["id"] = 2**53 + 1

    path = change_json(coco, "train2017", long)
    with refused(path, f"{what} id {2**53 + 1}"):
        read_coco(coco, "train2017")


def test_boxes_in_shares_of_the_image_are_refused(coco: Path) -> None:
    def shares(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            entry["bbox"] = [side / 100 for side in entry["bbox"]]

    change_json(coco, "val2017", shares)
    with refused("coco", "test", "in pixels"):
        build_data("coco", root=coco, batch_size=2)


def test_names_of_images_may_have_folders(coco: Path) -> None:
    before = read_coco(coco, "train2017").truth()
    names = iter(("train2017/{}", "sub/{}", "sub\\{}", "train2017\\{}"))

    def moved(content: dict[str, Any]) -> None:
        (coco / "train2017" / "sub").mkdir()
        for entry, name in zip(content["images"], names, strict=False):
            if name.startswith("sub"):
                place = coco / "train2017"
                (place / entry["file_name"]).rename(place / "sub" / entry["file_name"])
            entry["file_name"] = name.format(entry["file_name"])

    change_json(coco, "train2017", moved)
    found = read_coco(coco, "train2017")
    assert found.truth()["annotations"] == before["annotations"]
    images, spelt_plainly = found.truth()["images"], before["images"]
    assert (images[0], images[3:]) == (spelt_plainly[0], spelt_plainly[3:])
    assert found.unlisted == ()
    assert all(Path(found.name(i)).is_file() for i in range(len(found)))
    for name in ("../x.jpg", "/etc/hostname", "C:\\x.jpg", "a/../../x.jpg"):
        change_json(coco, "train2017", lambda content, name=name: content["images"][0].update(file_name=name))
        with refused("instances_train2017.json", repr(name)):
            read_coco(coco, "train2017")


@pytest.mark.parametrize(
    ("text", "ignored"),
    [("0", 0), ("1", 1), ("Unspecified", 0), ("False", 0), ("no", 0), ("true", 1), ("", 0), (" yes ", 1)],
)
def test_difficult_is_a_truth_value(voc: Path, text: str, ignored: int) -> None:
    path = voc / "Annotations" / "train_0.xml"
    path.write_text(voc_xml(40, 60, [("dog", (1, 1, 20, 30), text)]))  # type: ignore[list-item]
    assert read_scene(path).difficult == (bool(ignored),)


def test_a_part_has_the_objects_of_its_images(coco: Path) -> None:
    whole = read_coco(coco, "train2017")
    part = whole.part(np.array([4, 1, 0]))
    assert part["image_ids"].tolist() == [1040, 1010, 1000]
    for position, index in enumerate((4, 1, 0)):
        assert np.array_equal(part.of(position).boxes, whole.of(index).boxes)
        assert part.name(position) == whole.name(index)
    assert {entry["image_id"] for entry in part.truth()["annotations"]} == {1040, 1000}
    assert len(whole.part(np.zeros(0, np.int64)).truth()["images"]) == 0


def test_voc_corners_lose_one_and_difficult_objects_are_ignored(voc: Path) -> None:
    found = read_voc(voc, read_list(voc, "train"), None)
    assert found.categories.names == ("cat", "dog")
    assert found.of(0).boxes.tolist() == [[0, 0, 20, 30], [10, 5, 20, 20], [1, 1, 8, 8]]
    assert found.of(0).labels.tolist() == [1, 0, 0]
    assert found.of(0).ignored.tolist() == [False, False, True]
    assert len(found.of(2)) == 0
    assert found["sizes"][:2].tolist() == [[40, 60], [60, 40]]
    crowds = [entry["iscrowd"] for entry in found.truth()["annotations"][:3]]
    assert crowds == [0, 0, 1]
    assert read_voc(voc, ["train_0"], ("dog", "cat")).of(0).labels.tolist() == [0, 1, 1]


def same_id(content: dict[str, Any]) -> None:
    content["images"][1]["id"] = content["images"][0]["id"]


def fault(part: str, **values: Any) -> Callable[[dict[str, Any]], object]:
    """Other values in the first entry of a part; None takes a key away."""

    def change(content: dict[str, Any]) -> None:
        for key, value in values.items():
            content[part][0].update({key: value}) if value is not None else content[part][0].pop(key)

    return change


# What is wrong in the file, and what the one line names beside it.
COCO_FAULTS: list[tuple[Callable[[dict[str, Any]], object], list[str]]] = [
    (same_id, ["image id 1000"]),
    (fault("images", id="img_1"), ["image", "id", "'img_1'"]),
    (fault("images", height=0), ["image 1000", "height", "0"]),
    (fault("images", height=2**64), ["image 1000", "height"]),
    (fault("images", file_name="../a.jpg"), ["'../a.jpg'"]),
    (fault("images", file_name=""), ["file name ''"]),
    (lambda content: content["images"].insert(0, "a.jpg"), ["not an instances file"]),
    (fault("annotations", category_id=4), ["annotation 500", "category_id 4"]),
    (fault("annotations", image_id=4), ["annotation 500", "image_id 4"]),
    (fault("annotations", bbox=[1, 2, float("nan"), 4]), ["annotation 500", "bbox", "nan"]),
    (fault("annotations", bbox=[1, 2, 3]), ["annotation 500", "bbox", "[1, 2, 3]"]),
    (fault("annotations", bbox=None), ["annotation 500", "bbox"]),
    (fault("annotations", area="large"), ["annotation 500", "area", "'large'"]),
    (lambda content: content.pop("categories"), ["categories"]),
    (lambda content: content["images"].clear(), ["0 images"]),
    (lambda content: content.update(annotations=3), []),
]


@pytest.mark.parametrize(("change", "named"), COCO_FAULTS)
def test_a_contradictory_json_ends_in_one_line_with_its_name(
    coco: Path, change: Callable[[dict[str, Any]], object], named: list[str]
) -> None:
    path = change_json(coco, "train2017", change)
    with refused(path, *named):
        build_data("coco", root=coco, batch_size=2)


def test_missing_and_damaged_coco_files_are_named(coco: Path, tmp_path: Path) -> None:
    with refused("data.root", as_a=FileNotFoundError):
        build_data("coco", batch_size=2)
    with refused("instances_train2017.json", "data.root", as_a=FileNotFoundError):
        build_data("coco", root=tmp_path, batch_size=2)
    (coco / "val2017" / "005010.jpg").unlink()
    with refused("val2017/005010.jpg", "instances_val2017.json", as_a=FileNotFoundError):
        build_data("coco", root=coco, batch_size=2)
    path = coco / "annotations" / "instances_val2017.json"
    for content in (path.read_bytes()[:200], b"\xff\xfe", b"[" * 100_000):
        path.write_bytes(content)
        with refused(path):
            build_data("coco", root=coco, batch_size=2)
    content = coco_json(5, 5000)
    content["categories"][0]["name"] = "another"
    path.write_text(json.dumps(content))
    (coco / "val2017" / "005010.jpg").touch()
    with refused(coco / "train2017", coco / "val2017"):
        build_data("coco", root=coco, batch_size=2)


ENTITIES = '<!DOCTYPE a [<!ENTITY b "cat">]>' + voc_xml(40, 60, [("&b;", (1, 1, 5, 5), 0)])
# An annotation, and what the one line names beside its file.
XML_FAULTS: list[tuple[str, str]] = [
    (ENTITIES, "document type"),
    (voc_xml(40, 60, [])[:-5], ""),
    (voc_xml(4, 6, [("cat", ("left", 1, 2, 2), 0)]), "<bndbox/xmin> is 'left'"),  # type: ignore[list-item]
    (voc_xml(4, 6, [("cat", ("nan", 1, 2, 2), 0)]), "<bndbox/xmin> is 'nan'"),  # type: ignore[list-item]
    ('<?xml version="1.0" encoding="foo"?><annotation/>', "encoding"),
    (voc_xml(40, 60, [("", (1, 1, 5, 5), 0)]), "<name>"),
    ("<annotation></annotation>", "<size/height>"),
    (voc_xml(40, 0, []), "<size/width> is '0'"),
    (voc_xml(40, 60, [("cat", (1, 1, 5, 5), "perhaps")]), "<difficult> is 'perhaps'"),  # type: ignore[list-item]
    (voc_xml(40, 60, [("cow", (1, 1, 5, 5), 0)]), "'cow'"),
]


@pytest.mark.parametrize(("content", "named"), XML_FAULTS)
def test_a_bad_annotation_ends_in_one_line_with_its_name(voc: Path, content: str, named: str) -> None:
    path = voc / "Annotations" / "val_1.xml"
    path.write_text(content)
    with refused(path, named):
        build_data("voc_detection", root=voc, batch_size=2)


def test_a_document_type_is_refused_in_any_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_bytes(ENTITIES.encode("utf-16"))
    with refused("a.xml", "document type"):
        read_scene(tmp_path / "a.xml")


def test_training_images_without_a_box_are_refused_before_the_test_images_are_read(voc: Path) -> None:
    (voc / "ImageSets" / "Main" / "train.txt").write_text("train_2\n")  # the image without an object
    with refused("voc_detection", "training"):
        build_data("voc_detection", root=voc, image_size=64, batch_size=1)


def test_boxes_outside_their_image_are_left_out_and_those_that_reach_out_are_noted(voc: Path) -> None:
    options: dict[str, Any] = {"root": voc, "image_size": 64, "batch_size": 2, "val_split": "val", "test_split": "test"}
    whole = build_data("voc_detection", **options)
    assert not any("outside" in note or "reach out" in note for note in whole.notes)
    boxes = [(5000, 1, 5010, 9), (-20, -20, 0, 0), (-299, 1, 20, 9), (0, 0, 61, 41), (1, 1, 60, 40)]
    path = voc / "Annotations" / "test_0.xml"
    path.write_text(voc_xml(40, 60, [("cat", box, 0) for box in boxes]))
    data = build_data("voc_detection", **options)
    assert [row["bbox"][0] for row in data.test.truth["annotations"] if row["image_id"] == 0] == [-300, -1, 0]
    notes = " ".join(data.notes)
    assert re.search(r" 2 boxes .*outside.* test_0\.jpg", notes)
    assert re.search(f" 1 boxes reach .*{voc / 'JPEGImages' / 'test_0.jpg'}", notes)
    assert "without width" not in notes


def test_corners_for_the_width_and_height_of_coco_are_noted(coco: Path) -> None:
    def corners(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            left, top, width, height = (20 + side for side in entry["bbox"])
            entry["bbox"] = [left, top, left + width, top + height]

    def noted() -> list[str]:
        return [note for note in build_data("coco", root=coco, batch_size=2).notes if "bbox must be" in note]

    assert not noted()
    change_json(coco, "val2017", corners)
    (note,) = noted()
    assert "val2017" in note


def test_classes_that_differ_in_case_alone_are_noted(voc: Path) -> None:
    assert not any("in case alone" in note for note in build_data("voc_detection", root=voc, batch_size=2).notes)
    path = voc / "Annotations" / "train_1.xml"
    path.write_text(path.read_text().replace("dog", "Dog"))
    notes = build_data("voc_detection", root=voc, batch_size=2).notes
    assert any("Dog (1 boxes), dog (6 boxes)" in note for note in notes)


def test_two_images_of_one_name_are_refused_where_a_list_names_them(voc: Path) -> None:
    shutil.copy(voc / "JPEGImages" / "test_0.jpg", voc / "JPEGImages" / "test_0.png")
    build_data("voc_detection", root=voc, batch_size=2)  # whose lists are train and val
    with refused("JPEGImages/test_0.jpg", "JPEGImages/test_0.png"):
        build_data("voc_detection", root=voc, batch_size=2, test_split="test")


def test_names_with_spaces_are_names_and_flags_and_endings_are_not(voc: Path) -> None:
    path = voc / "ImageSets" / "Main" / "mine.txt"
    lists = {"my img\nimg 1\n": ["my img", "img 1"], "img 0\nimg 1\n": ["img 0", "img 1"]}
    lists["a  1\nb -1\nc  0\n"] = ["a", "b", "c"]  # as VOC's lists of one class
    for content, names in lists.items():
        path.write_text(content)
        assert read_list(voc, "mine") == names
    with refused("train_0.jpg.jpg", "endings", as_a=FileNotFoundError):
        read_voc(voc, ["train_0.jpg"], None)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_split_without_boxes_is_refused_before_the_first_step(voc: Path, split: str) -> None:
    (voc / "ImageSets" / "Main" / f"{split}.txt").write_text(f"{split}_2\n")  # the image without an object
    with refused("voc_detection", split):
        build_data("voc_detection", root=voc, image_size=64, batch_size=2, val_split="val", test_split="test")


def test_missing_files_and_wrong_lists_of_voc_are_named(voc: Path) -> None:
    def opened(**options: Any) -> None:
        build_data("voc_detection", root=voc, batch_size=2, **options)

    with refused("trainval.txt", "test, train, val", as_a=FileNotFoundError):
        opened(train_split="trainval")
    with refused("train_split=val", "test_split=val"):
        opened(train_split="val")
    both = voc / "ImageSets" / "Main" / "both.txt"
    both.write_text("train_1\nval_1\n")
    with refused("train_split=both", "test_split=val", "val_1"):
        opened(train_split="both")
    both.write_text("absent\ntrain_1\n")
    with refused("absent.jpg", "test_0.jpg", as_a=FileNotFoundError):  # one that is missing, one that is there
        opened(train_split="both")
    both.write_text("train_1\ntrain_1\n")
    with refused(both, "train_1"):
        opened(train_split="both")
    both.write_text("\n")
    with refused(both):
        opened(train_split="both")
    (voc / "Annotations" / "val_0.xml").unlink()
    with refused("Annotations/val_0.xml", as_a=FileNotFoundError):
        opened()
    (voc / "JPEGImages" / "val_0.jpg").unlink()
    with refused("JPEGImages/val_0.jpg", as_a=FileNotFoundError):
        opened()
    with refused("data.list", "train_split"):
        opened(list="train")
