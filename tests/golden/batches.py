"""What must not move when the reading of data is reshaped: batches, fingerprints, notes, images that are left out.

    python -m tests.golden.batches              # writes tests/golden/batches.json anew

Every data set is made here, of a few small files with everything in them that has to be treated, and opened as a run
opens it. Of each: sha256 over the first batches of two training epochs and over val and test, and a projection of the
images, since another processor may round the resizing of an image in another way.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import sys
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image

from configs.compose import plan_of
from configs.plan import Plan
from configs.schema import AugmentConfig, DataConfig
from engine.distributed import Ranks
from experiment.build import open_data
from tests.box_files import change_json, write_coco, write_voc
from tests.data.mask_files import write_camvid, write_folder, write_mask
from tests.data.mask_files import write_voc as write_voc_masks
from tests.data.small_sets import official_cifar, write_cifar, write_fashion

HERE = Path(__file__).parent
MOST_BATCHES = 40  # of an epoch
CUT = bytes(40)  # what stands in a file that cannot be read
JOINT = AugmentConfig(flip=True, scale_min=0.7, scale_max=1.5, photometric=0.3)


def photo(seed: int, height: int, width: int, gray: bool = False) -> Image.Image:
    """A picture with structure at several scales, so that a crop, a flip or another order shows."""
    draws = np.random.default_rng(seed)
    coarse = Image.fromarray(draws.integers(0, 255, (5, 5, 3), np.uint8)).resize((width, height), Image.BILINEAR)
    pixels = (np.asarray(coarse, np.int16) + draws.integers(-30, 30, (height, width, 3))).clip(0, 255).astype(np.uint8)
    return Image.fromarray(pixels).convert("L") if gray else Image.fromarray(pixels)


def class_folders(root: Path, counts: dict[str, int], ending: str, least: int, **options: Any) -> Path:
    """Pictures of different sizes in three classes."""
    for split, count in counts.items():
        for label, name in enumerate(("a b", "c", "ä")):
            (root / split / name).mkdir(parents=True)
            for i in range(count + label):
                seed = 100 * label + 10 * len(split) + i
                height, width = least + 7 * (i % 4), least + 11 * (seed % 3)
                photo(seed, height, width, options.get("gray", False)).save(root / split / name / f"{i}{ending}")
    return root


def photographs(root: Path) -> Path:
    """Class folders in the layout of ImageNet, one unreadable file in each part."""
    class_folders(root, {"train": 9, "val": 4}, ".JPEG", 40)
    for name in ("train/c/3.JPEG", "val/ä/1.JPEG"):
        (root / name).write_bytes(CUT)
    return root


def shards(root: Path, kind: str) -> Path:
    from scripts.prepare_shards import main

    class_folders(root / "files", {"train": 9, "val": 4}, ".JPEG", 40)
    words = ["imagenette", str(root / "files"), str(root / "shards"), "--short-side", "36", "--per-shard", "8"]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        assert main([*words, "--kind", kind, "--workers", "0"]) == 0
    return root / "shards"


def own_folders(root: Path) -> Path:
    """Small images: no test folder, one file that is no image, some of the size asked for."""
    class_folders(root, {"train": 12}, ".png", 16)
    (root / "train" / "c" / "2.png").write_bytes(CUT)
    return root


def own_photographs(root: Path) -> Path:
    """Larger images with val and test folders, one unreadable file, a test image that is trained on, a stray folder."""
    class_folders(root, {"train": 7, "val": 3, "test": 4}, ".bmp", 70)
    (root / "val" / "c" / "1.bmp").write_bytes(CUT)
    (root / "test" / "c" / "0.bmp").write_bytes((root / "train" / "c" / "0.bmp").read_bytes())
    (root / "others").mkdir()
    return root


def masks(root: Path) -> Path:
    """Images and masks, one mask with a label that is no class."""
    write_folder(root, 14)
    write_mask(root / "masks" / "3.png", np.full((20, 30), 7))
    return root


def masks_in_files(root: Path) -> Path:
    """The same; a header of 144 million pixels, which cannot be used either, makes the set too large for the memory."""
    image = masks(root) / "images" / "5.png"
    content = bytearray(image.read_bytes())
    content[16:24] = struct.pack(">II", 12_000, 12_000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    image.write_bytes(content)
    for path in (*(root / "images").iterdir(), *(root / "masks").iterdir()):  # sizes that do not depend on the zlib
        path.write_bytes(path.read_bytes().ljust(8000, b"\0"))
    return root


def coco(root: Path) -> Path:
    """Crowds, boxes without an area (as written), one that reaches out, one outside, one image that is damaged."""
    write_coco(root, 12, 6)

    def change(content: dict[str, Any]) -> None:
        content["annotations"][2]["bbox"] = [-4.5, 3.0, 30.0, 20.0]
        content["annotations"][3]["bbox"] = [900.0, 3.0, 30.0, 20.0]
        content["annotations"][4]["area"] = None

    change_json(root, "train2017", change)
    (root / "train2017" / "001040.jpg").write_bytes(CUT)
    (root / "val2017" / "005030.jpg").write_bytes(CUT)
    return root


def voc(root: Path) -> Path:
    """A class in two spellings, and one image that is damaged."""
    write_voc(root, 10, 4, 3)
    path = root / "Annotations" / "train_1.xml"
    path.write_text(path.read_text().replace("dog", "Dog"))
    (root / "JPEGImages" / "train_4.jpg").write_bytes(CUT)
    return root


def fashion(root: Path) -> Path:
    write_fashion(root)
    return root


@cache
def tried(*overrides: str) -> Plan:
    """A plan of the command line, which knows what a regularizer of images comes to on images of this size."""
    return plan_of("model=resnet18", "epochs=2", *overrides)


# Name -> data set, what writes its files, the plan that it is opened by, augmentation.
Case = tuple[DataConfig, Callable[[Path], Path] | None, tuple[str, ...], AugmentConfig]
REGULARIZED = ("regularizer=[cutout,autoaugment]",)
PHOTO, SMALL = AugmentConfig(flip=True), AugmentConfig(flip=True, crop_padding=3)
CASES: dict[str, Case] = {
    "photographs": (
        DataConfig("imagenette", image_size=32, val_fraction=0.2, on_bad_image="skip"),
        photographs,
        ("data=imagenette", "data.image_size=32", *REGULARIZED),
        PHOTO,
    ),
    "photographs, pil": (
        DataConfig("imagenette", image_size=32, val_fraction=0.0, decoder="pil", train_subset=20),
        lambda root: class_folders(root, {"train": 9, "val": 4}, ".png", 40),
        (),
        PHOTO,
    ),
    "jpeg shards": (DataConfig("imagenette", image_size=32, prepared=True), lambda r: shards(r, "jpeg"), (), PHOTO),
    "raw shards": (DataConfig("imagenette", image_size=32, prepared=True), lambda r: shards(r, "raw"), (), PHOTO),
    "folder, small": (
        DataConfig("folder", image_size=16, val_fraction=0.2, on_bad_image="skip"),
        own_folders,
        ("data=fake", "data.image_size=16", *REGULARIZED),
        SMALL,
    ),
    "folder, gray": (
        DataConfig("folder", image_size=16, mean=[0.4], std=[0.3]),
        lambda root: class_folders(root, {"train": 6, "test": 3}, ".png", 16, gray=True),
        (),
        SMALL,
    ),
    "folder, large": (DataConfig("folder", image_size=66, on_bad_image="skip"), own_photographs, (), PHOTO),
    "masks": (
        DataConfig("segmentation_folder", image_size=32, val_fraction=0.2, on_bad_image="skip", task="segmentation"),
        masks,
        (),
        JOINT,
    ),
    "masks in files": (
        DataConfig("segmentation_folder", image_size=24, val_fraction=0.2, on_bad_image="skip", task="segmentation"),
        masks_in_files,
        (),
        JOINT,
    ),
    "camvid": (DataConfig("camvid", image_size=32, val_fraction=0.0, task="segmentation"), write_camvid, (), JOINT),
    "voc_segmentation": (
        DataConfig("voc_segmentation", image_size=33, val_fraction=0.25, task="segmentation", list="train"),
        lambda root: write_voc_masks(root / "VOC2012", 8),
        (),
        JOINT,
    ),
    "coco": (
        DataConfig(
            "coco",
            image_size=64,
            val_fraction=0.25,
            on_bad_image="skip",
            task="detection",
            train_split="train2017",
            test_split="val2017",
        ),
        coco,
        (),
        JOINT,
    ),
    "voc_detection": (
        DataConfig(
            "voc_detection",
            image_size=64,
            on_bad_image="skip",
            task="detection",
            train_split="train",
            val_split="val",
            test_split="test",
        ),
        voc,
        (),
        JOINT,
    ),
    "cifar10": (
        DataConfig("cifar10", train_subset=256),
        lambda root: write_cifar(root, "cifar10"),
        ("data=cifar10", *REGULARIZED),
        SMALL,
    ),
    "cifar100": (DataConfig("cifar100", val_fraction=0.5), lambda root: write_cifar(root, "cifar100"), (), SMALL),
    "fashion_mnist": (DataConfig("fashion_mnist"), fashion, (), SMALL),
    "digits": (DataConfig("digits", train_subset=160), None, (), SMALL),
    "fake": (DataConfig("fake", image_size=16), None, (), SMALL),
    "digit_masks": (DataConfig("digit_masks", image_size=33, train_subset=40, task="segmentation"), None, (), JOINT),
    "digit_boxes": (DataConfig("digit_boxes", image_size=32, train_subset=40, task="detection"), None, (), JOINT),
}
# Read by worker processes: a test of each; of the first three in the short form as well.
IN_FILES = (
    "photographs",
    "masks in files",
    "coco",
    "photographs, pil",
    "jpeg shards",
    "raw shards",
    "folder, large",
    "voc_detection",
)
LONG = ("photographs, pil", "cifar100", "digit_boxes")  # only in the long form


def plan_for(name: str, root: Path | None, workers: int) -> Plan:
    data, _, overrides, augment = CASES[name]
    plan = tried(*(overrides or ("data=fake", "regularizer=none")))
    return replace(
        plan,
        data=data,
        recipe=replace(plan.recipe, batch_size=3, eval_batch_size=8, augment=augment),
        runtime=replace(plan.runtime, workers=workers, download=False, data_root=None if root is None else str(root)),
    )


@contextmanager
def files_of(name: str) -> Iterator[Path | None]:
    """The files of a case, for as long as they are needed."""
    write = CASES[name][1]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), official_cifar():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield write(Path(folder) / "set") if write else None


def measured(name: str, root: Path | None, workers: int) -> dict[str, Any]:
    """What the data of a case are, as plain values; paths start at the case's folder."""
    data = open_data(plan_for(name, root, workers), torch.device("cpu"), Ranks())
    epochs = {"train 0": (data.train, 0), "train 1": (data.train, 1), "test": (data.test, 0)}
    if data.val is not None:
        epochs["val"] = (data.val, 0)
    seen = {key: list(islice(loader.epoch(epoch), MOST_BATCHES)) for key, (loader, epoch) in epochs.items()}
    loaders = {"train": data.train, "val": data.val, "test": data.test}
    facts = {
        "classes": list(data.classes),
        "image_shape": list(data.image_shape),
        "samples": {split: loader.num_samples for split, loader in loaders.items() if loader is not None},
        "fingerprint": data.fingerprint,
        "notes": list(data.notes),
        "bad_images": {split: dict(loader.bad_images) for split, loader in loaders.items() if loader is not None},
        "truth": _sha([loader.truth for loader in loaders.values()]) if data.task == "detection" else None,
        "batches": {key: _digests(found) for key, found in seen.items()},
    }
    return json.loads(json.dumps(facts).replace(str(root.parent), "ROOT") if root else json.dumps(facts))


