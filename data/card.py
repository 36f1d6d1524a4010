"""The data card: the content of the splits of a data set, counted, and what of it a user should know.

A card is a dict of plain values, the content of a run's data_card.json:

    data, classes, fingerprint   which data, see `data.interface.Data`
    splits        of each split: images; of each class the images, pixels or boxes (`counts`); files that cannot be used
    headers       of how many of all image files the headers were read
    sizes, modes, orientations   number of images by width x height, by Pillow's mode, by EXIF orientation other than 1
    unused        files beside the images that are of other formats, by their ending, and one of them
    shared        of val and test: images that are in train as well, and one of them
    refused       reasons not to train on these data; the rest of them is for `on_bad_image=error` alone
    notes         what a user may not have meant
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from data.boxes import Annotated
from data.decode import EIGHT_BITS, FORMATS, MAX_PIXELS, ON_ITS_SIDE, hint_on_turn, orientation_of, tolerated, why
from data.folders import by_ending, few
from data.interface import Data
from data.samples import Samples

ALL_HEADERS, SOME_HEADERS = 20_000, 2_000  # of more files than the first, the headers of so many are read
MOST_MASKS = 2_000  # of those in files that are looked at for a class that the first of them lack
MOST_SHARED = 1_000  # images of a held-out split that are in train as well; more are not looked for
HEAD = 4096  # bytes of a file in which its header is looked for first
FEW_IMAGES = 50  # to evaluate on; the card notes the steps of accuracy on fewer
FEW_CLASSES = 8  # that are named one by one in the lines on the console
THREADS = 8  # that read headers: on a network drive a file takes milliseconds
STARTS_OF_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # markers of a JPEG that are followed by its size


Card = dict[str, Any]


class Header(NamedTuple):
    """The header of an image file. `wrong`: why the file cannot be used; `key`: equal for equal files."""

    width: int = 0
    height: int = 0
    mode: str = ""
    orientation: int = 1
    frames: int = 1
    key: tuple[int, int] = (0, 0)
    wrong: str = ""


_cards: dict[tuple[str, str], Card] = {}  # those of this process: the runs of a sweep share their data


def card_of(data: Data) -> Card:
    """Count the content of the splits of a data set, once in this process. Reads the headers of its image files."""
    known = data.fingerprint, repr(data.config)
    if known not in _cards:
        _cards[known] = _counted(data)
    return _cards[known]


def _counted(data: Data) -> Card:
    name, config, splits = data.name, data.config, data.splits
    counts = {split: samples.class_counts(data.num_classes, MOST_MASKS) for split, samples in splits.items()}

    # Headers of the image files: of all, or of a fixed choice from all splits.
    files = [(split, i) for split, samples in splits.items() if samples.from_files for i in range(len(samples))]
    if len(files) > ALL_HEADERS:
        chosen = np.sort(np.random.default_rng(0).choice(len(files), SOME_HEADERS, replace=False))
        looked_at = [files[i] for i in chosen.tolist()]
    else:
        looked_at = files
    paths = [splits[split].name(i) for split, i in looked_at]
    with ThreadPoolExecutor(THREADS) as pool:
        headers = [header for part in pool.map(_headers, _chunks(paths, 64)) for header in part]
    found = dict(zip(looked_at, headers, strict=True))
    good = [header for header in headers if not header.wrong]

    sizes = Counter(f"{header.width}x{header.height}" for header in good)
    orientations = Counter(header.orientation for header in good if header.orientation != 1)
    unused = sorted({path for samples in splits.values() for path in samples.unused})
    card: Card = {
        "data": name,
        "classes": list(data.classes),
        "fingerprint": data.fingerprint,
        "image_size": config.image_size,
        "exif": config.exif,
        "splits": {
            split: {
                "images": len(samples),
                "counted": counts[split].of,
                "counts": dict(zip(data.classes, counts[split].each, strict=False)),  # none without labels
                "ignored": counts[split].ignored,
                "black_and_white": counts[split].black_and_white,
                "counted_in": counts[split].read,
                "left_out": dict(samples.left_out),
            }
            for split, samples in splits.items()
        },
        "files": len(files),
        "headers": len(headers),
        "sizes": dict(sizes.most_common()),
        "modes": dict(Counter(header.mode for header in good).most_common()),
        "orientations": {str(tag): count for tag, count in sorted(orientations.items())},
        "unused": dict(Counter(os.path.splitext(path)[1].lower() for path in unused).most_common()),
        "unused_example": unused[0] if unused else None,
        "shared": _shared(splits, found, len(looked_at) == len(files)),
    }
    card["refused"] = [*_missing_classes(data, card), *_unusable(data, found)]
    card["notes"] = _notes(data, card, found)
    return card


def _chunks(paths: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (paths[i : i + size] for i in range(0, len(paths), size))


# Headers of image files.


def _headers(paths: Sequence[str]) -> list[Header]:
    return [header_of(path) for path in paths]


def header_of(path: str) -> Header:
    """Size, mode and EXIF orientation of an image file; of a file that Pillow cannot open, why."""
    from PIL import Image

    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
            key = (os.fstat(file.fileno()).st_size, zlib.crc32(head))
            plain = jpeg_header(head)
            if plain is not None:  # a third of the time that Pillow takes
                (width, height, mode), tag, frames = plain, 1, 1
            else:
                file.seek(0)
                with Image.open(file, formats=FORMATS) as image:
                    (width, height), mode, tag = image.size, image.mode, orientation_of(image)
                    frames = getattr(image, "n_frames", 1) if image.format in ("TIFF", "PNG", "WEBP") else 1
                    if image.format == "TIFF" and frames > 1:
                        raise ValueError("a TIFF of several images")
    except Exception as error:  # decoders raise nearly anything on damaged files
        return Header(wrong=why(error))
    wrong = "" if mode in EIGHT_BITS else f"pixels of mode {mode}, not 8 bits a channel"
    if width * height > MAX_PIXELS:
        wrong = f"its header says {width}x{height} pixels, more than {MAX_PIXELS:,}"
    return Header(width, height, mode, tag, frames, key, wrong)


def jpeg_header(head: bytes) -> tuple[int, int, str] | None:
    """Width, height and mode of a JPEG from its first bytes; None where it has EXIF, or they do not say."""
    if not head.startswith(b"\xff\xd8\xff"):
        return None
    place = 2
    while place + 9 < len(head) and head[place] == 0xFF:
        marker, length = head[place + 1], int.from_bytes(head[place + 2 : place + 4], "big")
        if marker == 0xE1:
            return None
        if marker in STARTS_OF_FRAMES:
            height, width = (int.from_bytes(head[place + i : place + i + 2], "big") for i in (5, 7))
            mode = {1: "L", 3: "RGB", 4: "CMYK"}.get(head[place + 9])
            return (width, height, mode) if mode and width and height and head[place + 4] == 8 else None
        place += 2 + length
    return None


# What the counts come to.


def _shared(splits: Any, found: dict[tuple[str, int], Header], complete: bool) -> dict[str, dict[str, Any]]:
    """Images of val and test that are in train as well: of equal content, and where not all files were opened, of
    equal names."""
    train, shared = splits["train"], {}

    def key(split: str, index: int) -> Any:
        return found[split, index].key if complete else splits[split]["name"][index]

    if not train.from_files:
        return {}
    ours: dict[Any, list[int]] = {}
    for i in range(len(train)):
        ours.setdefault(key("train", i), []).append(i)
    contents: dict[Any, set[bytes]] = {}  # of the training images of a key that a held-out image has, too
    for split in ("val", "test"):
        held = splits.get(split)
        same: list[str] = []
        for j in range(len(held) if held is not None and held.from_files else 0):
            at = key(split, j)
            if at in ours and at not in contents:
                contents[at] = {_content(train.name(i)) for i in ours[at]} - {b""}
            if at in ours and _content(held.name(j)) in contents[at]:
                same.append(held.name(j))
                if len(same) == MOST_SHARED:
                    break
        if same:
            shared[split] = {"images": len(same), "example": same[0]}
    return shared


def _content(path: str) -> bytes:
    """A digest of a file; nothing for one that cannot be read or is empty."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "blake2b").digest() if os.fstat(file.fileno()).st_size else b""
    except OSError:
        return b""


