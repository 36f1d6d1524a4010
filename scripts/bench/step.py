"""A training step of ResNet-50 with DropBlock in groups 3 and 4 (36 sites), beside the plain step; or of RetinaNet."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from configs.checking import UserError
from dropblock import DropBlock2d, DropLayer, declared_sites, install
from dropblock.schedule import keep_prob_in_group
from dropblock.sites import Site
from engine.precision import autocast
from models import build_model
from scripts.bench import detector
from scripts.bench.contestants import OURS, contestants, forward_and_backward
from scripts.bench.rounds import (
    add_clock,
    add_device,
    add_patience,
    interleaved,
    interval_of_median,
    ratios,
    spread,
    surroundings,
)

BLOCK, KEEP_PROB, GROUPS, SIDE = 7, 0.9, (3, 4), 224
PLAIN = "plain"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=15, help="rounds that count (default %(default)s)")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16 through autocast")
    add_device(parser)
    add_clock(parser)
    add_patience(parser, "the whole")
    parser.add_argument("--detector", action="store_true", help="RetinaNet beside torchvision's instead")
    parser.add_argument("--side", type=int, help=f"pixels a side of the detector's images (default {detector.SIDE})")
    parser.add_argument("--peers", action="store_true", help="torchvision, timm and nn.Dropout as well")


class Foreign(DropLayer):
    """Another library's operator in one of our sites."""

    def __init__(self, layer: Callable[[Tensor], Tensor]) -> None:
        super().__init__(keep_prob=1.0)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def network(name: str, device: str) -> nn.Module:
    """ResNet-50 with an operator in all sites of groups 3 and 4; the paper's rate, a quarter of it in group 3."""
    torch.manual_seed(0)
    model = build_model("resnet50", num_classes=1000)
    if name != PLAIN:
        install(model, lambda site: in_site(name, site, device), lambda site: site.group in GROUPS)
    return model.to(device).to(memory_format=torch.channels_last).train()


def in_site(name: str, site: Site, device: str) -> DropLayer:
    """Ours as it is trained with, counters included."""
    if name == OURS:
        return DropBlock2d(block_size=BLOCK, keep_prob=keep_prob_in_group(KEEP_PROB, int(site.group)))
    return Foreign(layer_for(name, site, device))


def layer_for(name: str, site: Site, device: str) -> Callable[[Tensor], Tensor]:
    return contestants(keep_prob_in_group(KEEP_PROB, int(site.group)), BLOCK, device)[name]


def training_step(model: nn.Module, images: Tensor, labels: Tensor, dtype: str) -> Callable[[], object]:
    """Forward, loss, backward, SGD with momentum."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        with autocast(images.device, dtype):
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def calls_alone(name: str, batch: int, dtype: str, device: str) -> Callable[[], object]:
    """What the 36 operators do in one step, without the network around them."""
    model = network(PLAIN, device)
    maps: dict[str, Tensor] = {}
    sites = {path: site for path, site in declared_sites(model).items() if site.group in GROUPS}
    for path, site in sites.items():
        site.register_forward_hook(lambda _module, _inputs, output, path=path: maps.update({path: output}))
    with torch.no_grad(), autocast(torch.device(device), dtype):
        model(torch.randn(batch, 3, SIDE, SIDE, device=device).contiguous(memory_format=torch.channels_last))
    runs = []
    for path, site in sites.items():
        x = maps[path].detach().clone().requires_grad_()
        runs.append(forward_and_backward(layer_for(name, site, device), x, torch.randn_like(x)))
    return lambda: [run() for run in runs]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Whole steps in interleaved rounds, and the 36 calls alone beside the plain step."""
    if arguments.detector and arguments.peers:
        raise UserError("--peers: the detector stands beside torchvision's alone")
    if arguments.detector:
        arguments.side = detector.SIDE if arguments.side is None else arguments.side
        return detector.measure(arguments)
    if arguments.side is not None:
        raise UserError("--side is of the detector: give --detector too")
    device, dtype = arguments.device, arguments.dtype
    before = surroundings(device)
    images = torch.randn(arguments.batch, 3, SIDE, SIDE, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (arguments.batch,), device=device)
    names = [PLAIN, *(list(contestants(KEEP_PROB, BLOCK, device)) if arguments.peers else [OURS])]
    runs = {name: training_step(network(name, device), images, labels, dtype) for name in names}
    runs |= {f"36 calls of {name}": calls_alone(name, arguments.batch, dtype, device) for name in names[1:]}
    times, shares = interleaved(runs, arguments.rounds, 0.0, device, arguments.patience, arguments.clock)
    rows = []
    for name in names:
        row: dict[str, Any] = {"name": name, "milliseconds": spread([1000 * seconds for seconds in times[name]])}
        if name != PLAIN:
            overhead = [ratio - 1 for ratio in ratios(times, name, PLAIN)]
            row["overhead"] = {**spread(overhead), "interval": interval_of_median(overhead)}
            row["calls_alone"] = spread(ratios(times, f"36 calls of {name}", PLAIN))
        rows.append(row)
    return {
        "kind": "step",
        "batch": arguments.batch,
        "side": SIDE,
        "dtype": dtype,
        "rounds": arguments.rounds,
        "clock": arguments.clock,
        "share_of_others": shares,
        "before": before,
        "after": surroundings(device),
        "rows": rows,
    }


def overhead_text(row: dict[str, Any]) -> tuple[str, str]:
    """The overhead on the plain step with its interval, and the share of the calls alone."""
    low, high = row["overhead"]["interval"]
    return (
        f"{100 * row['overhead']['median']:+.1f} % [{100 * low:+.1f}, {100 * high:+.1f}]",
        f"{100 * row['calls_alone']['median']:.1f} %",
    )


def markdown(result: dict[str, Any]) -> str:
    """One row a contestant."""
    if result["kind"] == "detector":
        return detector.markdown(result)
    lines = [
        f"# A training step of ResNet-50 with DropBlock, {result['dtype']}",
        "",
        f"ResNet-50, batch {result['batch']}, {result['side']} px, channels_last, {result['dtype']}, 36 sites, "
        f"{result['rounds']} interleaved rounds by {result.get('clock', 'wall')} time; "
        "overhead is the median of the rounds [95 % interval of the median].",
        "",
        "| operator | step, ms, median [quartiles] | overhead on the plain step | the 36 calls alone / plain step |",
        "|---" * 4 + "|",
    ]
    for row in result["rows"]:
        time = "{median:.0f} [{quarter:.0f}, {three_quarters:.0f}]".format(**row["milliseconds"])
        overhead, alone = overhead_text(row) if "overhead" in row else ("", "")
        lines.append(f"| {row['name']} | {time} | {overhead} | {alone} |")
    disturbed = max(result["share_of_others"])
    lines += ["", f"In no counted round did other processes take more than {100 * disturbed:.0f} % of the processors."]
    return "\n".join(lines)
