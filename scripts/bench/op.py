"""The operator alone: forward and backward against the memory-bandwidth bound and against what people use."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
from collections.abc import Callable
from statistics import geometric_mean
from typing import Any

import torch
from torch import Tensor, nn

from dropblock import drop_block2d, expected_drop
from dropblock.operator import backend_for
from scripts.bench import harness
from scripts.bench.harness import Row, quartiles, table, table_of_cells

FLOOR, DROPOUT = "x * scalar", "nn.Dropout"
OURS = "dropblock (this)"
BLOCK = 7
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# (samples, channels, height, width), keep_prob: group 3 and group 4 of ResNet-50 at the paper's rates, CIFAR maps at .9
RESNET = [((32, 256, 14, 14), 0.975), ((32, 1024, 14, 14), 0.975), ((32, 512, 7, 7), 0.9), ((32, 2048, 7, 7), 0.9)]
CIFAR = [((128, 256, 16, 16), 0.9), ((128, 128, 32, 32), 0.9)]
LARGE = [((256, 256, 14, 14), 0.975), ((256, 1024, 14, 14), 0.975), ((256, 512, 7, 7), 0.9), ((256, 2048, 7, 7), 0.9)]
FAMILIES = {"resnet": "ResNet-50 maps", "cifar": "CIFAR maps"}
SHAPES = {"cpu": {"resnet": RESNET, "cifar": CIFAR}, "cuda": {"resnet": LARGE, "cifar": CIFAR}}

Layer = Callable[[Tensor], Tensor]


def contestants(keep_prob: float, block_size: int, device: str) -> dict[str, Layer]:
    """DropBlock as people use it, beside ours, as functions of one tensor, by name."""
    from torchvision.ops import drop_block2d as torchvisions

    kept = torch.tensor(keep_prob, device=device)
    layers: dict[str, Layer] = {
        # The memory-bandwidth bound: it reads x once and writes y once, as all must.
        FLOOR: lambda x: x * 1.11,
        OURS: lambda x: drop_block2d(x, keep_prob=kept, block_size=block_size),
        "torchvision": lambda x: torchvisions(x, 1.0 - keep_prob, block_size),
        DROPOUT: nn.Dropout(1.0 - keep_prob),
    }
    if importlib.util.find_spec("timm"):
        from timm.layers.drop import DropBlock2d

        # With a mask for every channel, as in the paper; by default timm shares one.
        layers["timm, per channel"] = DropBlock2d(1.0 - keep_prob, block_size, couple_channels=False)
    return layers


def forward_and_backward(layer: Layer, x: Tensor, gradient: Tensor) -> Callable[[], object]:
    """One call: forward, then the gradient of the input."""
    return lambda: torch.autograd.grad(layer(x), x, gradient)


@torch.no_grad()
def measured_drop(layer: Layer, shape: tuple[int, ...], device: str, units: float = 4e6) -> float:
    """The share of ones that a layer zeroes, over at least this many units."""
    x = torch.ones(shape, device=device)
    calls = max(1, round(units / x.numel()))
    return sum(float((layer(x) == 0).float().mean()) for _ in range(calls)) / calls


def add_arguments(parser: argparse.ArgumentParser) -> None:
    harness.add_options(parser, "device", "patience", rounds=9, patience_of="a shape")
    parser.add_argument("--least-ms", type=float, default=30.0, help="shortest measurement (default %(default)s)")
    parser.add_argument("--family", choices=["resnet", "cifar"], help="shapes of one family only")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every shape, type and layout: one row for each contestant."""
    rows = []
    for family, shapes in SHAPES[arguments.device].items():
        if arguments.family in (None, family):
            for (shape, keep_prob), dtype, layout in itertools.product(shapes, TYPES, LAYOUTS):
                found = cell(arguments, family, shape, keep_prob, dtype, layout)
                ours = next(row for row in found if row["name"] == OURS)
                print(
                    f"{ours['shape']} {dtype} {layout}: {ours['to_floor']['median']:.2f} x the floor, "
                    f"torchvision / this {ours['torchvision_to_this']['median']:.1f}",
                    flush=True,
                )
                rows += found
    return {"kind": "op", "rows": rows}