def _missing_classes(data: Data, card: Card) -> list[str]:
    """Reasons to refuse data of which a class cannot be learned: it has nothing in training."""
    train = card["splits"]["train"]
    whole = data.config.train_subset is None and train["counted_in"] == train["images"]
    missing = [known for known, count in train["counts"].items() if not count]
    if not missing or not whole or data.task == "detection":
        return []
    name, classes = data.name, counted_names(missing)
    if data.task == "classification":
        elsewhere = [
            f"{part['counts'][missing[0]]:,} in {split}"
            for split, part in card["splits"].items()
            if part["counts"][missing[0]]
        ]
        where = f" ({missing[0]} has {' and '.join(elsewhere)})" if elsewhere else ""
        return [f"{name}: no image to train on of {classes}{where}; give it more images, or take it out"]
    # Masks: what is probably meant.
    total = sum(train["counts"].values()) + train["ignored"]
    reason = f"{name}: the training masks have no pixel of {classes}"
    if len(data.classes) - len(missing) == 1 and train["ignored"] and data.config.mask_values is None:
        share = 100 * train["ignored"] / total
        return [
            f"{reason}, and {share:.1f} % of their pixels are 255, which is ignored; if they mean a class, "
            f"data.mask_values=[0,255] reads masks of black and white"
        ]
    if data.name == "segmentation_folder":
        return [f"{reason}; take it out of classes.txt, or name the gray level of each class by data.mask_values=[...]"]
    return [f"{reason}; is this all of the data set?"]


