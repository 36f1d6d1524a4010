"""The Triton kernels compiled for GPUs that need not be there: registers, instructions, a prediction of their speed.

The prediction counts bytes and instructions, and nothing else: memory at 90 % of its nominal rate, multiprocessors that
issue four instructions of a warp a cycle, double precision at its own rate, no latency. It is to be compared with what
`python -m scripts.benchmark op --device cuda` measures.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dropblock.rates import effective_block, seed_rate
from scripts.bench.harness import Row, table

# Architecture, GB/s, multiprocessors, GHz, cycles of a multiprocessor for a double-precision instruction of a warp;
# nominal figures of the data sheets of H200, A10 and RTX 4090.
GPUS = {"H200": (90, 4800, 132, 1.98, 0.5), "A10": (86, 600, 72, 1.695, 16.0), "RTX 4090": (89, 1008, 128, 2.52, 16.0)}
MEMORY, ISSUED, WARPS = 0.9, 4, 4
# (samples, channels, height, width), keep_prob: the paper's sites in ResNet-50, in bfloat16 with channels last.
SHAPES = [((256, 1024, 14, 14), 0.975), ((256, 2048, 14, 14), 0.9), ((256, 512, 7, 7), 0.9), ((256, 2048, 7, 7), 0.9)]
BLOCK, TILE = 7, 1 << 11
TYPES = {"bits_ptr": "*u8", "keep_prob_ptr": "*fp32", "x_ptr": "*bf16", "y_ptr": "*bf16"}
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*)$")
DOUBLE = ("DADD", "DMUL", "DFMA", "DSETP")


def compiled(kernel: Any, architecture: int, **constants: Any) -> Any:
    """A kernel for an architecture; all pointers and sizes divisible by 16, as large maps have them."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    constants = {name: value for name, value in constants.items() if name in names}
    types = {n: "constexpr" if n in constants else TYPES.get(n, "*i64" if n.endswith("ptr") else "i32") for n in names}
    attributes = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n not in constants}
    source = ASTSource(kernel, types, {(names.index(k),): value for k, value in constants.items()}, attributes)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32))


def counts(kernel: Any, architecture: int, **constants: Any) -> dict[str, int]:
    """Registers, bytes of stack, instructions, those of its longest loop, and of both those in double precision."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled(kernel, architecture, **constants).asm["cubin"])
        file.flush()
        used = subprocess.run([tools / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True).stdout
        listing = subprocess.run([tools / "nvdisasm", "-c", file.name], capture_output=True, text=True).stdout

    # A loop ends with a branch back to a label; the one to itself behind the last instruction is padding.
    found: list[str] = []
    labels: dict[str, int] = {}
    loop = slice(0, 0)
    for line in listing.splitlines():
        if label := re.match(r"\.(L_x_\d+):", line):
            labels[label[1]] = len(found)
        elif instruction := INSTRUCTION.match(line):
            found.append(instruction[1].partition(".")[0])
            back = re.search(r"\.(L_x_\d+)", instruction[2]) if found[-1] == "BRA" else None
            begin = labels.get(back[1], len(found)) if back else len(found)
            if len(found) - begin > max(loop.stop - loop.start, 1):
                loop = slice(begin, len(found))
    registers, stack = map(int, re.findall(r"REG:(\d+) STACK:(\d+)", used)[0])
    double = [name in DOUBLE for name in found]
    numbers = {"instructions": len(found), "loop": len(found[loop])}
    return {"registers": registers, "stack": stack, **numbers, "double": sum(double), "double_loop": sum(double[loop])}


def draw_constants(height: int, width: int) -> dict[str, int]:
    """The constants that a large batch of such maps is drawn with, channels last."""
    b_h, b_w = effective_block(BLOCK, height, width)
    pitch = math.ceil(width / 8)
    lines, width_in_bytes = 1 << (height - 1).bit_length(), 1 << (pitch - 1).bit_length()
    sizes = {"H": height, "W": width, "BH": b_h, "BW": b_w, "PITCH": pitch, "CHANNELS_LAST": True}
    digits = ((height - b_h + 1) * (width - b_w + 1) - 1).bit_length()
    cut = {"MAPS": TILE // (lines * width_in_bytes), "LINES": lines, "BYTES": width_in_bytes}
    return {**sizes, **cut, "DIGITS": digits, "COUNTS": True}


def turns(keep_prob: float, height: int, width: int, maps: int) -> float:
    """Expected turns of a program's loop: the most blocks in one of its maps."""
    b_h, b_w = effective_block(BLOCK, height, width)
    cells, gamma = (height - b_h + 1) * (width - b_w + 1), seed_rate(keep_prob, BLOCK, height, width)
    expected, at_most = 0.0, 0.0
    for blocks in range(cells + 1):
        at_most += math.comb(cells, blocks) * gamma**blocks * (1 - gamma) ** (cells - blocks)
        expected += 1 - min(at_most, 1.0) ** maps
    return expected


