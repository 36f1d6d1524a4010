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
from torch import Tensor, nn

from models.anchors import PER_CELL, Anchors
from models.fpn import BN_MOMENTUM, FeaturePyramid, SharedTower, head_conv, resnet_body, set_batch_norm

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


class RetinaNet(nn.Module):
    """A detector: (N, in_channels, H, W) normalised images -> DetectorOutput, in both modes.

    Level l has ceil(side / stride) cells a side at a stride of 2^l pixels (l = 3 ... 7) and 9 anchors a cell; 640
    pixels give 76,725. In training a level needs more than one value a channel: at 128 pixels and fewer, more than
    one image a batch.

    Args:
        num_classes: classes, without a background.
        in_channels: of the images.
        width: of the body's first group (64 in the paper).
        stem: of the body. `stride2` halves every stride (P3 at 4 pixels, smallest anchor 16 pixels a side; for images
            of 128 pixels or so), `small` quarters it; see `models.resnet.ResNet`.
        zero_gamma: the last BN of every residual unit starts at weight 0.
        body: a ResNet by name.
        fpn_width, head_width: channels of pyramid and heads.
        head_depth: convolutions with BN in each head.
        bn_momentum: of every running statistic, body included. The released 0.003 needs thousands of steps; take 0.1
            for runs of a few hundred.
        freeze_stem: leave the kernel of the first convolution as it starts, as the released fine-tuning does.

    Raises:
        ValueError: for an unknown body or stem, or a number out of range.
    """

    last_group = 4

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        width: int = 64,
        stem: str = "imagenet",
        zero_gamma: bool = False,
        body: str = "resnet50",
        fpn_width: int = 256,
        head_width: int = 256,
        head_depth: int = 4,
        bn_momentum: float = BN_MOMENTUM,
        freeze_stem: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.body = resnet_body(body, in_channels, width, stem, zero_gamma, freeze_stem)
        self.fpn = FeaturePyramid(self.body.channels[1:], fpn_width, coarse=True, bilinear=False)
        levels = self.fpn.levels
        self.class_tower = SharedTower(fpn_width, head_width, head_depth, levels, "class")
        self.class_predict = head_conv(head_width, PER_CELL * num_classes, bias=-math.log((1 - PRIOR) / PRIOR))
        self.box_tower = SharedTower(fpn_width, head_width, head_depth, levels, "box")
        self.box_predict = head_conv(head_width, PER_CELL * 4)
        self.anchors = Anchors([self.body.strides[1] * 2**level for level in range(levels)])
        set_batch_norm(self, bn_momentum)

    def forward(self, x: Tensor) -> DetectorOutput:
        maps = self.fpn(self.body.stages(x)[1:])
        logits = by_anchor([self.class_predict(y) for y in self.class_tower(maps)], self.num_classes)
        deltas = by_anchor([self.box_predict(y) for y in self.box_tower(maps)], 4)
        return DetectorOutput(logits, deltas, self.anchors(maps))


def by_anchor(maps: Sequence[Tensor], size: int) -> Tensor:
    """One (N, 9 * size, h, w) map a level -> (N, A, size) float32, in the order of the anchors."""
    return torch.cat([y.permute(0, 2, 3, 1).reshape(len(y), -1, size) for y in maps], dim=1).float()
