"""Boxes of a one-stage detector: which anchor stands for which object, box coding, and detections from raw outputs.

Constants and rules are those of the code released with the paper (tensorflow/tpu@d2694ea, models/official/retinanet,
anchors.py and retinanet_model.py). All boxes are x1 y1 x2 y2 in pixels, float32.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

BACKGROUND = -1
POSITIVE_IOU = 0.5
NMS_IOU = 0.5
CANDIDATES = 5_000  # (anchor, class) pairs of an image that non-maximum suppression looks at
MOST_DETECTIONS = 100  # of an image
MOST_GROWTH = math.log(1000 / 16)  # of a predicted side over the anchor's: exp shall not overflow


class Detections(NamedTuple):
    """Detections of one image, by falling score.

    boxes: (N, 4) in pixels of the batch's image; they may stick out of it.
    scores: (N,) in (0, 1).
    labels: (N,) int64.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def is_object(boxes: Tensor, labels: Tensor) -> Tensor:
    """Mask of the padded boxes (..., 4) that are objects: labelled, and with an area."""
    return (labels >= 0) & (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


@torch.no_grad()
def match(anchors: Tensor, boxes: Tensor, objects: Tensor) -> Tensor:
    """The number of the box that each anchor stands for, `BACKGROUND` for none.

    An anchor stands for the box it overlaps most, if their IoU is at least 0.5; there is no band of ignored anchors.
    The best anchor of a box stands for it however small their overlap is, unless there is none. Of equal anchors and of
    equal boxes the first wins.

    Args:
        anchors: (A, 4).
        boxes: (M, 4), of one image.
        objects: (M,) bool, the boxes that count.

    Returns:
        (A,) int64. On a GPU nothing waits for the device.
    """
    from torchvision.ops import box_iou

    # Where looking costs nothing, the padding is left out before it is compared with every anchor.
    numbers = torch.arange(len(boxes), device=boxes.device)
    if boxes.device.type == "cpu":
        numbers, boxes, objects = numbers[objects], boxes[objects], objects[objects]
    if not len(boxes):
        return torch.full((len(anchors),), BACKGROUND, device=anchors.device)

    # The box that each anchor overlaps most.
    overlap = torch.where(objects[:, None], box_iou(boxes, anchors), -1.0)
    iou, place = overlap.max(dim=0)
    matched = torch.where(iou >= POSITIVE_IOU, place, BACKGROUND)

    # The best anchor of each box stands for it; of several boxes with the same best anchor, the first.
    iou, best = overlap.max(dim=1)
    nobody = len(boxes)
    claims = torch.where(iou > 0, torch.arange(nobody, device=boxes.device), nobody)
    claimed = torch.full_like(matched, nobody).scatter_reduce_(0, best, claims, "amin")
    matched = torch.where(claimed < nobody, claimed, matched)
    return torch.where(matched == BACKGROUND, BACKGROUND, numbers[matched.clamp(min=0)])


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Targets of a network for boxes (..., 4): (dx / wa, dy / ha, log(w / wa), log(h / ha))."""
    sides, anchor_sides = boxes[..., 2:] - boxes[..., :2], anchors[..., 2:] - anchors[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2 / anchor_sides
    return torch.cat([shift, (sides / anchor_sides).log()], dim=-1)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """The boxes (..., 4) that were predicted for anchors (..., 4): the inverse of `encode`."""
    anchor_sides = anchors[..., 2:] - anchors[..., :2]
    centres = (anchors[..., :2] + anchors[..., 2:]) / 2 + deltas[..., :2] * anchor_sides
    half = deltas[..., 2:].clamp(max=MOST_GROWTH).exp() * anchor_sides / 2
    return torch.cat([centres - half, centres + half], dim=-1)


@torch.no_grad()
def detect(class_logits: Tensor, box_deltas: Tensor, anchors: Tensor, score_threshold: float) -> Detections:
    """Detections of one image from raw outputs.

    The best 5,000 pairs of anchor and class, over all levels; suppression within each class; the best 100.

    Args:
        class_logits: (A, K).
        box_deltas, anchors: (A, 4).
        score_threshold: pairs below it are left out.
    """
    from torchvision.ops import batched_nms

    scores = class_logits.float().sigmoid().flatten()
    scores, pairs = scores.topk(min(CANDIDATES, len(scores)))
    above = scores > score_threshold
    scores, pairs = scores[above], pairs[above]
    places, labels = pairs // class_logits.shape[1], pairs % class_logits.shape[1]
    boxes = decode(box_deltas[places].float(), anchors[places])
    if not len(boxes):
        return Detections(boxes, scores, labels)
    # batched_nms shifts the classes apart by the largest coordinate. That takes coordinates above 0, and float64: a
    # young network's boxes are some 10,000 pixels large, and 80 times that has half a pixel of precision in float32.
    kept = batched_nms((boxes - boxes.min()).double(), scores.double(), labels, NMS_IOU)[:MOST_DETECTIONS]
    return Detections(boxes[kept], scores[kept], labels[kept])
