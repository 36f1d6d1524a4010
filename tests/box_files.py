"""Tiny detection data sets on disk in the formats of COCO and VOC, with everything in them that must be treated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COCO_IDS = (3, 7, 90)  # with gaps, and not in this order in the file
SIZES = ((40, 60), (60, 40), (50, 50), (30, 64))  # height, width


def picture(height: int, width: int, seed: int) -> Image.Image:
    """Coarse colours: JPEG keeps them."""
    squares = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), np.uint8)
    return Image.fromarray(squares).resize((width, height), Image.Resampling.NEAREST)


def coco_json(count: int, first_id: int) -> dict[str, Any]:
    """Image i has 2 boxes, but the second has none; the first has also a crowd and two boxes without an area."""
    sizes = [SIZES[i % len(SIZES)] for i in range(count)]
    images = [
        {"id": first_id + 10 * i, "file_name": f"{first_id + 10 * i:06d}.jpg", "height": height, "width": width}
        for i, (height, width) in enumerate(sizes)
    ]
    rows = []
    for i, image in enumerate(images):
        for j, category in enumerate((COCO_IDS[i % 3], COCO_IDS[(i + 1) % 3])):
            if i != 1:
                rows.append((image["id"], category, [2.5 + 4 * j, 3.25 + i % 5, 20.1 + i % 7, 16.0 + j], 0))
    rows += [(first_id, 90, [0.0, 0.0, 30.0, 30.0], 1), (first_id, 3, [5, 5, 0, 9], 0), (first_id, 3, [5, 5, 9, 0], 0)]
    annotations = [
        {"id": 500 + n, "image_id": i, "category_id": c, "bbox": b, "area": 0.7 * b[2] * b[3], "iscrowd": crowd,
         "segmentation": [[1, 2, 3, 4, 5, 6]]}
        for n, (i, c, b, crowd) in enumerate(rows)
    ]  # fmt: skip
    categories = [{"id": number, "name": f"thing{number}"} for number in (90, 3, 7)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_coco(root: Path, train: int = 10, test: int = 5) -> Path:
    """A root of `coco`."""
    (root / "annotations").mkdir(parents=True)
    for split, count, first_id in (("train2017", train, 1000), ("val2017", test, 5000)):
        content = coco_json(count, first_id)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        (root / split).mkdir()
        for i, image in enumerate(content["images"]):
            picture(image["height"], image["width"], first_id + i).save(root / split / image["file_name"])
    return root


def change_json(root: Path, split: str, change: Any) -> Path:
    """Rewrite the JSON of a split after `change(content)`."""
    path = root / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


def voc_xml(height: int, width: int, objects: list[tuple[str, tuple[int, int, int, int], int]]) -> str:
    """An annotation: class, 1-based inclusive corners, difficult."""
    found = "".join(
        f"<object><name>{name}</name><difficult>{hard}</difficult><bndbox><xmin>{a}</xmin><ymin>{b}</ymin>"
        f"<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for name, (a, b, c, d), hard in objects
    )
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{found}</annotation>"


def write_voc(root: Path, train: int = 8, val: int = 4, test: int = 3) -> Path:
    """A root of `voc_detection` with the classes cat and dog; the third image of each list has no object."""
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    for split, count in (("train", train), ("val", val), ("test", test)):
        names = [f"{split}_{i}" for i in range(count)]
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n\n")
        for i, name in enumerate(names):
            height, width = SIZES[i % len(SIZES)]
            objects = [("dog", (1, 1, 20 + i, 30), 0), ("cat", (11, 6, 30, 25), 0), ("cat", (2, 2, 9, 9), 1)]
            xml = voc_xml(height, width, objects if i != 2 else [])
            (root / "Annotations" / f"{name}.xml").write_text(xml)
            picture(height, width, i).save(root / "JPEGImages" / f"{name}.jpg")
    return root