def cell(
    arguments: argparse.Namespace, family: str, shape: tuple[int, ...], keep_prob: float, dtype: str, layout: str
) -> list[Row]:
    """The rows of one shape, type and layout."""
    device = arguments.device
    torch.manual_seed(0)
    x = torch.randn(shape, device=device).to(TYPES[dtype]).contiguous(memory_format=LAYOUTS[layout])
    gradient = torch.randn_like(x)
    x.requires_grad_()
    layers = contestants(keep_prob, BLOCK, device)
    runs = {name: forward_and_backward(layer, x, gradient) for name, layer in layers.items()}
    rows, times, shares = harness.compare(runs, arguments, {"to_floor": FLOOR}, arguments.least_ms / 1000)
    for row in rows:
        name = row["name"]
        row |= {
            "family": family,
            "shape": "x".join(map(str, shape)),
            "dtype": dtype,
            "layout": layout,
            "keep_prob": keep_prob,
            "expected_drop": 1 - keep_prob if name == DROPOUT else expected_drop(keep_prob, BLOCK, *shape[2:]),
            "share_of_others": max(shares),
            "measured_drop": None if name == FLOOR else measured_drop(layers[name], shape, device),
        }
        if name == OURS:
            row["backend"] = backend_for(x).name
            row["torchvision_to_this"] = harness.spread(harness.ratios(times, "torchvision", name))
    return rows


def named(row: Row) -> str:
    """The contestant, with the backend that ran where it is ours; older results do not say."""
    return f"{row['name']}, {row['backend']}" if "backend" in row else row["name"]


def short(result: dict[str, Any]) -> str:
    """Each contestant's time as a multiple of the memory-bandwidth bound, by family of shapes and type."""
    groups: dict[str, dict[tuple[str, str], list[Row]]] = {}
    for row in result["rows"]:
        groups.setdefault(row["name"], {}).setdefault((row["family"], row["dtype"]), []).append(row)

    def means(name: str, ratio: str, digits: int) -> list[str]:
        """Geometric means over shapes and layouts, one for each family and type."""
        return [f"{geometric_mean([row[ratio]['median'] for row in of]):.{digits}f}" for of in groups[name].values()]

    lines = [[name, *means(name, "to_floor", 1)] for name in groups if name != FLOOR]
    lines.append(["torchvision / this", *means(OURS, "torchvision_to_this", 0)])
    heads = [f"{FAMILIES.get(family, family)}, {dtype}" for family, dtype in groups[OURS]]
    return table_of_cells(["forward + backward, x * scalar = 1", *heads], lines)


def markdown(result: dict[str, Any]) -> str:
    """The measured table, and its short form above it."""
    rows = result["rows"]
    worst = min(row["torchvision_to_this"]["median"] for row in rows if row["name"] == OURS)
    columns: dict[str, Callable[[Row], object]] = {
        "shape, keep_prob": lambda row: f"{row['shape']}, {row['keep_prob']}",
        "type, layout": lambda row: f"{row['dtype']}, {row['layout']}",
        "operator": named,
        "ms, median [quartiles]": lambda row: quartiles(row["milliseconds"], ".2f"),
        "x the bound": lambda row: f"{row['to_floor']['median']:.2f}",
        "expected drop": lambda row: f"{100 * row['expected_drop']:.2f} %",
        "got": lambda row: "" if row["measured_drop"] is None else f"{100 * row['measured_drop']:.2f} %",
    }
    disturbed = max(row["share_of_others"] for row in rows)
    return f"""# Speed of the operator

Forward and backward of one call on each shape, type and layout (`python -m scripts.benchmark op`).

{short(result)}

In its worst cell this is {worst:.1f} times as fast as torchvision. *x the bound*: time as a multiple of \
`x * scalar`, the memory-bandwidth bound; *got*: the share dropped.

{table(columns, rows)}

In no counted round did other processes take more than {100 * disturbed:.0f} % of the processors."""
