"""The training loop beside the barest one that trains the same network: the time spent outside the network itself.

Two whole steps differ by less than their noise, so the parts are timed within the same steps: forward, loss, backward,
optimizer on one side, everything else on the other. The barest loop is five lines; ours also sets learning rate,
keep_prob and mask seeds, looks at every loss and gradient, counts accuracy and drops, and writes log entries.
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
from data import SegmentationBatch
from engine.distributed import Ranks
from engine.loggers import MetricsWriter, Progress
from engine.loop import Fit
from engine.precision import autocast
from engine.run_directory import RunDirectory
from engine.signals import StopRequest
from engine.tasks.segmentation import IGNORE
from experiment.build import build_fit, open_data
from scripts.bench.harness import CLOCKS, Row, add_options, in_rounds, peak_of, quartiles, spread, table

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
    add_options(parser, "clock", "device", rounds=9)
    parser.add_argument("--steps", type=int, default=10, help="steps of a round (default %(default)s)")
    parser.add_argument("--network", choices=NETWORKS, help="one of them only")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both loops on the same batch, round by round; every part of a step, and the peak of its memory."""
    rows = []
    for name in [arguments.network] if arguments.network else NETWORKS:
        with tempfile.TemporaryDirectory() as place:
            row = {"name": name, **one_network(name, Path(place), arguments)}
        rows.append(row)
        print(f"{name}: {100 * row['cost']['median']:+.2f} % of a step", flush=True)
    return {"kind": "loop", "rows": rows}


def one_network(name: str, place: Path, arguments: argparse.Namespace) -> Row:
    """Time of whole steps and of what lies outside the network, in both loops."""
    device = torch.device(arguments.device)
    plan = plan_of(*NETWORKS[name], f"recipe.precision={arguments.precision}")
    data = open_data(plan, device, Ranks())

    def fit() -> Fit:
        return build_fit(plan, data, RunDirectory(place), device, Ranks(), StopRequest())[0]

    # Both loops train a network of their own on one batch. Ours gets what `Fit.run` would have opened.
    batch = next(iter(data.train.epoch(0)))
    clocks = {key: Clock(device, CLOCKS[arguments.clock]) for key in (BARE, OURS)}
    ours = fit()
    ours.bar, ours.writer, ours._clock = Progress(10**6, 0, shown=False), MetricsWriter(place, 0), time.perf_counter()
    steps = {BARE: bare_step(fit(), batch, clocks[BARE]), OURS: our_step(ours, batch, clocks[OURS])}

    def seconds_of(key: str) -> dict[str, float]:
        clocks[key].inside = 0.0
        start = clocks[key].now()
        for _ in range(arguments.steps):
            steps[key]()
        seconds = clocks[key].now() - start
        return {"whole": seconds / arguments.steps, "outside": (seconds - clocks[key].inside) / arguments.steps}

    found, _ = in_rounds(seconds_of, list(steps), arguments.rounds)
    outside, whole = found["outside"], found["whole"]

    # Memory last: the profiler that counts it on a CPU slows a step down.
    memory = {key: peak_of(step, device) for key, step in steps.items()}
    ours.writer.close()
    return {
        "step_ms": {key: spread(whole[key], 1000) for key in steps},
        "outside_ms": {key: spread(outside[key], 1000) for key in steps},
        "cost": spread((a - b) / w for a, b, w in zip(outside[OURS], outside[BARE], whole[BARE], strict=True)),
        "memory": memory,
        "more_memory": memory[OURS] / memory[BARE] - 1,
    }


class Clock:
    """Accumulates the time spent inside wrapped functions."""

    def __init__(self, device: torch.device, seconds: Callable[[], float] = time.perf_counter) -> None:
        self.device, self.seconds, self.inside, self.depth = device, seconds, 0.0, 0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.seconds()

    def within(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its time counts as inside, once where wrapped functions call each other."""

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
        """Count forward, loss, backward and optimizer as inside."""
        with (
            mock.patch.object(network, "forward", self.within(network.forward)),
            mock.patch.object(F, "cross_entropy", self.within(F.cross_entropy)),
            mock.patch.object(Tensor, "backward", self.within(Tensor.backward)),
            mock.patch.object(optimizer, "step", self.within(optimizer.step)),
            mock.patch.object(optimizer, "zero_grad", self.within(optimizer.zero_grad)),
        ):
            yield


def bare_step(fit: Fit, batch: Any, clock: Clock) -> Callable[[], None]:
    """The barest step: forward, loss, backward, optimizer."""
    network, optimizer = fit.network.train(), fit.state.optimizer

    def step() -> None:
        with clock.watching(network, optimizer):
            with autocast(fit.device, fit.recipe.precision):
                logits = network(batch.images).float()
                if isinstance(batch, SegmentationBatch):  # labels at the stride of the logits
                    stride = round(batch.masks.shape[1] / logits.shape[2])
                    labels = batch.masks[:, ::stride, ::stride]
                else:
                    labels = batch.labels
                loss = F.cross_entropy(logits, labels, ignore_index=IGNORE)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def our_step(fit: Fit, batch: Any, clock: Clock) -> Callable[[], None]:
    """A step as `Fit.run` makes it, with a log entry at every tenth."""

    def step() -> None:
        with clock.watching(fit.network, fit.state.optimizer):
            fit.step(batch, min(1.0, fit.state.step / 1000))
            if fit.state.step % LOG_EVERY == 0:
                fit._log()
            fit._stop_if_asked()

    return step


def markdown(result: dict[str, Any]) -> str:
    """The measured table, one row per network."""
    columns: dict[str, Callable[[Row], object]] = {
        "network": lambda row: row["name"],
        "barest step, ms": lambda row: f"{row['step_ms'][BARE]['median']:.1f}",
        "outside the network, ms: barest": lambda row: f"{row['outside_ms'][BARE]['median']:.2f}",
        "this": lambda row: f"{row['outside_ms'][OURS]['median']:.2f}",
        "cost": lambda row: quartiles(row["cost"], "+.2f", 100, " %"),
        "memory of a step": lambda row: f"{100 * row['more_memory']:+.2f} %",
    }
    # Older results do not say by which clock.
    clock = f", {result['clock']} time" if "clock" in result else ""
    return f"""# What the training loop costs

{result["before"]["device"]}, threads: {result["before"]["threads"]}, {result["rounds"]} rounds{clock}; \
median [quartiles]. *Cost*: time outside the network beyond that of the \
barest loop, as a share of the barest step.

{table(columns, result["rows"])}"""
