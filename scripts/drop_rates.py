"""What each library's DropBlock really drops, by its own sampling rule: asked for 10 % of the units.

    python scripts/drop_rates.py [--out docs/results]

For each rule the closed form, a simulation that confirms it, and the library itself where it is installed, at six sizes
of feature map and block. Writes drop_rates.json, drop_rates.md and drop_rates.png. No timing: any machine gives the
same numbers within the error.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dropblock import expected_drop
from dropblock.reference import drop_block_reference
from scripts.bench.contestants import OURS, contestants

ASKED = 0.1
SIZES = ((7, 7), (14, 7), (32, 7), (64, 7), (19, 3), (5, 5))  # side of the feature map, side of the block (all odd)
CHUNK = 2**22  # units drawn at a time


@dataclass(frozen=True)
class Rule:
    """A sampling rule, and who has it.

    Args:
        name: of the rule.
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
        "p / b², seeds everywhere",
        "PyPI `dropblock` 0.3.0, Holocron 0.3.0 (function)",
        ("PyPI dropblock 0.3.0, dropblock/dropblock.py", "PyPI pylocron 0.3.0, holocron/nn/functional.py"),
        seeds_everywhere(plain),
        seeds_everywhere_output(plain),
    ),
    Rule(
        "p / b⁴, seeds everywhere",
        "Holocron 0.3.0 (module: divides by b² before the function does)",
        ("PyPI pylocron 0.3.0, holocron/nn/modules/dropblock.py",),
        seeds_everywhere(divided_twice),
        seeds_everywhere_output(divided_twice),
    ),
    Rule(
        "corrected gamma, seeds everywhere",
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


@torch.no_grad()
def share_dropped(layer: Callable[[Tensor], Tensor], side: int, units: float) -> tuple[float, float]:
    """The mean share that a layer zeroes and its standard error over feature maps, both in percent."""
    channels = max(1, CHUNK // (64 * side**2))
    x = torch.ones(64, channels, side, side)
    shares = torch.cat([(layer(x) == 0).double().mean((2, 3)).flatten() for _ in range(round(units / x.numel()) or 1)])
    return 100 * shares.mean().item(), (100 * shares.std() / shares.numel() ** 0.5).item()


def measure(units: float) -> dict[str, Any]:
    """Everything this file writes: per rule, in the order of SIZES, percentages."""
    torch.manual_seed(0)
    rows = []
    for rule in RULES:
        row: dict[str, Any] = {"name": rule.name, "libraries": rule.libraries, "sources": rule.sources}
        row["closed_form"] = [100 * rule.closed_form(ASKED, block, side) for side, block in SIZES]
        row["simulated"] = [share_dropped(partial(rule.simulate, ASKED, block), side, units) for side, block in SIZES]
        row["measured"] = {
            label: [share_dropped(contestants(1.0 - ASKED, block, "cpu")[name], side, units) for side, block in SIZES]
            for name, label in rule.measured.items()
            if name in contestants(1.0 - ASKED, 3, "cpu")
        }
        rows.append(row)
    return {"asked": ASKED, "units": units, "sizes": SIZES, "versions": versions(), "rows": rows}


def versions() -> dict[str, str]:
    found = {}
    for package in ("torch", "torchvision", "timm"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def markdown(result: dict[str, Any]) -> str:
    """The table: closed forms, and below them what was measured of the libraries that can be run."""
    sizes = [f"{side}x{side}, block {block}" for side, block in result["sizes"]]
    lines = [
        f"| asked: {100 * result['asked']:g} % | " + " | ".join(sizes) + " |",
        "|---" * (len(sizes) + 1) + "|",
    ]
    for row in result["rows"]:
        cells = [f"{value:.1f} %" if value >= 0.95 else f"{value:.2f} %" for value in row["closed_form"]]
        lines.append(f"| **{row['name']}**: {row['libraries']} | " + " | ".join(cells) + " |")
        for label, values in row["measured"].items():
            name = " ".join(filter(None, (label, result["versions"].get(label))))
            lines.append(f"| {name}, measured | " + " | ".join(f"{m:.2f} ± {e:.2f} %" for m, e in values) + " |")
    return "\n".join(lines)


def page(result: dict[str, Any]) -> str:
    """The table with its sources and the simulation, as a page."""
    far = max(
        abs(mean - closed) / error
        for row in result["rows"]
        for closed, (mean, error) in zip(row["closed_form"], row["simulated"], strict=True)
    )
    sources = [f"* {row['name']}: {'; '.join(row['sources'])}" for row in result["rows"]]
    return "\n".join(
        [
            "# What each library's DropBlock drops\n",
            markdown(result),
            "\nClosed forms from each library's own rule; a simulation of every cell "
            f"({result['units'] / 1e6:.0f} million units) lies within {far:.1f} standard errors of it.\n"
            "Measured: mean ± standard error over feature maps.\n",
            "Where each rule was read:\n",
            *sources,
            "\n![The same as a picture](drop_rates.png)\n",
            "Made by `python scripts/drop_rates.py`.\n",
        ]
    )


def draw(result: dict[str, Any], out: Path) -> None:
    """One panel for each size; a bar for each rule, a line at what was asked."""
    from scripts.reporting.style import drawing

    colours = ("#1f5fb4", "#e08214", "#a0703c", "#c23b3b", "#7a7a7a")
    names = [row["name"] for row in result["rows"]]
    with drawing(out, len(result["sizes"]), 13, 3.2, share=True) as (_, panels):
        for i, (panel, (side, block)) in enumerate(zip(panels, result["sizes"], strict=True)):
            values = [row["closed_form"][i] for row in result["rows"]]
            places = range(len(names))[::-1]
            panel.barh(places, values, color=colours, height=0.7)
            panel.axvline(100 * result["asked"], color="#222222", linewidth=1, linestyle="--")
            for place, value in zip(places, values, strict=True):
                shown = f"{value:.1f}" if value >= 0.95 else f"{value:.2f}"
                panel.text(2000, place, shown, va="center", ha="right", fontsize=9)
            panel.set_xscale("log")
            panel.set_xlim(0.05, 2000)
            panel.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
            panel.set_title(f"{side}x{side}, block {block}")
            panel.set_yticks(list(places), names)
            panel.grid(visible=False, axis="y")
        panels[0].set_xlabel("dropped, % (dashed: asked)", loc="left")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--units", type=float, default=5e7, help="units drawn per cell (default %(default).0e)")
    parser.add_argument("--out", type=Path, help="write drop_rates.json, .md and .png here")
    parser.add_argument("--draw", action="store_true", help="only draw and write again what --out holds")
    arguments = parser.parse_args()
    kept = arguments.out / "drop_rates.json" if arguments.draw else None
    result = json.loads(kept.read_text()) if kept else json.loads(json.dumps(measure(arguments.units)))
    print(page(result))
    if arguments.out is not None:
        (arguments.out / "drop_rates.json").write_text(json.dumps(result, indent=1) + "\n")
        (arguments.out / "drop_rates.md").write_text(page(result))
        draw(result, arguments.out / "drop_rates.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
