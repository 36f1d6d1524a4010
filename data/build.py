"""A name and option groups to a data set with its loaders."""

from __future__ import annotations

from typing import Protocol

from data.box_sets import open_coco, open_voc_detection
from data.class_folders import open_class_folders
from data.digit_boxes import open_digit_boxes
from data.in_memory import READERS, open_in_memory
from data.interface import Data
from data.mask_sets import open_camvid, open_digit_masks, open_segmentation_folder, open_voc_segmentation
from data.options import Augment, Cut, Loading, Reading, Source
from data.own_folders import open_own_folders


class Opener(Protocol):
    """Opens the data set of a name."""

    def __call__(
        self, name: str, source: Source, cut: Cut, augment: Augment, reading: Reading, loading: Loading
    ) -> Data: ...


DATASETS: dict[str, Opener] = {
    **dict.fromkeys(READERS, open_in_memory),
    "imagenette": open_class_folders,
    "imagenet": open_class_folders,
    "folder": open_own_folders,
    "digit_masks": open_digit_masks,
    "camvid": open_camvid,
    "voc_segmentation": open_voc_segmentation,
    "segmentation_folder": open_segmentation_folder,
    "coco": open_coco,
    "voc_detection": open_voc_detection,
    "digit_boxes": open_digit_boxes,
}


def build_data(
    name: str,
    source: Source,
    cut: Cut,
    augment: Augment,
    reading: Reading,
    loading: Loading,
) -> Data:
    """Open a data set.

    Every draw is a function of (seed, epoch, sample index): neither the number of workers, nor the number of ranks,
    nor a resume changes an image. The splits are functions of the data set alone.

    Args:
        name: one of `DATASETS`.
        source, cut, augment, reading, loading: see `data.options`.

    Raises:
        FileNotFoundError: if the data are not there; says what to do.
        ValueError: for a wrong value or damaged data; names it.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data '{name}', choose one of {', '.join(DATASETS)}")
    if reading.prepared and name not in ("imagenet", "imagenette"):
        raise ValueError(f"prepared=true is for imagenet and imagenette, not for {name}")
    try:
        return DATASETS[name](name, source, cut, augment, reading, loading)
    except PermissionError as error:
        raise ValueError(f"{name}: no permission to read {error.filename}") from error
