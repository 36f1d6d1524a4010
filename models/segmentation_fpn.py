"""The segmentation network of the DropBlock paper: ResNet, feature pyramid P3-P5, fully convolutional head at stride 8.

Follows the released code (tensorflow/tpu@d2694ea, models/official/retinanet, retinanet_segmentation_model.py and
retinanet_architecture.py):

    P3, P4, P5 -> `head_depth` x (3x3 convolution, BN of the level, ReLU, site) -> 3x3 convolution
               -> each resized to P3 (bilinear, by position) -> sum -> BN, ReLU -> 3x3 convolution to the classes

All convolutions of the head before the sum are shared by the three levels. Where in the head the paper put DropBlock is
in no public code; the sites here are after every convolution-BN-ReLU of the first line.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from models.fpn import PyramidNetwork, SharedTower, head_conv, resize


class SegmentationFPN(PyramidNetwork):
    """Logits of every class at a stride of 8 pixels (`stride`), in both modes.

    (N, in_channels, H, W) images -> (N, num_classes, ceil(H / stride), ceil(W / stride)); 513 pixels give 65. Bring
    them to the size of the labels by bilinear resizing with aligned corners: label pixel 8 i is logit i. Stem `stride2`
    makes `stride` 4, `small` 2.

    Args and errors: see `models.fpn.PyramidNetwork`; `num_classes` with the background.
    """

    default_body, default_depth, coarse = "resnet101", 3, False

    def add_heads(self, in_channels: int, width: int, depth: int) -> None:
        self.stride = self.body.strides[1]
        self.tower = SharedTower(in_channels, width, depth, self.fpn.levels, "head")
        self.last = head_conv(width, width)
        self.bn = nn.BatchNorm2d(width)
        self.predict = head_conv(width, self.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        finest, *coarser = [self.last(maps) for maps in self.tower(self.levels(x))]
        total = finest
        for level, maps in enumerate(coarser, start=1):
            total = total + resize(maps, finest, 2**level)
        return self.predict(F.relu(self.bn(total), inplace=True)).float()
