"""AmoebaNet-B (N, F) (Real et al. 2019, arXiv 1802.01548), the second classifier of the DropBlock paper.

A stem, then three stacks of N normal cells; a reduction cell between two stacks halves the maps and doubles the filters
F. Every cell reads the output of the cell before it and of the one before that. At 331 pixels the maps have 165, 83,
42, 21 and 11 pixels a side.

Sites. After every BN of stem and cells, on the conv branch; on every connection that skips: where a cell receives the
previous output (after its 1x1-BN or reduction, if it needs one), and where `none` hands on an inner state. Besides,
every operation but `none` ends in a `path_only` site: there, and only there, drop path drops whole operations.

Groups. The paper puts DropBlock "in the last 50 % of the cells", on maps of 21 or 11 pixels. Group 4 is the part of
that half on the smallest maps, group 3 the part before the last reduction, group 2 the first half, group 1 the stem; so
`groups: [3, 4]` is the paper's placement, and group 3 can have a quarter of the drop rate. What is counted is not
stated. `last_half="all_cells"` counts stem and reduction cells as well: of (6, F) normal cells 8-17 and the reduction
among them. `last_half="normal_cells"` counts and takes normal cells only: 9-17.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dropblock.sites import Site
from models.amoebanet_cell import NORMAL, REDUCTION, Cell, CellPlan, Maps

STEM_FILTERS = 32


class AuxiliaryHead(nn.Module):
    """A second classifier on the maps of a middle cell, for training only."""

    def __init__(self, channels: int, side: int, num_classes: int) -> None:
        super().__init__()
        pooled = (side - 5) // 3 + 1
        if pooled < 1:
            raise ValueError(f"the auxiliary head needs maps of 5 pixels or more, not {side}: take larger images")
        narrow, wide = int(128 * 0.4), int(768 * 0.4)
        self.proj, self.bn0 = nn.Conv2d(channels, narrow, 1, bias=False), nn.BatchNorm2d(narrow)
        self.full, self.bn1 = nn.Conv2d(narrow, wide, pooled, bias=False), nn.BatchNorm2d(wide)
        self.fc = nn.Linear(wide, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.proj(F.avg_pool2d(F.relu(x), 5, stride=3))))
        return self.fc(torch.flatten(F.relu(self.bn1(self.full(x))), 1))


def cell_sequence(cells: int, filters: int, stem: str) -> list[tuple[CellPlan, int, int]]:
    """Every cell in order: its plan, its filters, and its stack 1 ... 3 (0 for the cells of the stem)."""
    sequence = [(REDUCTION, filters // 4, 0), (REDUCTION, filters // 2, 0)] if stem == "imagenet" else []
    for stack in (1, 2, 3):
        if stack > 1:
            sequence.append((REDUCTION, filters * 2 ** (stack - 1), stack))
        sequence += [(NORMAL, filters * 2 ** (stack - 1), stack)] * cells
    return sequence


def cell_groups(sequence: list[tuple[CellPlan, int, int]], last_half: str) -> list[int]:
    """The group of every cell, under one reading of "the last 50 % of the cells" (see the head of this file)."""
    if last_half not in ("all_cells", "normal_cells"):
        raise ValueError(f"unknown last_half '{last_half}', choose one of all_cells, normal_cells")
    counted = [i for i, (plan, _, _) in enumerate(sequence) if last_half == "all_cells" or plan is NORMAL]
    half = set(counted[len(counted) // 2 :])
    return [
        1 if stack == 0 else 2 if i not in half else 4 if stack == 3 else 3 for i, (_, _, stack) in enumerate(sequence)
    ]


class AmoebaNet(nn.Module):
    """AmoebaNet-B (cells, width).

    With `auxiliary`, and in training mode only, the output is the pair (logits, auxiliary logits), both
    (N, num_classes); the loss of the second counts `aux_weight`. In all other cases it is the logits alone.

    Args:
        num_classes: outputs of the classifier (the released code has 1001 for ImageNet).
        in_channels: channels of the images.
        width: F, the filters of the first stack.
        stem: `imagenet` (3x3 stride 2 without padding, then two reduction cells at F / 4 and F / 2) or `small` (the
            released code's basic stem: 3x3 stride 1 without padding).
        cells: N, normal cells in each of the three stacks.
        auxiliary: build the auxiliary head, after the last cell of the second stack.
        image_size: side of the images; only the auxiliary head depends on it.
        dense_keep_prob: keep_prob of the dropout before the classifier.
        dilation: dilate the 5x5 in the reduction cell by 2, as its name says; the released code does not.
        last_half: `all_cells` or `normal_cells`, see the head of this file.
        bn_momentum, bn_eps: the defaults are those of the released code's runner; its table of hyper-parameters has
            0.0003 and 1e-3.
    """

    last_group = 4
    aux_weight = 0.4

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        width: int = 256,
        stem: str = "imagenet",
        cells: int = 6,
        auxiliary: bool = False,
        image_size: int = 331,
        dense_keep_prob: float = 0.5,
        dilation: bool = False,
        last_half: str = "all_cells",
        bn_momentum: float = 0.1,
        bn_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if stem not in ("imagenet", "small"):
            raise ValueError(f"unknown stem '{stem}', choose one of imagenet, small")
        if cells < 1 or width < 4:
            raise ValueError(f"AmoebaNet needs at least 1 cell and width 4, not {cells} and {width}")

        # A convolution without padding: 331 pixels become 165.
        self.num_classes = num_classes
        self.stem_conv = nn.Conv2d(in_channels, STEM_FILTERS, 3, stride=2 if stem == "imagenet" else 1, bias=False)
        self.stem_bn = nn.BatchNorm2d(STEM_FILTERS)
        self.stem_site = Site(1, "conv", "bn of the stem")

        # Every cell reads the one before it and the one before that; the first has the stem for both.
        sequence = cell_sequence(cells, width, stem)
        self.cells = nn.ModuleList()
        current = previous = Maps(STEM_FILTERS, 0)
        side = (image_size - 3) // self.stem_conv.stride[0] + 1
        for (plan, filters, stack), group in zip(sequence, cell_groups(sequence, last_half), strict=True):
            cell = Cell(plan, filters, current, previous, group, dilation)
            self.cells.append(cell)
            previous, current = current, cell.output
            if stack == 2:
                self.middle, middle = len(self.cells) - 1, current

        # The head's one fully connected convolution is as large as the maps it sees, hence `image_size`.
        self.auxiliary: AuxiliaryHead | None = None
        if auxiliary:
            self.auxiliary = AuxiliaryHead(middle.channels, math.ceil(side / 2**middle.halvings), num_classes)

        # The classifier sees ReLU, mean and dropout of the last cell; every weight is then drawn anew.
        self.dropout = nn.Dropout(1.0 - dense_keep_prob)
        self.fc = nn.Linear(current.channels, num_classes)
        initialise(self, bn_momentum, bn_eps)

    def maps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output of the last cell, and of the cell that feeds the auxiliary head."""
        x = self.stem_site(self.stem_bn(self.stem_conv(x)))
        previous, middle = x, x
        for i, cell in enumerate(self.cells):
            previous, x = x, cell(x, previous)
            if i == self.middle:
                middle = x
        return x, middle

    def features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) images -> (N, 4 * 4F, h, w) maps of the last cell after ReLU, before pooling."""
        return F.relu(self.maps(x)[0])

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        last, middle = self.maps(x)
        logits = self.fc(self.dropout(F.relu(last).mean((2, 3))))
        if self.auxiliary is None or not self.training:
            return logits
        return logits, self.auxiliary(middle)


def initialise(model: nn.Module, bn_momentum: float, bn_eps: float) -> None:
    """Initialise as the released code: every weight truncated normal of variance 2 / fan-out, biases 0.

    The cut at two standard deviations takes away variance; the factor 1.3 under the root makes up for it.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum, module.eps = bn_momentum, bn_eps
        elif isinstance(module, nn.Conv2d | nn.Linear):
            fan_out = module.weight.shape[0] * math.prod(module.weight.shape[2:])
            fan_out //= module.groups if isinstance(module, nn.Conv2d) else 1
            std = math.sqrt(1.3 * 2.0 / fan_out)
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
