"""The data sets by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import fields, replace

from configs.schema import AugmentConfig, DataConfig
from data.box_sets import open_coco, open_digit_boxes, open_voc_detection
from data.class_folders import open_class_folders, open_own_folders
from data.decode import pick_decoder
from data.in_memory import cifar, digits, fake, fashion_mnist, in_memory
from data.interface import Data, Loading
from data.mask_sets import open_camvid, open_digit_masks, open_segmentation_folder, open_voc_segmentation

Opener = Callable[[DataConfig, AugmentConfig, Loading], Data]
# The task of each data set, and what opens it.
DATASETS: dict[str, tuple[str, Opener]] = {
    "digits": ("classification", in_memory(digits)),
    "fashion_mnist": ("classification", in_memory(fashion_mnist)),
    "cifar10": ("classification", in_memory(cifar)),
    "cifar100": ("classification", in_memory(cifar)),
    "fake": ("classification", in_memory(fake)),
    "imagenette": ("classification", open_class_folders),
    "imagenet": ("classification", open_class_folders),
    "folder": ("classification", open_own_folders),
    "digit_masks": ("segmentation", open_digit_masks),
    "camvid": ("segmentation", open_camvid),
    "voc_segmentation": ("segmentation", open_voc_segmentation),
    "segmentation_folder": ("segmentation", open_segmentation_folder),
    "coco": ("detection", open_coco),
    "voc_detection": ("detection", open_voc_detection),
    "digit_boxes": ("detection", open_digit_boxes),
}
# The keys of `data` that only some data sets have.
OPTIONS: dict[str, tuple[str, ...]] = {
    "folder": ("mean", "std"),
    "segmentation_folder": ("mean", "std", "mask_values"),
    "voc_segmentation": ("list",),
    "coco": ("train_split", "val_split", "test_split"),
    "voc_detection": ("train_split", "val_split", "test_split", "classes"),
}
OF_SMALL_IMAGES, OF_PLACED_IMAGES = ("crop_padding",), ("scale_min", "scale_max", "photometric")


def build_data(data: DataConfig, augment: AugmentConfig, loading: Loading) -> Data:
    """Open a data set.

    Every draw is a function of (seed, epoch, sample index): neither the number of workers, nor the number of ranks,
    nor a resume changes an image. The splits are functions of the data set alone.

    Args:
        data: its name, one of `DATASETS`; where it is and how it is read.
        augment: changes of training images.
        loading: how batches are made.

    Raises:
        FileNotFoundError: if the data are not there; says what to do.
        ValueError: for a wrong value or damaged data; names it.
    """
    name = data.name
    if name not in DATASETS:
        raise ValueError(f"unknown data '{name}', choose one of {', '.join(DATASETS)}")
    if data.prepared and name not in ("imagenet", "imagenette"):
        raise ValueError(f"prepared=true is for imagenet and imagenette, not for {name}")
    # Keys that this data set does not read.
    known = OPTIONS.get(name, ())
    for option in data.options():
        if option not in known:
            has = f"it has {', '.join(known)}" if known else "it has no options of its own"
            raise ValueError(f"data.{option} does not apply to data={name}; {has}")
    pick_decoder(data.decoder)  # refuses one that is not installed
    task, opener = DATASETS[name]
    data = replace(data, task=task, root=None if data.root is None else os.path.expanduser(data.root))
    _check_augmentation(data, augment)
    try:
        return opener(data, augment, loading)
    except PermissionError as error:
        raise ValueError(f"{name}: no permission to read {error.filename}") from error


def _check_augmentation(data: DataConfig, augment: AugmentConfig) -> None:
    """Refuse values out of range, and what the images of another task have."""
    if augment.crop_padding < 0:
        raise ValueError(f"recipe.augment.crop_padding={augment.crop_padding}: must be 0 or more")
    if not 0.1 <= augment.scale_min <= augment.scale_max <= 10:
        raise ValueError(
            f"recipe.augment.scale_min={augment.scale_min} recipe.augment.scale_max={augment.scale_max}: "
            "0.1 <= scale_min <= scale_max <= 10"
        )
    if not 0 <= augment.photometric < 1:
        raise ValueError(f"recipe.augment.photometric={augment.photometric}: must lie in [0, 1)")
    placed = data.task in ("segmentation", "detection")
    others, tasks = (OF_SMALL_IMAGES, "classification") if placed else (OF_PLACED_IMAGES, "segmentation and detection")
    defaults = {f.name: f.default for f in fields(AugmentConfig)}
    for key in others:
        value = getattr(augment, key)
        if value != defaults[key]:
            raise ValueError(
                f"recipe.augment.{key}={value} is for {tasks}, not for {data.name}: leave out recipe=, as it names one "
                f"of another task, or set this to {defaults[key]}"
            )
