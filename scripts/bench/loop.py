"""The training loop beside the barest one that trains the same network: what is spent outside the network itself.

Two whole steps differ by less than their noise, so the parts are timed within the same steps: forward, loss, backward,
optimizer on one side, everything else on the other. The barest loop is five lines; ours also sets learning rate,
keep_prob and mask seeds, looks at every loss and gradient, counts accuracy and drops, and writes curves.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.compose import plan_of
from configs.plan import Plan
from data import SegmentationBatch
from engine.distributed import Ranks
from engine.loggers import MetricsWriter, Progress
from engine.loop import Fit
from engine.precision import autocast
from engine.records import RunFolder
from engine.signals import StopRequest
from engine.tasks.segmentation import IGNORE
from experiment.build import build_fit, open_data
from scripts.bench.rounds import CLOCKS, add_clock, add_device, in_turn, spread, surroundings

BARE, OURS = "barest loop", "this"
LOG_EVERY = 10
FAKE = ("data=fake", "recipe=quick")
# The main job's plan with another network: the main job, an ordinary CIFAR network, the paper's; and segmentation.
NETWORKS = {
    "resnet50 of width 16, 32 px": (*FAKE, "model=resnet50", "model.width=16", "data.image_size=32", "batch_size=32"),
    "resnet18 of width 64, 32 px": (*FAKE, "model=resnet18", "model.width=64", "data.image_size=32", "batch_size=64"),
    "resnet50, 224 px": (*FAKE, "model=resnet50", "model.width=64", "data.image_size=224", "batch_size=8"),
    "segmentation_fpn_tiny, 65 px": ("data=digit_masks",),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count (default %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="steps of a round (default %(default)s)")
    parser.add_argument("--network", choices=NETWORKS, help="one of them only")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    add_clock(parser)
    add_device(parser)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both loops on the same batch, round by round; every part of a step, and the peak of its memory."""
    before, rows = surroundings(arguments.device), []
    for name in [arguments.network] if arguments.network else NETWORKS:
        with tempfile.TemporaryDirectory() as place:
            row = {"name": name, **one_network(name, Path(place), arguments)}
        rows.append(row)
        print(f"{name}: {100 * row['cost']['median']:+.2f} % of a step", flush=True)
    after = surroundings(arguments.device)
    return {
        "kind": "loop",
        "rounds": arguments.rounds,
        "clock": arguments.clock,
        "before": before,
        "after": after,
        "rows": rows,
    }


def plan_of_network(name: str, precision: str) -> Plan:
    return plan_of(*NETWORKS[name], f"recipe.precision={precision}")


