"""Input pipelines, from files or memory to normalized batches, beside torchvision's recipe through the DataLoader."""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from configs.checking import UserError
from configs.schema import AugmentConfig, DataConfig
from data import Batch, Loading, build_data
from data.folders import open_folders
from data.loader import IMAGENET_STATISTICS
from data.tensors import TensorLoader
from scripts.bench.harness import Row, add_options, in_rounds, quartiles, ratios, spread, table
from scripts.prepare_shards import Preparation, prepare

PHOTOS, SMALL = "torchvision, PIL, bicubic", "torchvision, PIL"  # what the others are compared with
OURS = "this"
CLASSES, DISTINCT, SIDE = 10, 300, 224
SMALL_IMAGES, SMALL_BATCH, SMALL_STATISTICS = 10_000, 128, ((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))
Epoch = Callable[[int], Iterator[Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_options(parser, "device", rounds=7)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default %(default)s)")
    parser.add_argument("--images", type=int, default=1200, help="photographs of an epoch (default %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="photographs of a batch (default %(default)s)")
    parser.add_argument("--family", choices=["photographs", "small"], help="images of one kind only")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Photographs and small images: images per second of each, and ratios within a round."""
    least = max(CLASSES, 2 * arguments.batch)  # the first batch starts the clock, and every class has a photograph
    if arguments.family != "small" and arguments.images < least:
        raise UserError(f"--images {arguments.images}: at least {least} with --batch {arguments.batch}")
    rows = []
    if arguments.family != "small":
        place = Path(tempfile.mkdtemp(prefix="photographs-"))
        try:
            made = make_photographs(place / "files", arguments.images)
            print(f"{arguments.images} photographs, {made / 1000:.0f} KB in the mean", flush=True)
            rows += compare_loaders("photographs", photograph_loaders(place, arguments), PHOTOS, arguments.rounds)
        finally:
            shutil.rmtree(place)
    if arguments.family != "photographs":
        rows += compare_loaders("small images", small_loaders(arguments), SMALL, arguments.rounds, (SMALL, OURS))
    return {"kind": "loader", "workers": arguments.workers, "rows": rows}


def make_photographs(root: Path, count: int) -> float:
    """Class folders of JPEG files as ImageNet has them, about 500x375 pixels and 100 KB; returns their mean size.

    Cut out of scikit-learn's two photographs at random places and scales, with a grain that makes them as large as
    photographs are. Beyond some hundred files the same content gets further names.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_images

    # The photographs of the training folder; behind the distinct ones further names of the same files.
    photos, draws, sizes = load_sample_images().images, np.random.default_rng(0), []
    for number in range(count):
        folder = root / "train" / f"class{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{number}.JPEG"
        if number >= DISTINCT:
            os.link(root / "train" / f"class{number % DISTINCT % CLASSES}" / f"{number % DISTINCT}.JPEG", path)
            continue
        height, width = (375, 500) if number % 4 else (500, 375)

        # Cut out of one of the two photographs, at another place and scale each time.
        scale = draws.uniform(0.6, 0.85)
        photo = Image.fromarray(photos[number % 2])
        cut_width, cut_height = min(width, int(photo.width * scale)), min(height, int(photo.height * scale))
        left = int(draws.integers(photo.width - cut_width + 1))
        top = int(draws.integers(photo.height - cut_height + 1))
        part = photo.crop((left, top, left + cut_width, top + cut_height)).resize((width, height))
        grain = np.asarray(part) + draws.normal(0, 9, (height, width, 1)) + draws.normal(0, 3, (height, width, 3))
        Image.fromarray(grain.clip(0, 255).astype(np.uint8)).save(path, quality=90)
        sizes.append(path.stat().st_size)

    # A validation folder is part of the layout; no loader here reads it.
    for number in range(CLASSES):
        folder = root / "val" / f"class{number}"
        folder.mkdir(parents=True)
        os.link(root / "train" / f"class{number}" / f"{number}.JPEG", folder / "0.JPEG")
    return float(np.mean(sizes))


def photograph_loaders(place: Path, arguments: argparse.Namespace) -> dict[str, Epoch]:
    """Ours with each decoder and from shards, and torchvision's with the paper's interpolation and with its default."""
    # The loader hands a file that simplejpeg refuses to Pillow, whose time would stand under the other's name.
    import simplejpeg

    for path in (place / "files" / "train").rglob("*.JPEG"):
        simplejpeg.decode_jpeg(path.read_bytes())

    # The same photographs as shards, made once.
    found = open_folders("imagenet", place / "files", False)
    for kind in ("jpeg", "raw"):
        prepare("imagenet", found, place / kind, Preparation(kind=kind), arguments.workers, lambda _: None)

    def ours(root: str, decoder: str, prepared: bool = False) -> Epoch:
        data = build_data(
            DataConfig("imagenet", str(place / root), SIDE, val_fraction=0.0, decoder=decoder, prepared=prepared),
            AugmentConfig(flip=True),
            Loading(
                arguments.batch,
                device=torch.device(arguments.device),
                channels_last=True,
                workers=arguments.workers,
            ),
        )
        return data.train.epoch

    def theirs(interpolation: str) -> Epoch:
        from torchvision import transforms
        from torchvision.datasets import ImageFolder

        kernel = transforms.InterpolationMode(interpolation)
        crop = transforms.RandomResizedCrop(SIDE, interpolation=kernel)
        steps = [crop, transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        recipe = transforms.Compose([*steps, transforms.Normalize(*IMAGENET_STATISTICS)])
        return _through_loader(ImageFolder(place / "files" / "train", recipe), arguments.batch, arguments)

    # The paper's kernel first, which the others are compared with; then torchvision's default, and ours.
    return {
        PHOTOS: theirs("bicubic"),
        "torchvision, PIL, bilinear": theirs("bilinear"),
        "this, decoder=pil": ours("files", "pil"),
        "this, decoder=pillow": ours("files", "pillow"),
        "this, decoder=simplejpeg": ours("files", "simplejpeg"),
        "this, JPEG shards of 256": ours("jpeg", "simplejpeg", prepared=True),
        "this, raw shards of 256": ours("raw", "simplejpeg", prepared=True),
    }


class ImagesOfArray(Dataset[Any]):
    """Images of one array, one at a time through PIL, as torchvision's CIFAR10 reads them."""

    def __init__(self, images: np.ndarray, labels: list[int], transform: Callable[[Any], Any]) -> None:
        self.images, self.labels, self.transform = images, labels, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def small_loaders(arguments: argparse.Namespace) -> dict[str, Epoch]:
    """32x32 colour images with pad-4 crop and flip: ours on the device, theirs without and with worker processes."""
    from torchvision import transforms

    draws = np.random.default_rng(0)
    images = draws.integers(0, 256, (SMALL_IMAGES, 32, 32, 3), dtype=np.uint8)
    labels = draws.integers(0, 10, SMALL_IMAGES)
    steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    recipe = transforms.Compose([*steps, transforms.Normalize(*SMALL_STATISTICS)])
    files = ImagesOfArray(images, labels.tolist(), recipe)
    device = torch.device(arguments.device)
    loading = Loading(SMALL_BATCH, device=device, channels_last=True)
    ours = TensorLoader(
        images.transpose(0, 3, 1, 2),
        labels,
        loading.batches(SMALL_IMAGES, training=True),
        SMALL_STATISTICS,
        AugmentConfig(crop_padding=4, flip=True),
        loading,
    )
    alone = argparse.Namespace(**{**vars(arguments), "workers": 0})
    return {
        SMALL: _through_loader(files, SMALL_BATCH, alone),
        f"{SMALL}, {arguments.workers} workers": _through_loader(files, SMALL_BATCH, arguments),
        OURS: ours.epoch,
    }


def _through_loader(files: Any, batch: int, arguments: argparse.Namespace) -> Epoch:
    device, pinned = torch.device(arguments.device), arguments.device == "cuda"
    loader = DataLoader(files, batch, shuffle=True, num_workers=arguments.workers, drop_last=True, pin_memory=pinned)
    return lambda _: ((a.to(device, non_blocking=True), b.to(device, non_blocking=True)) for a, b in loader)


def compare_loaders(
    family: str, loaders: dict[str, Epoch], to: str, rounds: int, in_this_process: Sequence[str] = ()
) -> list[Row]:
    """One row for each loader; an epoch of each in every round."""
    epochs = itertools.count()  # each in another order

    def measure_epoch(name: str) -> dict[str, float]:
        seconds, processor = seconds_per_image(loaders[name](next(epochs)), started=name not in in_this_process)
        return {"seconds": seconds, "processor": processor}

    found, _ = in_rounds(measure_epoch, list(loaders), rounds)
    times, processors = found["seconds"], found["processor"]
    return [
        {
            "family": family,
            "name": name,
            "images_per_s": spread(1 / seconds for seconds in times[name]),
            "faster": spread(ratios(times, to, name)),
            "processor_ms": spread(processors[name], 1000),
            "less_work": spread(ratios(processors, to, name)) if all(processors[name]) else None,
        }
        for name in loaders
    ]


def seconds_per_image(batches: Iterator[Any], started: bool) -> tuple[float, float]:
    """Wall and processor seconds per image over a whole epoch, workers included.

    Processor seconds are what other work on the machine changes least. With workers (`started`) both are counted from
    the first batch to the last, without the start of the workers.
    """
    if started:
        next(batches)
    start, before = time.perf_counter(), processor_seconds()
    images, after = 0, before
    for batch in batches:
        images += batch.size if isinstance(batch, Batch) else len(batch[0])
        after = processor_seconds()  # before the workers of a last batch are gone
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / images, (after - before) / images


def processor_seconds() -> float:
    """Processor seconds of this process and its living children; 0 where the system does not tell."""
    tick, total = os.sysconf("SC_CLK_TCK"), 0.0
    for pid in (os.getpid(), *(child.pid for child in multiprocessing.active_children())):
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / tick  # user and system, after the name in brackets
    return total


def markdown(result: dict[str, Any]) -> str:
    """The measured table, one row per loader."""
    columns: dict[str, Callable[[Row], object]] = {
        "images": lambda row: row["family"],
        "loader": lambda row: row["name"],
        "images/s": lambda row: quartiles(row["images_per_s"], ",.0f"),
        "times as fast": lambda row: quartiles(row["faster"], ".2f"),
        "processor, ms an image": lambda row: f"{row['processor_ms']['median']:.2f}",
        "times less": lambda row: f"{row['less_work']['median']:.2f}" if row["less_work"] else "",
    }
    return f"""# Speed of the loaders

{result["workers"]} worker processes, {result["rounds"]} interleaved rounds, {result["before"]["device"]}; \
median [quartiles]. *Times as fast* and *times less* are ratios within a round, \
to '{PHOTOS}' for photographs and to '{SMALL}' for small images.

{table(columns, result["rows"])}"""