def _unusable(data: Data, found: dict[tuple[str, int], Header]) -> list[str]:
    """Reasons to refuse files that training would stop at, or that are more than it leaves out."""
    reasons = []
    for split, samples in data.splits.items():
        bad = [
            (samples.name(i), wrong)
            for (of, i), header in found.items()
            if of == split and (wrong := _wrong(data, samples, i, header))
        ]
        allowed = tolerated(len(samples)) if data.config.on_bad_image == "skip" else 0
        if len(bad) > allowed:
            path, wrong = bad[0]
            more = f"{len(bad):,} of {len(samples):,} images of {split} cannot be used, one is "
            few_ones = "; data.on_bad_image=skip leaves them out" if len(bad) <= tolerated(len(samples)) else ""
            reasons.append(f"{more if len(bad) > 1 else ''}{path}: {wrong}{few_ones}")
    return reasons


def _wrong(data: Data, samples: Samples, index: int, header: Header) -> str:
    """Why an image cannot be used, from its header and from what its annotation says; "" if it can."""
    if header.wrong or not isinstance(samples, Annotated):
        return header.wrong
    width, height = header.width, header.height
    if data.config.exif == "apply" and header.orientation in ON_ITS_SIDE:
        width, height = height, width
    said_height, said_width = samples["sizes"][index].tolist()
    if (width, height) == (said_width, said_height):
        return ""
    turned = hint_on_turn(header.orientation, (height, width) == (said_width, said_height))
    hint = turned or ": one of the two is wrong"
    return f"it has {width}x{height} pixels, its annotation says {said_width}x{said_height}{hint}"


