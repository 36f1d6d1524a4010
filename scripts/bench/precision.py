"""A training step of ResNet-18 on small images in bfloat16: this project's autocast and torch's, beside float32."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from engine.precision import autocast
from models import build_model
from scripts.bench.rounds import add_clock, interleaved, interval_of_median, ratios, spread, surroundings

CPU = torch.device("cpu")
FLOAT32, OURS, TORCHS = "float32", "bfloat16, this project", "bfloat16, torch alone"
CONTESTANTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    FLOAT32: lambda: autocast(CPU, "float32"),
    OURS: lambda: autocast(CPU, "bfloat16"),
    TORCHS: lambda: torch.autocast("cpu", torch.bfloat16),
}
WIDTH, SIDE = 16, 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=15, help="rounds that count (default %(default)s)")
    parser.add_argument("--batch", type=int, default=64)
    add_clock(parser)


def training_step(mixed: Callable[[], AbstractContextManager[Any]], batch: int) -> Callable[[], object]:
    """Forward and backward of one batch; the network and the images are the same for all."""
    torch.manual_seed(0)
    model = build_model("resnet18", num_classes=10, width=WIDTH, stem="small").to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,))

    def step() -> None:
        with mixed():
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        model.zero_grad()

    return step


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Whole steps in interleaved rounds."""
    before = surroundings("cpu")
    runs = {name: training_step(mixed, arguments.batch) for name, mixed in CONTESTANTS.items()}
    times, shares = interleaved(runs, arguments.rounds, 0.0, "cpu", by=arguments.clock)
    rows = []
    for name in runs:
        to_float32 = ratios(times, name, FLOAT32)
        row = {"name": name, "milliseconds": spread([1000 * seconds for seconds in times[name]])}
        rows.append(row | {"to_float32": {**spread(to_float32), "interval": interval_of_median(to_float32)}})
    return {
        "kind": "precision",
        "batch": arguments.batch,
        "rounds": arguments.rounds,
        "clock": arguments.clock,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "share_of_others": shares,
        "before": before,
        "after": surroundings("cpu"),
        "rows": rows,
    }


def markdown(result: dict[str, Any]) -> str:
    """One row a contestant."""
    before = result["before"]
    lines = [
        f"# A training step in bfloat16 on a CPU with {result['instructions']}",
        "",
        f"ResNet-18 of width {WIDTH}, {SIDE} px, batch {result['batch']}, channels_last, torch {before['torch']}, "
        f"threads: {before['threads']}, {result['rounds']} interleaved rounds by {result['clock']} time; median "
        "[quartiles], ratio within a round [95 % interval of the median].",
        "",
        "| type | ms | x float32 |",
        "|---" * 3 + "|",
    ]
    for row in result["rows"]:
        time = "{median:.0f} [{quarter:.0f}, {three_quarters:.0f}]".format(**row["milliseconds"])
        low, high = row["to_float32"]["interval"]
        ratio = f"{row['to_float32']['median']:.2f} [{low:.2f}, {high:.2f}]"
        lines.append(f"| {row['name']} | {time} | {'' if row['name'] == FLOAT32 else ratio} |")
    return "\n".join(lines)
