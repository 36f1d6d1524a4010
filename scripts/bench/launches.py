"""DropBlock in a step as the host of a GPU sees it: launches, and the time until the last one is made.

No GPU is needed. The kernels are stood in for, so that what is timed is the Python and torch around them, on maps so
small that computing them takes no time; the time that Triton takes for a launch is not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dropblock import DropBlock2d, KeepProbSchedule, LayerControl, Site, declared_sites, install, operator
from engine import seeding
from models import build_model
from scripts.bench import harness
from scripts.bench.harness import Row, quartiles, table

THIS, FLOOR = "this", "36 autograd functions that do nothing"
KERNELS = ("_draw", "_apply_contiguous", "_apply_channels_last")
MAPS = (1, 2, 14, 14)
STEPS = 40  # of a round
NO_LAUNCH = ("empty", "empty_like", "empty_strided", "detach", "lift_fresh", "ones_like")


def stubbed(patch: Callable[[Any, str, Any], None] = setattr) -> list[str]:
    """Put stand-ins in the place of the kernels: the list that comes back gets the name of each that is launched."""
    from dropblock import triton_kernel

    launched: list[str] = []

    class Kernel:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: object) -> Kernel:
            return self

        def __call__(self, *arguments: object) -> None:
            launched.append(self.name)

    for name in KERNELS:
        patch(triton_kernel, name, Kernel(name))
    operator.gpu_backend.cache_clear()
    return launched


def sites_alone(device: torch.device) -> tuple[nn.Module, LayerControl]:
    """The sites of ResNet-50 in groups 3 and 4 one behind the other, filled, without the network around them."""
    sites = [
        site
        for site in declared_sites(build_model("resnet50", width=8, num_classes=2)).values()
        if site.group in (3, 4)
    ]
    model = nn.Sequential(*(Site(site.group, site.branch, site.after) for site in sites))
    install(model, lambda _: DropBlock2d(block_size=7))
    schedule = KeepProbSchedule(model.to(device), 0.9, group_divisor=4)
    return model.train(), LayerControl(model, torch.ones(MAPS, device=device), {"dropblock": schedule})


def set_step(layers: LayerControl, step: int) -> None:
    """Set keep_prob and mask seeds, as the training loop does before a step."""
    mixer = getattr(seeding, "mixer", partial(partial, seeding.mix))  # an earlier checkout has `mix` alone
    layers.set_progress(step % 1000 / 1000)
    layers.set_seeds(mixer(1, 1, 0, step, 0))


class Launches(TorchDispatchMode):
    """Counts the operations that a GPU would be asked for, those of torch by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in NO_LAUNCH:
            self.counted[name] += 1
        return func(*args, **(kwargs or {}))


class Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.empty_like(gradient)


def here() -> dict[str, Any]:
    """Launches of a step by name, and milliseconds of the host, of the package that is imported."""
    torch.set_num_threads(1)
    kernels = stubbed()
    cpu = torch.device("cpu")
    operator.SPARSE_CPU = operator.gpu_backend(cpu)  # the backend of the CPU, whose tensors stand for those of a GPU
    model, layers = sites_alone(cpu)
    x = torch.ones(MAPS, requires_grad=True)
    gradient, number = torch.ones(MAPS), 0

    def step() -> None:
        nonlocal number
        number += 1
        set_step(layers, number)
        model(x).backward(gradient)

    def nothing() -> None:
        y = x
        for _ in layers.layers:
            y = Nothing.apply(y)
        y.backward(gradient)

    kernels.clear()
    with Launches() as launches:
        step()
    counted = launches.counted + Counter(kernels)
    return {"sites": len(layers.layers), "launches": counted, "ms": clocked(step), "floor_ms": clocked(nothing)}


def clocked(step: Callable[[], None]) -> float:
    """Milliseconds of processor time, the median of some steps."""
    times = []
    for _ in range(STEPS + 5):
        begin = time.thread_time()
        step()
        times.append(time.thread_time() - begin)
    return 1000 * median(times[5:])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    harness.add_options(parser, rounds=7)
    parser.add_argument("--beside", type=Path, metavar="CHECKOUT", help="measure another checkout in the same rounds")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Launches and host time of the 36 calls of DropBlock in a step of ResNet-50; no GPU is needed."""
    places = {THIS: Path(__file__).parents[2]}
    if arguments.beside:
        places["before"] = arguments.beside.resolve()
    found: dict[str, dict[str, Any]] = {}

    def measured(name: str) -> dict[str, float]:
        environment = {**os.environ, "PYTHONPATH": str(places[name]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__]
        done = subprocess.run(command, cwd=places[name], env=environment, capture_output=True, text=True, check=True)
        found[name] = json.loads(done.stdout)
        return {"ms": found[name]["ms"], "floor": found[name]["floor_ms"]}

    times, shares = harness.in_rounds(measured, list(places), arguments.rounds, warm_up=False)
    rows: list[Row] = [
        {
            "name": name,
            "launches": found[name]["launches"],
            "milliseconds": harness.spread(times["ms"][name]),
            "to_this": harness.spread(harness.ratios(times["ms"], name, THIS)),
        }
        for name in places
    ]
    floor = [value for name in places for value in times["floor"][name]]
    facts = {"sites": found[THIS]["sites"], "floor": harness.spread(floor), "share_of_others": shares}
    return {"kind": "launches", **facts, "rows": rows}


def markdown(result: dict[str, Any]) -> str:
    """The measured table, one row per checkout."""
    columns: dict[str, Callable[[Row], object]] = {
        "": lambda row: row["name"],
        "launches a step": lambda row: sum(row["launches"].values()),
        "of them": lambda row: ", ".join(f"{number} {name}" for name, number in sorted(row["launches"].items())),
        "host, ms of processor time": lambda row: quartiles(row["milliseconds"], ".2f"),
        "/ this": lambda row: f"{row['to_this']['median']:.2f}",
    }
    return f"""# DropBlock in a step, seen from the host

keep_prob and mask seeds set, forward and backward of the {result["sites"]} sites of ResNet-50; kernels stood in for, \
on a CPU; {result["rounds"]} interleaved rounds, median [quartiles].

{table(columns, result["rows"])}

{FLOOR}, forward and backward, take {quartiles(result["floor"], ".2f")} ms in the same rounds; \
other processes took up to {100 * max(result["share_of_others"]):.0f} % of the processors."""


if __name__ == "__main__":
    print(json.dumps(here()))
