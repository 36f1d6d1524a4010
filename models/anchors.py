"""The anchors of RetinaNet, by the formula of the released code (tensorflow/tpu@d2694ea, retinanet/anchors.py)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SCALE = 4.0  # side of the smallest square anchor in strides
OCTAVES = 3  # sizes between two levels
ASPECTS = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))  # (width, height) factors; not exactly 2:1, as released
PER_CELL = OCTAVES * len(ASPECTS)


def cell_anchors(stride: int) -> Tensor:
    """(9, 4) anchors of the first cell of a level, xyxy in pixels: sides 4 stride 2^(k/3) times the aspects.

    They lie around the middle of the cell, and are neither rounded nor clipped to the image.
    """
    sizes = [
        (SCALE * stride * 2 ** (k / OCTAVES) * w, SCALE * stride * 2 ** (k / OCTAVES) * h)
        for k in range(OCTAVES)
        for w, h in ASPECTS
    ]
    half = torch.tensor(sizes, dtype=torch.float64) / 2
    return torch.cat([stride / 2 - half, stride / 2 + half], dim=1).float()


class Anchors:
    """The anchors of a pyramid, (A, 4) float32 in xyxy pixels: level by level, row by row, 9 a cell.

    Computed once for every size of the maps and kept. They are constants: no part of a state_dict, no buffers that
    ranks would have to exchange.

    torchvision's generator lays out the grid; its own cell anchors are rounded and half a stride off (centres at
    i stride, not at stride / 2 + i stride), so they are replaced.
    """

    def __init__(self, strides: Sequence[int]) -> None:
        self.strides = tuple(strides)
        self.known: dict[tuple[object, ...], Tensor] = {}

    def __call__(self, maps: Sequence[Tensor]) -> Tensor:
        from torchvision.models.detection.anchor_utils import AnchorGenerator

        device = maps[0].device
        sizes = [tuple(x.shape[-2:]) for x in maps]
        key = (device, *sizes)
        if key not in self.known:
            generator = AnchorGenerator()
            generator.cell_anchors = [cell_anchors(stride) for stride in self.strides]
            grids = generator.grid_anchors(sizes, [(stride, stride) for stride in self.strides])
            self.known[key] = torch.cat(grids).to(device)
        return self.known[key]
