"""FractalNet (Larsson, Maire, Shakhnarovich 2017, arXiv 1605.07648): great depth without residual connections.

The expansion rule, with conv = 3x3 convolution, BN, ReLU:

    f_1(z) = conv(z)        f_{C+1}(z) = (f_C o f_C)(z)  join  conv(z)

A join is the element-wise mean of its inputs, and joins that touch are one. Written out, a block of C columns has
2^(C-1) rows; column k has 2^(k-1) convolutions, each as long as 2^(C-k) rows, and the columns whose convolutions end in
a row join there. At the end of a block every column is max-pooled on its own, then the last join averages all of them.

Sites. Between the convolution and its BN, as in the authors' Caffe files, for dropout: group = number of the block.
And one `JoinSite` for the whole network (group 0), where drop-path says which inputs the joins average.

Parameters. The rule gives Fractal-20 33.7 M weights in convolutions with channels 64, 128, 256, 512, 512; the paper
prints 38.6 M. The difference is unexplained: the same rule gives the paper's figures for its ultra-deep table (2.1 M
for 3 columns and 4.8 M for 4, channels 16 ... 128). For Fractal-40 the text leaves open which of its
convolutions are 1x1 and how wide the joins are: see FORMS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from dropblock.fractal import JoinSite
from dropblock.sites import Site


@dataclass(frozen=True)
class Form:
    """One published form, everything in units of the first block.

    Args:
        channels: channels of the joins, block by block.
        widths: widths of the columns relative to the joins, from the shallowest.
        kernels: kernel sides of the convolutions in each column.
    """

    channels: tuple[float, ...]
    widths: tuple[float, ...]
    kernels: tuple[int, ...]

    @property
    def projects(self) -> bool:
        """Columns of another width than the join come to it through a linear 1x1 convolution, then all do."""
        return any(width != 1 for width in self.widths)


FORMS: dict[str, Form] = {
    "fractalnet20": Form((1, 2, 4, 8, 8), widths=(1, 1, 1), kernels=(3, 3, 3)),
    # The paper: column widths 128, 64, 32, 16, doubling per block but the last; a mix of 1x1 and 3x3; linear
    # projections before joins; 22.9 M. Not stated, and chosen here because the count then is 22.9 M: joins as wide as
    # Fractal-20's, 1x1 in the two wide columns, 3x3 in the two narrow ones.
    "fractalnet40": Form((1, 2, 4, 8, 8), widths=(2, 1, 0.5, 0.25), kernels=(1, 1, 3, 3)),
    # ImageNet: first and last layer of ResNet-34, four blocks of channels 128 ... 1024.
    "fractalnet34": Form((2, 4, 8, 16), widths=(1, 1, 1, 1), kernels=(3, 3, 3, 3)),
}


class FractalConv(nn.Module):
    """Convolution, site (dropout in the paper), BN, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, group: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.site = Site(group, "conv", "conv")
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.site(self.conv(x))))


def joining_columns(columns: int) -> list[tuple[int, ...]]:
    """For every row of a block, the columns (from 1, the shallowest) whose convolution ends there."""
    rows = 2 ** (columns - 1)
    return [tuple(k for k in range(1, columns + 1) if row % 2 ** (columns - k) == 0) for row in range(1, rows + 1)]


