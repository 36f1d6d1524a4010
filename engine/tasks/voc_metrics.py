"""PASCAL VOC's average precision at IoU 0.5, over all points of the precision-recall curve (the rule from 2010 on).

The rule is that of the development kit of Everingham et al., "The PASCAL Visual Object Classes Challenge 2012". It
differs from COCO's AP50 in three points. A detection belongs to the object of its class that it overlaps most, so a
second detection of one object is a false alarm even where it also overlaps another. A detection on a difficult object
counts as nothing if the overlap is half of their union, in COCO if it is half of the detection. And the curve is not
sampled at 101 recalls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

LEAST_IOU = 0.5


def average_precision(
    truth: dict[str, Any], rows: NDArray[np.float64], image_ids: Sequence[int]
) -> dict[int, float | None]:
    """The average precision of each category by its id, a share; None for one without objects.

    Args:
        truth: the objects, in the form of COCO's JSON; `iscrowd` marks what VOC calls difficult: neither a hit nor a
            false alarm.
        rows: (N, 7) image id, left, top, width, height, score, category id.
        image_ids: the images that count.
    """
    seen = set(image_ids)
    objects = [annotation for annotation in truth["annotations"] if annotation["image_id"] in seen]
    ignored = np.array([bool(annotation.get("iscrowd")) for annotation in objects], bool)
    categories = np.array([annotation["category_id"] for annotation in objects], np.int64)

    # By falling score, the first detection of an object is a hit, a further one a false alarm.
    rows = rows[np.argsort(-rows[:, 5], kind="stable")]
    found = _best_objects(objects, rows)
    hits = np.flatnonzero(found >= 0)
    first = np.zeros(len(rows), bool)
    first[hits[np.unique(found[hits], return_index=True)[1]]] = True
    counted = np.ones(len(rows), bool)
    counted[hits] = ~ignored[found[hits]]

    # The area under the curve of each category. Each hit moves the recall by 1 / number; the precision is the best
    # at this recall or a higher one.
    result: dict[int, float | None] = {}
    for category in (entry["id"] for entry in truth["categories"]):
        number = int(((categories == category) & ~ignored).sum())
        right = first[(rows[:, 6] == category) & counted]
        precision = np.cumsum(right) / np.arange(1, len(right) + 1)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        result[category] = float(best[right].sum()) / number if number else None
    return result


def _best_objects(objects: Sequence[dict[str, Any]], rows: NDArray[np.float64]) -> NDArray[np.int64]:
    """(N,) the object of the same image and category that each detection overlaps most, -1 below an IoU of 0.5."""
    from torchvision.ops import box_iou

    of_image: dict[int, list[int]] = {}
    for number, annotation in enumerate(objects):
        of_image.setdefault(annotation["image_id"], []).append(number)
    best = np.full(len(rows), -1)
    order = np.argsort(rows[:, 0], kind="stable")
    starts = np.flatnonzero(np.diff(rows[order, 0], prepend=np.nan))
    for here in np.split(order, starts[1:]) if len(rows) else ():
        there = np.array(of_image.get(int(rows[here[0], 0]), []), np.int64)
        if len(there):
            boxes = np.array([objects[number]["bbox"] for number in there], np.float64)
            overlap = box_iou(_corners(rows[here, 1:5]), _corners(boxes)).numpy()
            same = rows[here, 6:] == [objects[number]["category_id"] for number in there]
            overlap = np.where(same, overlap, -1.0)
            best[here] = np.where(overlap.max(1) >= LEAST_IOU, there[overlap.argmax(1)], -1)
    return best


def _corners(boxes: NDArray[np.float64]) -> torch.Tensor:
    left_top = torch.from_numpy(boxes[:, :2])
    return torch.cat([left_top, left_top + torch.from_numpy(boxes[:, 2:])], dim=1)
