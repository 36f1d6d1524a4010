"""The share that each library's DropBlock really drops, by its own sampling rule: asked for 10 % of the units.

    python -m scripts.drop_rates [--out docs/results]

For each rule the closed form, a simulation that confirms it, and the library itself where it is installed, at six sizes
of feature map and block. Writes drop_rates.json, drop_rates.md and drop_rates.png. No timing: any machine gives the
same numbers within the error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scripts.bench.drop_rules import RULES
from scripts.bench.harness import table_of_cells
from scripts.bench.op import contestants
from scripts.entry import guarded, parser_of

ASKED = 0.1
SIZES = ((7, 7), (14, 7), (32, 7), (64, 7), (19, 3), (5, 5))  # side of the feature map, side of the block (all odd)
CHUNK = 2**22  # units drawn at a time


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
    versions = {}
    for package in ("torch", "torchvision", "timm"):
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return {"asked": ASKED, "units": units, "sizes": SIZES, "versions": versions, "rows": rows}


def percent(value: float) -> str:
    """One digit, two below 1 %."""
    return f"{value:.1f}" if value >= 0.95 else f"{value:.2f}"


def markdown(result: dict[str, Any]) -> str:
    """The table: closed forms, and below them the measured shares of the libraries that can be run."""
    lines = []
    for row in result["rows"]:
        cells = [f"{percent(value)} %" for value in row["closed_form"]]
        lines.append([f"**{row['name']}**: {row['libraries']}", *cells])
        for label, values in row["measured"].items():
            name = " ".join(filter(None, (label, result["versions"].get(label))))
            lines.append([f"{name}, measured", *(f"{mean:.2f} ± {error:.2f} %" for mean, error in values)])
    sizes = [f"{side}x{side}, block {block}" for side, block in result["sizes"]]
    return table_of_cells([f"asked: {100 * result['asked']:g} %", *sizes], lines)


def page(result: dict[str, Any]) -> str:
    """The table with its sources and the simulation, as a page."""
    far = max(
        abs(mean - closed) / error
        for row in result["rows"]
        for closed, (mean, error) in zip(row["closed_form"], row["simulated"], strict=True)
    )
    sources = "\n".join(f"* {row['name']}: {'; '.join(row['sources'])}" for row in result["rows"])
    return f"""# What each library's DropBlock drops

p: rate asked; b: block size; seed: where a block starts; gamma: the probability that a position is a seed.

{markdown(result)}

Closed forms from each library's own rule; a simulation of every cell \
({result["units"] / 1e6:.0f} million units) lies within {far:.1f} standard errors of it.
Measured: mean ± standard error over feature maps.

Where each rule was read:

{sources}

![The same as a picture](drop_rates.png)

Made by `python -m scripts.drop_rates`.
"""


def draw(result: dict[str, Any], out: Path) -> None:
    """One panel for each size; a bar for each rule, a line at what was asked."""
    from scripts.reporting.figures import drawing

    colours = ("#1f5fb4", "#e08214", "#a0703c", "#c23b3b", "#7a7a7a")
    names = [row["name"] for row in result["rows"]]
    with drawing(out, len(result["sizes"]), 13, 3.2, share=True) as (_, panels):
        for i, (panel, (side, block)) in enumerate(zip(panels, result["sizes"], strict=True)):
            values = [row["closed_form"][i] for row in result["rows"]]
            places = range(len(names))[::-1]
            panel.barh(places, values, color=colours, height=0.7)
            panel.axvline(100 * result["asked"], color="#222222", linewidth=1, linestyle="--")
            for place, value in zip(places, values, strict=True):
                panel.text(2000, place, percent(value), va="center", ha="right", fontsize=9)
            panel.set_xscale("log")
            panel.set_xlim(0.05, 2000)
            panel.set_xticks([0.1, 1, 10, 100], ["0.1", "1", "10", "100"])
            panel.set_title(f"{side}x{side}, block {block}")
            panel.set_yticks(list(places), names)
            panel.grid(visible=False, axis="y")
        panels[0].set_xlabel("dropped, % (dashed: asked)", loc="left")


@guarded
def main(arguments: list[str]) -> int:
    """Arguments in, exit code out: 0, or 2 with one line."""
    parser = parser_of(__doc__)
    parser.add_argument("--units", type=float, default=5e7, help="units drawn per cell (default %(default).0e)")
    parser.add_argument("--out", type=Path, help="write drop_rates.json, .md and .png here")
    parser.add_argument("--draw", action="store_true", help="only draw and write again what --out holds")
    given = parser.parse_args(arguments)
    if given.draw and given.out is None:
        raise ValueError("--draw draws what --out holds: name it")
    if given.out is not None and not given.draw:
        given.out.mkdir(parents=True, exist_ok=True)  # before anything is measured
    kept = given.out / "drop_rates.json" if given.draw else None
    result = json.loads(kept.read_text()) if kept else json.loads(json.dumps(measure(given.units)))
    print(page(result))
    if given.out is not None:
        (given.out / "drop_rates.json").write_text(json.dumps(result, indent=1) + "\n")
        (given.out / "drop_rates.md").write_text(page(result))
        draw(result, given.out / "drop_rates.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