class FractalBlock(nn.Module):
    """One block: all columns from one input, joined row by row, pooled before the last join.

    Args:
        in_channels, channels: channels of its input, and of its joins.
        form: says how many columns, how wide they are, and their kernels.
        group: the number of the block.
    """

    def __init__(self, in_channels: int, channels: int, form: Form, group: int) -> None:
        super().__init__()
        self.ends = joining_columns(len(form.widths))
        widths = [max(1, round(channels * width)) for width in form.widths]
        # Each column whose convolution ends in a row gets a step; after a join it goes on with the join's width.
        arriving = [in_channels] * len(widths)
        columns: list[list[nn.Module]] = [[] for _ in widths]
        for row, ended in enumerate(self.ends):
            for k in (column - 1 for column in ended):
                step: list[nn.Module] = [FractalConv(arriving[k], widths[k], form.kernels[k], group)]
                arriving[k] = widths[k]
                if row == len(self.ends) - 1:
                    step.append(nn.MaxPool2d(2))
                if len(ended) > 1 and form.projects:
                    step.append(nn.Conv2d(widths[k], channels, 1, bias=False))
                if len(ended) > 1:
                    arriving[k] = channels
                columns[k].append(nn.Sequential(*step))
        self.columns = nn.ModuleList(nn.Sequential(*steps) for steps in columns)

    def forward(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        """`weights`: for every join of the block in order, (its inputs,) numbers, all 1 for a plain mean."""
        # `at` is what each column holds; those that ended in a row go on with the mean of their join.
        at = [x] * len(self.columns)
        steps = [iter(column.children()) for column in self.columns]
        joins = iter(weights)
        for ended in self.ends:
            for k in (column - 1 for column in ended):
                at[k] = next(steps[k])(at[k])
            if len(ended) > 1:
                joined = mean([at[k - 1] for k in ended], next(joins))
                for k in ended:
                    at[k - 1] = joined
        return at[0]


def mean(inputs: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The join: the mean of its inputs, each times its weight."""
    total = inputs[0] * weights[0]
    for x, weight in zip(inputs[1:], weights[1:], strict=True):
        total = total + x * weight
    return total / len(inputs)


class FractalNet(nn.Module):
    """FractalNet in one of its FORMS.

    Args:
        form: blocks and columns.
        num_classes: outputs of the classifier.
        in_channels: channels of the images.
        width: channels of the first block of Fractal-20 (64 in the paper); all else is in proportion.
        stem: `small` (none, the blocks see the image: the form for CIFAR) or `imagenet` (ResNet's 7x7 stride 2 and
            max-pool, the form for 224 pixels).

    Input (N, in_channels, H, W), output logits (N, num_classes). Every block halves the maps: five blocks need 32
    pixels. `column(k)` is the network that column k makes alone, on the same parameters.
    """

    def __init__(
        self, form: Form, num_classes: int, in_channels: int = 3, width: int = 64, stem: str = "imagenet"
    ) -> None:
        super().__init__()
        if stem not in ("imagenet", "small"):
            raise ValueError(f"unknown stem '{stem}', choose one of imagenet, small")
        self.num_classes, self.last_group, self.depth = num_classes, len(form.channels), len(form.widths)
        self.stem: nn.Module = nn.Identity()
        if stem == "imagenet":
            conv = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
            self.stem = nn.Sequential(
                conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1)
            )
        channels = [in_channels if stem == "small" else width, *(round(width * c) for c in form.channels)]
        self.blocks = nn.ModuleList(
            FractalBlock(channels[b], channels[b + 1], form, group=b + 1) for b in range(len(form.channels))
        )
        joins = [ended for ended in joining_columns(self.depth) if len(ended) > 1]
        self.joins = JoinSite(joins * len(self.blocks))
        self.fc = nn.Linear(channels[-1], num_classes)
        initialise(self)

    def features(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) images -> (N, C, h, w), what the last join gives, before pooling."""
        sizes = [len(columns) for columns in self.joins.joins]
        weights = list(self.joins(x.new_ones(1, sum(sizes), 1, 1)).flatten().split(sizes))
        x = self.stem(x)
        per_block = len(weights) // len(self.blocks)
        for b, block in enumerate(self.blocks):
            x = block(x, weights[b * per_block : (b + 1) * per_block])
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))

    def column(self, k: int) -> nn.Sequential:
        """Column k alone (1 is the shallowest, `depth` the deepest): a plain network on the parameters of this one.

        Raises:
            ValueError: if there is no such column.
        """
        if not 1 <= k <= self.depth:
            raise ValueError(f"column must lie in 1 ... {self.depth}, not {k}")
        stacks = [block.get_submodule(f"columns.{k - 1}") for block in self.blocks]
        alone = nn.Sequential(self.stem, *stacks, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), self.fc)
        return alone.train(self.training)


def initialise(model: nn.Module) -> None:
    """Caffe's "xavier" for every weight: uniform of variance 1 / fan-in; biases 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
