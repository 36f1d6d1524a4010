"""RetinaNet (Lin et al. 2017, arXiv 1708.02002) as the DropBlock paper trains it on COCO.

Follows the released code (tensorflow/tpu@d2694ea, models/official/retinanet, retinanet_architecture.py): ResNet v1.5,
feature pyramid P3-P7 with a BN of its own behind every level, and two heads, for classes and for boxes, of `head_depth`
3x3 convolutions with BN and ReLU and one 3x3 convolution that predicts. The convolutions of the heads are shared by the
levels, their BNs are not.

The network gives raw outputs in training and evaluation alike; matching, loss and decoding belong to the task. The
released detection code contains no DropBlock; the paper places it in the ResNet. The sites of the heads are ours, as in
`models.segmentation_fpn`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from models.anchors import PER_CELL, Anchors
from models.fpn import PyramidNetwork, SharedTower, head_conv

PRIOR = 0.01  # probability that an anchor holds a class, at the start (Lin et al., section 4.1)


class DetectorOutput(NamedTuple):
    """Raw outputs for A anchors, levels P3 ... P7 one after the other; all float32.

    Attributes:
        class_logits: (N, A, num_classes), one sigmoid a class, no background.
        box_deltas: (N, A, 4), (dx, dy) in anchor sides and (log dw, log dh), relative to the anchors.
        anchors: (A, 4), xyxy in pixels of the batch image.
    """

    class_logits: Tensor
    box_deltas: Tensor
    anchors: Tensor


class RetinaNet(PyramidNetwork):
    """A detector: (N, in_channels, H, W) normalised images -> DetectorOutput, in both modes.

    Level l has ceil(side / stride) cells a side at a stride of 2^l pixels (l = 3 ... 7) and 9 anchors a cell; 640
    pixels give 76,725. With stem `stride2` P3 lies at 4 pixels and the smallest anchor has 16 pixels a side, for images
    of 128 pixels or so. In training a level needs more than one value a channel: at 128 pixels and fewer, more than one
    image a batch.

    Args and errors: see `models.fpn.PyramidNetwork`; `num_classes` without a background.
    """

    default_body, default_depth, coarse = "resnet50", 4, True

    def add_heads(self, in_channels: int, width: int, depth: int) -> None:
        levels = self.fpn.levels
        self.class_tower = SharedTower(in_channels, width, depth, levels, "class")
        self.class_predict = head_conv(width, PER_CELL * self.num_classes, bias=-math.log((1 - PRIOR) / PRIOR))
        self.box_tower = SharedTower(in_channels, width, depth, levels, "box")
        self.box_predict = head_conv(width, PER_CELL * 4)
        self.anchors = Anchors([self.body.strides[1] * 2**level for level in range(levels)])

    def forward(self, x: Tensor) -> DetectorOutput:
        maps = self.levels(x)
        logits = by_anchor([self.class_predict(y) for y in self.class_tower(maps)], self.num_classes)
        deltas = by_anchor([self.box_predict(y) for y in self.box_tower(maps)], 4)
        return DetectorOutput(logits, deltas, self.anchors(maps))


def by_anchor(maps: Sequence[Tensor], size: int) -> Tensor:
    """One (N, 9 * size, h, w) map a level -> (N, A, size) float32, in the order of the anchors."""
    return torch.cat([y.permute(0, 2, 3, 1).reshape(len(y), -1, size) for y in maps], dim=1).float()
