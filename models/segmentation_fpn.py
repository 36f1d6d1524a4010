"""The segmentation network of the DropBlock paper: ResNet, feature pyramid P3-P5, fully convolutional head at stride 8.

Follows the released code (tensorflow/tpu@d2694ea, models/official/retinanet, retinanet_segmentation_model.py and
retinanet_architecture.py):

    P3, P4, P5 -> `head_depth` x (3x3 convolution, BN of the level, ReLU, site) -> 3x3 convolution
               -> each resized to P3 (bilinear, corners aligned) -> sum -> BN, ReLU -> 3x3 convolution to the classes

All convolutions of the head before the sum are shared by the three levels. Where in the head the paper put DropBlock is
in no public code; the sites here are after every convolution-BN-ReLU of the first line.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from models.fpn import BN_MOMENTUM, FeaturePyramid, SharedTower, head_conv, resize, resnet_body, set_batch_norm


class SegmentationFPN(nn.Module):
    """Logits of every class at a stride of 8 pixels (`stride`), in both modes.

    (N, in_channels, H, W) images -> (N, num_classes, ceil(H / stride), ceil(W / stride)); 513 pixels give 65. Bring
    them to the size of the labels by bilinear resizing with aligned corners: label pixel 8 i is logit i.

    Args:
        num_classes: classes, the background among them.
        in_channels: of the images.
        width: of the body's first group (64 in the paper).
        stem: of the body. `stride2` makes `stride` 4, `small` 2; see `models.resnet.ResNet`.
        zero_gamma: the last BN of every residual unit starts at weight 0.
        body: a ResNet by name.
        fpn_width, head_width: channels of pyramid and head.
        head_depth: convolutions with BN in the head.
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
        body: str = "resnet101",
        fpn_width: int = 256,
        head_width: int = 256,
        head_depth: int = 3,
        bn_momentum: float = BN_MOMENTUM,
        freeze_stem: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.body = resnet_body(body, in_channels, width, stem, zero_gamma, freeze_stem)
        self.stride = self.body.strides[1]
        self.fpn = FeaturePyramid(self.body.channels[1:], fpn_width, coarse=False, bilinear=True)
        self.tower = SharedTower(fpn_width, head_width, head_depth, self.fpn.levels, "head")
        self.last = head_conv(head_width, head_width)
        self.bn = nn.BatchNorm2d(head_width)
        self.predict = head_conv(head_width, num_classes)
        set_batch_norm(self, bn_momentum)

    def forward(self, x: Tensor) -> Tensor:
        finest, *coarser = [self.last(maps) for maps in self.tower(self.fpn(self.body.stages(x)[1:]))]
        total = finest
        for maps in coarser:
            total = total + resize(maps, finest)
        return self.predict(F.relu(self.bn(total), inplace=True)).float()
