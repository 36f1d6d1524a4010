"""Small segmentation data sets on disk, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

PALETTE = [value for i in range(256) for value in (i * 37 % 256, i * 91 % 256, i * 53 % 256)]


def write_pair(image: Path, mask: Path, classes: int, number: int, size: tuple[int, int] = (20, 30)) -> None:
    """An image whose red channel is 20 times the class of each pixel, and its mask as a palette PNG."""
    draws = np.random.default_rng(number)
    labels = np.kron(draws.integers(0, classes, (size[0] // 10, size[1] // 10)), np.ones((10, 10))).astype(np.uint8)
    pixels = np.stack([20 * labels, np.full_like(labels, 100), np.full_like(labels, number)], 2)
    image.parent.mkdir(parents=True, exist_ok=True)
    mask.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(image)
    write_mask(mask, labels)


def write_mask(path: Path, labels: np.ndarray) -> None:
    """A palette PNG of class indices."""
    picture = Image.fromarray(labels.astype(np.uint8), "P")
    picture.putpalette(PALETTE)
    picture.save(path)


def write_folder(root: Path, count: int = 10, classes: int = 3) -> Path:
    """`segmentation_folder`, flat."""
    for i in range(count):
        write_pair(root / "images" / f"{i}.png", root / "masks" / f"{i}.png", classes, i)
    (root / "classes.txt").write_text("".join(f"thing {i}\n" for i in range(classes)))
    return root


def write_camvid(root: Path) -> Path:
    """`camvid`, with three train, two val and two test images of 11 classes and void."""
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        for i in range(count):
            write_pair(root / split / f"{i}.png", root / f"{split}annot" / f"{i}.png", 12, i)
    return root


def write_voc(root: Path, train: int = 3) -> Path:
    """`voc_segmentation`: some training images, two of val."""
    lists = {"train": [f"t{i}" for i in range(train)], "val": ["v0", "v1"]}
    for name in (*lists["train"], *lists["val"]):
        folder = root / "JPEGImages"
        write_pair(folder / f"{name}.png", root / "SegmentationClass" / f"{name}.png", 21, int(name[1:]))
        Image.open(folder / f"{name}.png").save(folder / f"{name}.jpg", quality=95)
        (folder / f"{name}.png").unlink()
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for name, names in lists.items():
        (root / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(names) + "\n")
    return root