def _digests(batches: list[Any]) -> dict[str, Any]:
    """sha256 of what there is to learn and of the images, and a projection of the images of the first batches."""
    learned, images = hashlib.sha256(), hashlib.sha256()
    for batch in batches:
        for key, value in batch.plain().items():
            digest = images if key == "images" else learned
            digest.update(f"{key}{value.dtype}{tuple(value.shape)}{value.stride() if value.ndim == 4 else ''}".encode())
            digest.update(value.contiguous().numpy().tobytes())
    return {
        "count": len(batches),
        "learned": learned.hexdigest(),
        "images": images.hexdigest(),
        "projections": " ".join(_projection(batch.images) for batch in batches[:4]),
    }


def _projection(images: torch.Tensor) -> str:
    weights = np.random.default_rng(0).standard_normal(images.shape) / images[0].numel() ** 0.5
    return f"{(images.numpy() * weights).sum():.4f}"


def _sha(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def made_with() -> str:
    """What the pixels of a resized image depend on, to the last bit."""
    versions = f"torch {torch.__version__.split('+')[0]}, Pillow {PIL.__version__}"
    return f"{versions}, {torch.backends.cpu.get_cpu_capability()}"


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = {"made with": made_with()}
    for name in CASES:
        with files_of(name) as root:
            found[name] = measured(name, root, 0)
    (HERE / "batches.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
