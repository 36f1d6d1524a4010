"""What DropBlock layers really drop: ours, torchvision's and timm's, each asked for the same.

    python scripts/drop_rates.py [--json docs/results/drop_rates.json]

Per map size the mean share of dropped units with its standard error over maps, beside the paper's law in closed form.
No timing: any machine gives the same numbers within the error.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dropblock import expected_drop
from engine.console import table
from scripts.bench.contestants import OURS, contestants

KEEP_PROB, BLOCK, SIDES = 0.9, 7, (7, 14, 32)
NAMES = {OURS: "this project", "torchvision": "torchvision", "timm, per channel": "timm"}


@torch.no_grad()
def measure(maps: int) -> dict[str, Any]:
    """The share dropped by everybody, in percent: {side: {name: [mean, standard error]}}, and the closed form."""
    torch.manual_seed(0)
    result: dict[str, Any] = {"keep_prob": KEEP_PROB, "block_size": BLOCK, "maps": maps, "versions": {}, "sides": {}}
    for package in ("torch", "torchvision", "timm"):
        try:
            result["versions"][package] = version(package)
        except PackageNotFoundError:
            continue
    for side in SIDES:
        x = torch.ones(maps // 256, 256, side, side)
        row: dict[str, Any] = {"closed form": 100 * expected_drop(KEEP_PROB, BLOCK, side, side)}
        for name, layer in contestants(KEEP_PROB, BLOCK, "cpu").items():
            if name in NAMES:
                share = 100 * (layer(x) == 0).double().mean((2, 3))
                row[NAMES[name]] = [share.mean().item(), (share.std() / share.numel() ** 0.5).item()]
        result["sides"][str(side)] = row
    return result


def markdown(result: dict[str, Any]) -> str:
    """The table of the README."""
    sides = result["sides"]
    asked = f"asked: keep_prob {result['keep_prob']:g}, block {result['block_size']}"
    lines = [
        "| ".join(["", f"{asked} ", *(f"{side}x{side} map " for side in sides), ""]).strip(),
        "|---" * (len(sides) + 1) + "|",
        "| the paper's law, closed form | "
        + " | ".join(f"{row['closed form']:.1f} %" for row in sides.values())
        + " |",
    ]
    for name in NAMES.values():
        if all(name in row for row in sides.values()):
            label = " ".join(filter(None, (name, result["versions"].get(name))))
            cells = (f"{row[name][0]:.1f} ± {row[name][1]:.1f} %" for row in sides.values())
            lines.append(f"| {label}, measured | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=262_144, help="maps per size (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write the numbers here")
    arguments = parser.parse_args()
    result = measure(arguments.maps)
    rows = [
        (
            f"{side}x{side}",
            name,
            f"{value[0]:.2f}" if isinstance(value, list) else f"{value:.2f}",
            f"{value[1]:.2f}" if isinstance(value, list) else "",
        )
        for side, row in result["sides"].items()
        for name, value in row.items()
    ]
    print(table(("map", "who", "dropped, %", "error"), rows))
    print(f"\n{markdown(result)}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
