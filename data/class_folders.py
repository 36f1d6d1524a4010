"""ImageNet and Imagenette: official class folders of photographs, or what was prepared from them."""

from __future__ import annotations

from pathlib import Path

from data.augment import Normalize
from data.fingerprint import fingerprint
from data.folders import Files, Folders, open_folders
from data.images import ImageLoader
from data.interface import Data
from data.options import Augment, Cut, Loading, Reading, Source
from data.pictures import Picture
from data.shards import is_prepared, open_prepared
from data.splits import Batches

IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def open_class_folders(
    name: str, source: Source, cut: Cut, augment: Augment, reading: Reading, loading: Loading
) -> Data:
    """Open `imagenet` or `imagenette`; see `data.build.build_data`."""
    require_photograph_augmentation(name, augment)
    source.require_known(name)
    size = reading.size(224 if name == "imagenet" else 160)
    found = _open(name, source.folder, source.download, reading)
    train, val = cut(found.train.labels)
    picture = Picture(size, reading.decoder, augment, found.decode)
    normalize = Normalize(*IMAGENET_STATISTICS, size, loading.device)

    def loader(files: Files, batches: Batches) -> ImageLoader:
        return ImageLoader(files, picture, batches, normalize, augment, reading, loading)

    return Data(
        name=name,
        task="classification",
        train=loader(found.train.part(train), loading.training(len(train))),
        val=loader(found.train.part(val), loading.evaluation(len(val))) if len(val) else None,
        test=loader(found.test, loading.evaluation(len(found.test))),
        classes=found.classes,
        image_shape=(3, size, size),
        fingerprint=fingerprint(
            *(name, found.classes, train, val),
            *(found.train.names, found.train.labels, found.test.names, found.test.labels),
            *([found.version] if found.version else []),
        ),
        notes=found.notes + cut.notes,
    )


def require_photograph_augmentation(name: str, augment: Augment) -> None:
    """Raise ValueError for an augmentation that photographs do not have."""
    augment.refuse(f"is for segmentation and detection, not for {name}", "scale_min", "scale_max", "photometric")
    if augment.crop_padding:
        raise ValueError(
            f"recipe.augment.crop_padding is for small images; {name} is cropped by random boxes: set it to 0, or "
            "choose a recipe of photographs such as recipe=imagenette"
        )


def _open(name: str, root: Path | None, download: bool, reading: Reading) -> Folders:
    """Class folders, or what was prepared from them; runs on the two are not the same, so neither is guessed."""
    if is_prepared(root) and not reading.prepared:
        raise ValueError(
            f"{name}: {root} holds prepared photographs, which are not the original ones: data.prepared=true"
        )
    if not reading.prepared:
        return open_folders(name, root, download)
    if root is None or not is_prepared(root):
        raise FileNotFoundError(
            f"{name}: no prepared photographs in data.root={root}, or not all; scripts/prepare_shards.py writes them"
        )
    found = open_prepared(name, root)
    if found.decode is not None and reading.decoder == "pil":
        raise ValueError(f"{name}: decoder pil reads image files, and {root} holds raw pixels; use decoder=auto")
    return found