def one_network(name: str, place: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    device, plan = torch.device(arguments.device), plan_of_network(name, arguments.precision)
    data = open_data(plan, device, Ranks())

    def fit() -> Fit:
        return build_fit(plan, data, RunFolder(place), device, Ranks(), StopRequest())[0]

    batch = next(iter(data.train.epoch(0)))
    clocks = {key: Clock(device, CLOCKS[arguments.clock]) for key in (BARE, OURS)}
    ours = fit()
    ours.bar, ours.writer, ours._clock = Progress(10**6, 0, shown=False), MetricsWriter(place, 0), time.perf_counter()
    steps = {BARE: bare_step(fit(), batch, clocks[BARE]), OURS: our_step(ours, batch, clocks[OURS])}
    outside: dict[str, list[float]] = {key: [] for key in steps}
    whole: dict[str, list[float]] = {key: [] for key in steps}
    for number in range(arguments.rounds + 1):
        for key in in_turn(list(steps), number):
            clocks[key].inside = 0.0
            start = clocks[key].now()
            for _ in range(arguments.steps):
                steps[key]()
            seconds = clocks[key].now() - start
            if number > 0:
                outside[key].append((seconds - clocks[key].inside) / arguments.steps)
                whole[key].append(seconds / arguments.steps)
    cost = [(a - b) / w for a, b, w in zip(outside[OURS], outside[BARE], whole[BARE], strict=True)]
    memory = {key: peak_of(step, device) for key, step in steps.items()}
    ours.writer.close()
    return {
        "step_ms": {key: spread([1000 * seconds for seconds in whole[key]]) for key in steps},
        "outside_ms": {key: spread([1000 * seconds for seconds in outside[key]]) for key in steps},
        "cost": spread(cost),
        "memory": memory,
        "more_memory": memory[OURS] / memory[BARE] - 1,
    }


class Clock:
    """Adds up the time within functions."""

    def __init__(self, device: torch.device, seconds: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.seconds, self.inside, self.depth = device, seconds, 0.0, 0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.seconds()

    def within(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time added up; not twice where one calls another."""

        def timed(*arguments: Any, **more: Any) -> Any:
            start, self.depth = self.now(), self.depth + 1
            try:
                return run(*arguments, **more)
            finally:
                self.depth -= 1
                if self.depth == 0:
                    self.inside += self.now() - start

        return timed

    @contextmanager
    def watching(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Forward, loss, backward and optimizer are inside."""
        with (
            mock.patch.object(network, "forward", self.within(network.forward)),
            mock.patch.object(F, "cross_entropy", self.within(F.cross_entropy)),
            mock.patch.object(Tensor, "backward", self.within(Tensor.backward)),
            mock.patch.object(optimizer, "step", self.within(optimizer.step)),
            mock.patch.object(optimizer, "zero_grad", self.within(optimizer.zero_grad)),
        ):
            yield


def bare_step(fit: Fit, batch: Any, clock: Clock) -> Callable[[], None]:
    """What nobody could leave out."""
    network, optimizer = fit.network.train(), fit.state.optimizer

    def step() -> None:
        with clock.watching(network, optimizer):
            with autocast(fit.device, fit.settings.precision):
                logits = network(batch.images).float()
                loss = F.cross_entropy(logits, labels_for(batch, logits), ignore_index=IGNORE)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def labels_for(batch: Any, logits: Tensor) -> Tensor:
    """The label of an image, or those at the stride of the logits."""
    if isinstance(batch, SegmentationBatch):
        stride = round(batch.masks.shape[1] / logits.shape[2])
        return batch.masks[:, ::stride, ::stride]
    return batch.labels


def our_step(fit: Fit, batch: Any, clock: Clock) -> Callable[[], None]:
    """A step as `Fit.run` makes it, with a point of the curves every tenth."""

    def step() -> None:
        with clock.watching(fit.network, fit.state.optimizer):
            fit.step(batch, min(1.0, fit.state.step / 1000))
            if fit.state.step % LOG_EVERY == 0:
                fit._log()
            fit._stop_if_asked()

    return step


def peak_of(step: Callable[[], object], device: torch.device) -> int:
    """The most bytes that a step holds at once beyond what was there before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def markdown(result: dict[str, Any]) -> str:
    """One row a network."""
    lines = [
        "# What the training loop costs",
        "",
        f"{result['before']['device']}, threads: {result['before']['threads']}, {result['rounds']} rounds, "
        f"{result.get('clock', 'wall')} time; median [quartiles]. *Cost*: time outside the network beyond that of the "
        "barest loop, as a share of the barest step.",
        "",
        "| network | barest step, ms | outside the network, ms: barest | this | cost | memory of a step |",
        "|---" * 6 + "|",
    ]
    for row in result["rows"]:
        step, outside = row["step_ms"][BARE]["median"], row["outside_ms"]
        cost = "{:+.2f} % [{:+.2f}, {:+.2f}]".format(
            *(100 * row["cost"][key] for key in ("median", "quarter", "three_quarters"))
        )
        lines.append(
            f"| {row['name']} | {step:.1f} | {outside[BARE]['median']:.2f} | {outside[OURS]['median']:.2f} | {cost} "
            f"| {100 * row['more_memory']:+.2f} % |"
        )
    return "\n".join(lines)