def here() -> list[Row]:
    """One row for each GPU and shape."""
    from dropblock import triton_kernel

    draws = 1 if "draw_state_ptr" in triton_kernel._draw.arg_names else 2  # an earlier version drew again for backward
    rows = []
    for name, (architecture, rate, processors, clock, double) in GPUS.items():
        for shape, keep_prob in SHAPES:
            n, c, height, width = shape
            constants = draw_constants(height, width)
            found = counts(triton_kernel._draw, architecture, **constants)
            more = turns(keep_prob, height, width, constants["MAPS"]) - 1
            instructions = found["instructions"] + more * found["loop"]
            doubles = found["double"] + more * found["double_loop"]
            warps = WARPS * math.ceil(n * c / constants["MAPS"])
            cycles = warps * (instructions / ISSUED + doubles * double) / processors
            # x and y, forward and backward; bits are written by each draw and read by each application.
            units, bits = n * c * height * width, constants["PITCH"] / width
            bound = units * 8 / (MEMORY * rate * 1e9)
            bytes_moved = units * (8 + (2 + draws) * bits)
            took = bytes_moved / (MEMORY * rate * 1e9) + draws * cycles / (clock * 1e9)
            facts = {"gpu": name, "architecture": architecture, "shape": "x".join(map(str, shape)), **found}
            share = {"keep_prob": keep_prob, "turns": more + 1, "bound_us": 1e6 * bound, "share": bound / took}
            rows.append({**facts, **share, "draw_us": draws * 1e6 * cycles / (clock * 1e9)})
    return rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(rounds=1)
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="the kernel of another checkout as well")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Registers and instructions of the kernel that draws, for three GPUs, its predicted speed; no GPU is needed."""
    rows = here()
    if arguments.beside:
        place = arguments.beside.resolve()
        command, environment = [sys.executable, __file__], {**os.environ, "PYTHONPATH": str(place)}
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=True)
        rows = [{**row, "before": before} for row, before in zip(rows, json.loads(done.stdout), strict=True)]
    return {"kind": "kernels", "rows": rows}


def markdown(result: dict[str, Any]) -> str:
    """One row for each GPU and shape."""

    def with_before(cell: Callable[[Row], str]) -> Callable[[Row], object]:
        return lambda row: f"{cell(row['before'])} → {cell(row)}" if "before" in row else cell(row)

    columns: dict[str, Callable[[Row], object]] = {
        "GPU": lambda row: f"{row['gpu']} (sm_{row['architecture']})",
        "maps, keep_prob": lambda row: f"{row['shape']}, {row['keep_prob']}",
        "registers": with_before(lambda row: f"{row['registers']}"),
        "instructions (of a turn)": with_before(lambda row: f"{row['instructions']:,} ({row['loop']})"),
        "in double precision": with_before(lambda row: f"{row['double']} ({row['double_loop']})"),
        "turns": lambda row: f"{row['turns']:.1f}",
        "bound, us": lambda row: f"{row['bound_us']:.0f}",
        "drawing, us": with_before(lambda row: f"{row['draw_us']:.0f}"),
        "of the bound": with_before(lambda row: f"{100 * row['share']:.0f} %"),
    }
    return f"""# The kernel that draws, compiled, and a prediction

Block {BLOCK}, bfloat16, channels last; forward and backward beside `x * scalar`. **Predicted** from bytes and \
instructions, not measured: memory at {MEMORY:.0%} of its nominal rate, no latency. \
Bytes of stack: {max(row["stack"] for row in result["rows"])}.

{table(columns, result["rows"])}"""


if __name__ == "__main__":
    print(json.dumps(here()))