def _notes(data: Data, card: Card, found: dict[tuple[str, int], Header]) -> list[str]:
    """Remarks on what a user may not have meant, and on what a reader of the numbers should know."""
    name, notes, train = data.name, [], card["splits"]["train"]
    if len(found) < card["files"]:
        notes.append(f"{name}: the headers of {len(found):,} of {card['files']:,} images were looked at")
    if card["unused"]:
        endings = by_ending({path for samples in data.splits.values() for path in samples.unused})  # cut splits share
        notes.append(f"{name}: files of other formats are not used ({endings}), one is {card['unused_example']}")

    # Files of which only a part is seen.
    moving = [(split, i) for (split, i), header in found.items() if header.frames > 1]
    if moving:
        split, i = moving[0]
        path = data.splits[split].name(i)
        notes.append(f"{name}: {len(moving):,} images are animations, of which the first frame is used, one is {path}")

    # Pictures that viewers turn.
    turned = [(split, i) for (split, i), header in found.items() if header.orientation != 1]
    if turned:
        split, i = turned[0]
        count = f"{len(turned):,} of {len(found):,} images have an EXIF orientation"
        if card["exif"] == "ignore":
            notes.append(f"{name}: {count} that is not applied (data.exif=apply), one is {data.splits[split].name(i)}")
        elif data.task != "classification":
            drawn = "boxes" if data.task == "detection" else "masks"
            notes.append(
                f"{name}: {count}, which is applied: their {drawn} are taken as drawn on the turned picture "
                f"(data.exif=ignore: as it is stored), one is {data.splits[split].name(i)}"
            )

    # Classes.
    counts = train["counts"]
    if name == "segmentation_folder" and data.config.mask_values is None and train["black_and_white"]:
        notes.append(
            f"{name}: {train['black_and_white']:,} of {train['counted_in']:,} training masks hold 0 and 255 alone, and "
            "255 is ignored; if it means a class there, give those pixels its index"
        )
    if data.task == "classification":
        total, most = sum(counts.values()), max(counts, key=counts.__getitem__)
        # Of two classes one always has half.
        if counts[most] > max(0.5, 1.5 / len(counts)) * total:
            notes.append(
                f"{name}: {100 * counts[most] / total:.0f} % of the training images are of class {most}, so much "
                "does a network reach that knows no other; headline=macro_accuracy weighs all classes alike"
            )
        single = [known for known, count in counts.items() if count == 1]
        if single:
            notes.append(f"{name}: one image to train on of {counted_names(single)}")
        sizes = {split: part["images"] for split, part in card["splits"].items() if split != "train"}
        steps = [f"{100 / size:.1f} points on {split}" for split, size in sizes.items() if size < FEW_IMAGES]
        if steps:
            notes.append(f"{name}: few images, so accuracy moves in steps of {' and '.join(steps)}")
    for split, part in card["splits"].items():
        lacking = [known for known, count in part["counts"].items() if not count]
        if not lacking or (split == "val" and data.task == "classification"):
            continue
        what, all_read = part["counted"], part["counted_in"] == part["images"]
        where = f"{split} has no {what}" if all_read else f"{part['counted_in']:,} masks of {split} have no pixels"
        measured = {"pixels": "mIoU", "boxes": "AP", "images": "macro accuracy"}[what]
        means = f": {measured} is the mean over the other classes" if split == "test" else ""
        notes.append(f"{name}: {where} of {counted_names(lacking)}{means}")

    for split, same in card["shared"].items():
        count = (
            f"{'at least ' if same['images'] == MOST_SHARED else ''}{same['images']:,} of {len(data.splits[split]):,}"
        )
        notes.append(f"{name}: of the {split} images {count} are in train as well, one is {same['example']}")
    return notes


def counted_names(names: Sequence[str]) -> str:
    """ "class a", or "3 classes (a, b, c)"."""
    return f"class {names[0]}" if len(names) == 1 else f"{len(names):,} classes ({few(names)})"


# The card on the console.


def card_text(card: Card) -> list[str]:
    """A few lines: classes and how much of each there is in training; sizes, modes and orientations of the images."""
    train = card["splits"]["train"]
    counts, what = train["counts"], train["counted"]
    total = sum(counts.values()) or 1

    def amount(count: int) -> str:
        return f"{100 * count / total:.1f} %" if what == "pixels" else f"{count:,}"

    if len(counts) <= FEW_CLASSES:
        each = ", ".join(f"{known} {amount(count)}" for known, count in counts.items())
    else:
        least, most = (choose(counts, key=counts.__getitem__) for choose in (min, max))
        each = f"{amount(counts[least])} ({least}) to {amount(counts[most])} ({most}) each"
        if counts[least] == counts[most]:
            each = f"{amount(counts[least])} each"
    ignored = ""
    if train["ignored"]:
        share = 100 * train["ignored"] / (total + train["ignored"])
        ignored = f"; {share:.1f} % of all are ignored" if what == "pixels" else f"; {train['ignored']:,} ignored"
    some = "" if train["counted_in"] == train["images"] else f" in {train['counted_in']:,} masks"
    lines = [f"{what} of {len(counts):,} classes in train{some}: {each}{ignored}"] if counts else []
    if card["sizes"]:
        sizes = list(card["sizes"])
        areas = sorted(sizes, key=lambda size: (int(size.split("x")[0]) * int(size.split("x")[1]), size))
        shape = sizes[0] if len(sizes) == 1 else f"{areas[0]} to {areas[-1]}, most often {sizes[0]}"
        modes = ", ".join(f"{mode} {count:,}" for mode, count in card["modes"].items())
        turned = sum(card["orientations"].values())
        done = "turned" if card["exif"] == "apply" else "not turned"
        exif = f"; {turned:,} with an EXIF orientation, {done}" if turned else ""
        lines.append(f"{card['headers']:,} image files, {shape} pixels; {modes}{exif}")
    return lines
