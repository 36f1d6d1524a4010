"""The sampling rules of public DropBlock implementations: each in closed form, and as code that draws by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from dropblock import expected_drop
from dropblock.reference import drop_block_reference
from scripts.bench.op import OURS


@dataclass(frozen=True)
class Rule:
    """A sampling rule, and who has it.

    Args:
        name: name of the rule.
        libraries: whose DropBlock samples like this, with the version or file that was read.
        sources: where it stands.
        closed_form: (asked drop rate, block, side) -> share of dropped units.
        simulate: (asked drop rate, block, feature maps (N, C, side, side)) -> output, zeros where dropped.
        measured: names in `contestants` of libraries that can be run here.
    """

    name: str
    libraries: str
    sources: tuple[str, ...]
    closed_form: Callable[[float, int, int], float]
    simulate: Callable[[float, int, Tensor], Tensor]
    measured: dict[str, str] = field(default_factory=dict)


def paper(asked: float, block: int, side: int) -> float:
    return expected_drop(1.0 - asked, block, side, side)


def paper_output(asked: float, block: int, x: Tensor) -> Tensor:
    return drop_block_reference(x, keep_prob=1.0 - asked, block_size=block)[0]


def corrected(asked: float, block: int, side: int) -> float:
    """The paper's gamma: with the factor for seeds that are allowed only where a whole block fits."""
    return asked / block**2 * side**2 / (side - block + 1) ** 2


def plain(asked: float, block: int, side: int) -> float:
    return asked / block**2


def divided_twice(asked: float, block: int, side: int) -> float:
    return asked / block**4


def seeds_everywhere(gamma: Callable[[float, int, int], float]) -> Callable[[float, int, int], float]:
    """The closed form for seeds at every position, whose blocks are cut off at the border."""

    def closed_form(asked: float, block: int, side: int) -> float:
        half = block // 2
        covering = Counter(min(i + half, side - 1) - max(0, i - half) + 1 for i in range(side))
        kept = sum(
            units * others * (1.0 - gamma(asked, block, side)) ** (rows * columns)
            for rows, units in covering.items()
            for columns, others in covering.items()
        )
        return 1.0 - kept / side**2

    return closed_form


def seeds_everywhere_output(gamma: Callable[[float, int, int], float]) -> Callable[[float, int, Tensor], Tensor]:
    def simulate(asked: float, block: int, x: Tensor) -> Tensor:
        seeds = (torch.rand_like(x) < gamma(asked, block, x.shape[-1])).float()
        return x * (1.0 - F.max_pool2d(seeds, block, stride=1, padding=block // 2))

    return simulate


def one_block(asked: float, block: int, side: int) -> float:
    """At most one block a channel: the seed with the lowest draw, if any of them fires."""
    return (1.0 - (1.0 - plain(asked, block, side)) ** (side**2)) * block**2 / side**2


def one_block_output(asked: float, block: int, x: Tensor) -> Tensor:
    """darknet's placement: a corner beyond the last valid one is moved back by the number of valid ones less one."""
    side = x.shape[-1]
    lowest, position = torch.rand_like(x).flatten(2).min(-1)
    last = side - block
    corners = [torch.where(at > last, at - last, at).clamp(0, last) for at in (position // side, position % side)]
    axis = torch.arange(side)
    inside = [(axis >= at[..., None]) & (axis < at[..., None] + block) for at in corners]
    dropped = inside[0][..., :, None] & inside[1][..., None, :] & (lowest < plain(asked, block, side))[..., None, None]
    return x.masked_fill(dropped, 0)


RULES = (
    Rule(
        "the paper's",
        "this project, torchvision, mmdetection",
        (
            "Ghiasi, Lin, Le 2018, arXiv 1810.12890, Algorithm 1 and equation 1",
            "torchvision 0.29.2, ops/drop_block.py",
            "open-mmlab/mmdetection, mmdet/models/plugins/dropblock.py",
        ),
        paper,
        paper_output,
        {OURS: "this project", "torchvision": "torchvision"},
    ),
    Rule(
        "p / b², blocks may cross the border",
        "PyPI `dropblock` 0.3.0, Holocron 0.3.0 (function)",
        ("PyPI dropblock 0.3.0, dropblock/dropblock.py", "PyPI pylocron 0.3.0, holocron/nn/functional.py"),
        seeds_everywhere(plain),
        seeds_everywhere_output(plain),
    ),
    Rule(
        "p / b⁴, blocks may cross the border",
        "Holocron 0.3.0 (module: divides by b² before the function does)",
        ("PyPI pylocron 0.3.0, holocron/nn/modules/dropblock.py",),
        seeds_everywhere(divided_twice),
        seeds_everywhere_output(divided_twice),
    ),
    Rule(
        "corrected gamma, blocks may cross the border",
        "timm from 1.0.23 on, PaddleDetection",
        ("timm 1.0.31, layers/drop.py", "PaddlePaddle/PaddleDetection, ppdet/modeling/layers.py"),
        seeds_everywhere(corrected),
        seeds_everywhere_output(corrected),
        {"timm, per channel": "timm"},
    ),
    Rule(
        "one block a channel",
        "darknet (YOLOv4), at the end of its schedule",
        ("AlexeyAB/darknet, src/dropout_layer_kernels.cu",),
        one_block,
        one_block_output,
    ),
)
