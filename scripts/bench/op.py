"""The operator alone: forward and backward against the memory-bandwidth bound and against what people use."""

from __future__ import annotations

import argparse
import itertools
from statistics import geometric_mean
from typing import Any

import torch

from dropblock import expected_drop
from scripts.bench.contestants import DROPOUT, FLOOR, OURS, contestants, forward_and_backward, measured_drop
from scripts.bench.rounds import add_device, add_patience, interleaved, ratios, spread, surroundings

BLOCK = 7
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# (samples, channels, height, width), keep_prob: group 3 and group 4 of ResNet-50 at the paper's rates, CIFAR maps at .9
RESNET = [((32, 256, 14, 14), 0.975), ((32, 1024, 14, 14), 0.975), ((32, 512, 7, 7), 0.9), ((32, 2048, 7, 7), 0.9)]
CIFAR = [((128, 256, 16, 16), 0.9), ((128, 128, 32, 32), 0.9)]
LARGE = [((256, 256, 14, 14), 0.975), ((256, 1024, 14, 14), 0.975), ((256, 512, 7, 7), 0.9), ((256, 2048, 7, 7), 0.9)]
FAMILIES = {"resnet": "ResNet-50 maps", "cifar": "CIFAR maps"}
SHAPES = {"cpu": {"resnet": RESNET, "cifar": CIFAR}, "cuda": {"resnet": LARGE, "cifar": CIFAR}}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count (default %(default)s)")
    parser.add_argument("--least-ms", type=float, default=30.0, help="shortest measurement (default %(default)s)")
    parser.add_argument("--family", choices=["resnet", "cifar"], help="shapes of one family only")
    add_device(parser)
    add_patience(parser, "a shape")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Every shape, type and layout: one row for each contestant."""
    device, rows = arguments.device, []
    before = surroundings(device)
    for family, shapes in SHAPES[device].items():
        if arguments.family in (None, family):
            for (shape, keep_prob), dtype, layout in itertools.product(shapes, TYPES, LAYOUTS):
                rows += cell(arguments, family, shape, keep_prob, dtype, layout)
                ours = next(row for row in rows[-len(contestants(keep_prob, BLOCK, device)) :] if row["name"] == OURS)
                print(
                    f"{ours['shape']} {dtype} {layout}: {ours['to_floor']['median']:.2f} x the floor, "
                    f"torchvision / this {ours['torchvision_to_this']['median']:.1f}",
                    flush=True,
                )
    return {"kind": "op", "before": before, "after": surroundings(device), "rounds": arguments.rounds, "rows": rows}


def cell(
    arguments: argparse.Namespace, family: str, shape: tuple[int, ...], keep_prob: float, dtype: str, layout: str
) -> list[dict[str, Any]]:
    device = arguments.device
    torch.manual_seed(0)
    x = torch.randn(shape, device=device).to(TYPES[dtype]).contiguous(memory_format=LAYOUTS[layout])
    gradient = torch.randn_like(x)
    x.requires_grad_()
    layers = contestants(keep_prob, BLOCK, device)
    runs = {name: forward_and_backward(layer, x, gradient) for name, layer in layers.items()}
    times, shares = interleaved(runs, arguments.rounds, arguments.least_ms / 1000, device, arguments.patience)
    rows = []
    for name, layer in layers.items():
        row: dict[str, Any] = {
            "name": name,
            "family": family,
            "shape": "x".join(map(str, shape)),
            "dtype": dtype,
            "layout": layout,
            "keep_prob": keep_prob,
            "milliseconds": spread([1000 * seconds for seconds in times[name]]),
            "to_floor": spread(ratios(times, name, FLOOR)),
            "expected_drop": 1 - keep_prob if name == DROPOUT else expected_drop(keep_prob, BLOCK, *shape[2:]),
            "share_of_others": max(shares),
            "measured_drop": None if name == FLOOR else measured_drop(layer, shape, device),
        }
        if name == OURS:
            row["torchvision_to_this"] = spread(ratios(times, "torchvision", name))
        rows.append(row)
    return rows


def summary(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One line for each family of shapes, type and contestant: geometric means over shapes and layouts."""
    keys = dict.fromkeys((row["family"], row["dtype"], row["name"]) for row in result["rows"])
    lines = []
    for family, dtype, name in keys:
        rows = [row for row in result["rows"] if (row["family"], row["dtype"], row["name"]) == (family, dtype, name)]
        line = {"family": family, "dtype": dtype, "name": name, "cells": len(rows)}
        line["to_floor"] = geometric_mean([row["to_floor"]["median"] for row in rows])
        if name == OURS:
            faster = [row["torchvision_to_this"]["median"] for row in rows]
            line |= {"torchvision_to_this": geometric_mean(faster), "worst_cell": min(faster)}
        lines.append(line)
    return lines


def short(result: dict[str, Any]) -> str:
    """Each contestant's time as a multiple of the memory-bandwidth bound, by family of shapes and type."""
    cells = {(line["name"], line["family"], line["dtype"]): line for line in summary(result)}
    columns = list(dict.fromkeys((family, dtype) for _, family, dtype in cells))
    heads = [f"{FAMILIES.get(family, family)}, {dtype}" for family, dtype in columns]
    lines = [f"| forward + backward, x * scalar = 1 | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name in dict.fromkeys(name for name, _, _ in cells):
        if name != FLOOR:
            slower = [cells[name, *column]["to_floor"] for column in columns]
            lines.append(f"| {name} | {' | '.join(f'{ratio:.1f}' for ratio in slower)} |")
    faster = [f"{cells[OURS, *column]['torchvision_to_this']:.0f}" for column in columns]
    return "\n".join([*lines, f"| torchvision / this | {' | '.join(faster)} |"])


def markdown(result: dict[str, Any]) -> str:
    """The measured table, and its short form above it."""
    worst = min(line["worst_cell"] for line in summary(result) if line["name"] == OURS)
    lines = [
        "# Speed of the operator",
        "",
        "Forward and backward of one call on each shape, type and layout (`python scripts/benchmark.py op`).",
        "",
        short(result),
        "",
        f"In its worst cell this is {worst:.1f} times as fast as torchvision. *x the bound*: time as a multiple of "
        "`x * scalar`, the memory-bandwidth bound; *got*: the share dropped.",
    ]
    lines += [
        "",
        "| shape, keep_prob | type, layout | operator | ms, median [quartiles] | x the bound | expected drop | got |",
        "|---" * 7 + "|",
    ]
    for row in result["rows"]:
        time = "{median:.2f} [{quarter:.2f}, {three_quarters:.2f}]".format(**row["milliseconds"])
        got = "" if row["measured_drop"] is None else f"{100 * row['measured_drop']:.2f} %"
        lines.append(
            f"| {row['shape']}, {row['keep_prob']} | {row['dtype']}, {row['layout']} | {row['name']} | {time} "
            f"| {row['to_floor']['median']:.2f} | {100 * row['expected_drop']:.2f} % | {got} |"
        )
    disturbed = max(row["share_of_others"] for row in result["rows"])
    lines += ["", f"In no counted round did other processes take more than {100 * disturbed:.0f} % of the processors."]
    return "\n".join(lines)
