"""Training steps: ResNet-50 with and without DropBlock, RetinaNet beside torchvision's, ResNet-18 with the regularizers
that DropBlock is compared with, bfloat16 on the CPU."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from configs.checking import UserError
from configs.compose import plan_of
from configs.groups import declared
from data.draws import Draws
from data.image_regularizers import IMAGE_REGULARIZERS, TorchvisionPolicy
from data.interface import DetectionBatch
from dropblock import DropBlock2d, DropLayer, Site, declared_sites, install
from dropblock.operator import backend_for
from dropblock.schedule import keep_prob_in_group
from engine.distributed import Ranks
from engine.loop import Fit
from engine.precision import autocast, set_numerics
from engine.run_directory import RunDirectory
from engine.signals import StopRequest
from engine.tasks.detection import Detection
from experiment.build import build_fit, open_data
from models import build_model
from scripts.bench import harness
from scripts.bench.harness import Row, interval, quartiles, ratios, table
from scripts.bench.op import OURS, contestants, forward_and_backward, named

BLOCK, KEEP_PROB, GROUPS = 7, 0.9, (3, 4)
PLAIN, SIDE = "plain", 224
# The detector's contestants; COCO has 80 classes and about 7 objects an image, padded to 100.
THEIR_DETECTOR, OUR_DETECTOR = "torchvision retinanet_resnet50_fpn", "retinanet"
WITH_DROPBLOCK = "retinanet with DropBlock"
CLASSES, OBJECTS, MOST_OBJECTS, DETECTOR_SIDE = 80, 7, 100, 320
# The contestants of `precision`, and its small network.
FLOAT32, AUTOCAST, TORCH_ALONE = "float32", "bfloat16, this project", "bfloat16, torch alone"
SMALL_WIDTH, SMALL_SIDE = 16, 32
WIDTH = 64  # of `--regularizers`

# The contestants of `--regularizers`: those that act in a step, and those that act on single images.
NONE, IN_A_STEP = "none", ("mixup", "cutmix", "manifold_mixup", "feature_cutmix", "shakedrop", "dropblock")
ON_IMAGES, IMAGES = ("trivialaugment", "randaugment", "autoaugment", "augmix"), 200

Mixed = Callable[[], AbstractContextManager[Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    harness.add_options(parser, "device", "clock", "patience", rounds=15)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16 through autocast")
    parser.add_argument("--detector", action="store_true", help="RetinaNet beside torchvision's instead")
    parser.add_argument(
        "--regularizers", nargs="*", metavar="NAME", help=f"ResNet-18, 32 px, with each instead ({' '.join(IN_A_STEP)})"
    )
    parser.add_argument("--side", type=int, help=f"pixels a side of the detector's images (default {DETECTOR_SIDE})")
    parser.add_argument("--peers", action="store_true", help="torchvision, timm and nn.Dropout as well")


def add_precision_arguments(parser: argparse.ArgumentParser) -> None:
    harness.add_options(parser, "clock", rounds=15)
    parser.add_argument("--batch", type=int, default=64)


def training_step(
    model: nn.Module, loss: Callable[[], Tensor], mixed: Mixed, lr: float | None = None
) -> Callable[[], object]:
    """Forward, loss and backward; with a learning rate SGD with momentum as well."""
    optimizer = None if lr is None else torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)

    def step() -> None:
        with mixed():
            value = loss()
        value.backward()
        if optimizer is not None:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    return step


def channels_last(model: nn.Module, device: str) -> nn.Module:
    return model.to(device).to(memory_format=torch.channels_last).train()


def images_of(batch: int, side: int, device: str, generator: torch.Generator | None = None) -> Tensor:
    images = torch.randn(batch, 3, side, side, generator=generator)
    return images.to(device).contiguous(memory_format=torch.channels_last)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Whole steps in interleaved rounds, and the 36 calls alone beside the plain step; or one of the other two.

    Raises:
        UserError: for options that would do nothing.
    """
    if arguments.regularizers is not None:
        if arguments.detector or arguments.peers or arguments.side is not None or arguments.dtype != "float32":
            raise UserError("--regularizers: it goes with --batch, --rounds and --clock alone")
        return measure_regularizers(arguments)
    if arguments.detector and arguments.peers:
        raise UserError("--peers: the detector stands beside torchvision's alone")
    if arguments.detector:
        return measure_detector(arguments)
    if arguments.side is not None:
        raise UserError("--side is of the detector: give --detector too")
    set_numerics(torch.device(arguments.device), arguments.dtype, False)
    # Each contestant trains a network of its own on one batch; its calls alone are timed on maps of that network.
    device, dtype = arguments.device, arguments.dtype
    images, labels = images_of(arguments.batch, SIDE, device), torch.randint(1000, (arguments.batch,), device=device)
    mixed = partial(autocast, torch.device(device), dtype)
    names = [PLAIN, *(list(contestants(KEEP_PROB, BLOCK, device)) if arguments.peers else [OURS])]
    runs = {}
    for name in names:
        model = network(name, device)
        loss = partial(lambda model: nn.functional.cross_entropy(model(images), labels), model)
        runs[name] = training_step(model, loss, mixed, lr=1e-3)
    runs |= {f"36 calls of {name}": calls_alone(name, arguments.batch, mixed, device) for name in names[1:]}

    # The overhead is a ratio within a round; the calls alone have no row of their own.
    rows, times, shares = harness.compare(runs, arguments, {})
    rows = rows[: len(names)]
    for row in rows[1:]:
        if row["name"] == OURS:
            row["backend"] = backend_for(images).name
        row["overhead"] = harness.with_interval([ratio - 1 for ratio in ratios(times, row["name"], PLAIN)])
        row["calls_alone"] = harness.spread(ratios(times, f"36 calls of {row['name']}", PLAIN))
    facts = {"batch": arguments.batch, "side": SIDE, "dtype": dtype, "share_of_others": shares}
    return {"kind": "step", **facts, "rows": rows}


class Foreign(DropLayer):
    """Another library's operator in one of our sites."""

    def __init__(self, layer: Callable[[Tensor], Tensor]) -> None:
        super().__init__(keep_prob=1.0)
        self.layer = layer

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        return self.layer(x)


def layer_for(name: str, site: Site, device: str) -> Callable[[Tensor], Tensor]:
    return contestants(keep_prob_in_group(KEEP_PROB, int(site.group)), BLOCK, device)[name]


def dropblock_layer(site: Site) -> DropBlock2d:
    return DropBlock2d(block_size=BLOCK, keep_prob=keep_prob_in_group(KEEP_PROB, int(site.group)))


def in_paper_groups(site: Site) -> bool:
    return site.group in GROUPS


def network(name: str, device: str) -> nn.Module:
    """ResNet-50 with an operator in all sites of groups 3 and 4; the paper's rate, a quarter of it in group 3."""
    torch.manual_seed(0)
    model = build_model("resnet50", num_classes=1000)
    if name == OURS:  # as it is trained with, counters included
        install(model, dropblock_layer, in_paper_groups)
    elif name != PLAIN:
        install(model, lambda site: Foreign(layer_for(name, site, device)), in_paper_groups)
    return channels_last(model, device)


def calls_alone(name: str, batch: int, mixed: Mixed, device: str) -> Callable[[], object]:
    """The 36 operator calls of one step on its feature maps, without the network around them."""
    model = network(PLAIN, device)
    maps: dict[str, Tensor] = {}
    sites = {path: site for path, site in declared_sites(model).items() if in_paper_groups(site)}
    for path, site in sites.items():
        site.register_forward_hook(lambda _module, _inputs, output, path=path: maps.update({path: output}))
    with torch.no_grad(), mixed():
        model(images_of(batch, SIDE, device))
    runs = []
    for path, site in sites.items():
        x = maps[path].detach().clone().requires_grad_()
        runs.append(forward_and_backward(layer_for(name, site, device), x, torch.randn_like(x)))
    return lambda: [run() for run in runs]


def markdown(result: dict[str, Any]) -> str:
    """The measured table, one row per contestant."""
    if result["kind"] == "detector":
        return detector_markdown(result)
    if result["kind"] == "regularizers":
        return regularizers_markdown(result)
    columns: dict[str, Callable[[Row], object]] = {
        "operator": named,
        "step, ms, median [quartiles]": lambda row: quartiles(row["milliseconds"], ".0f"),
        "overhead on the plain step": lambda row: (
            interval(row["overhead"], "+.1f", 100, " %") if "overhead" in row else ""
        ),
        "the 36 calls alone / plain step": lambda row: (
            f"{100 * row['calls_alone']['median']:.1f} %" if "overhead" in row else ""
        ),
    }
    return f"""# A training step of ResNet-50 with DropBlock, {result["dtype"]}

ResNet-50, batch {result["batch"]}, {result["side"]} px, channels_last, {result["dtype"]}, 36 sites, \
{result["rounds"]} interleaved rounds by {result.get("clock", "wall")} time; \
overhead is the median of the rounds [95 % interval of the median].

{table(columns, result["rows"])}

In no counted round did other processes take more than {100 * max(result["share_of_others"]):.0f} % of the \
processors."""


def measure_detector(arguments: argparse.Namespace) -> dict[str, Any]:
    """RetinaNet beside torchvision's on the same images and boxes, and DropBlock in it: time and memory of a step."""
    device, side = arguments.device, arguments.side or DETECTOR_SIDE
    batch = boxes_on_noise(arguments.batch, side, device)
    parts = {
        THEIR_DETECTOR: their_detector(batch),
        OUR_DETECTOR: our_detector(batch, dropblock=False),
        WITH_DROPBLOCK: our_detector(batch, dropblock=True),
    }
    mixed = partial(autocast, torch.device(device), arguments.dtype)
    steps = {name: training_step(model, loss, mixed, lr=1e-5) for name, (model, loss) in parts.items()}
    to = {f"to {name}": name for name in (THEIR_DETECTOR, OUR_DETECTOR)}
    rows, _, shares = harness.compare(steps, arguments, to)
    for row in rows:
        row["bytes"] = harness.peak_of(steps[row["name"]], torch.device(device))
        if row["name"] == WITH_DROPBLOCK:
            row["backend"] = backend_for(batch.images).name
    facts = {"batch": arguments.batch, "side": side, "dtype": arguments.dtype, "share_of_others": shares}
    return {"kind": "detector", **facts, "rows": rows}


def boxes_on_noise(batch: int, side: int, device: str) -> DetectionBatch:
    """Noise with boxes, from one seed, padded as the loaders pad them."""
    generator = torch.Generator().manual_seed(0)
    images = images_of(batch, side, device, generator)
    boxes = torch.full((batch, MOST_OBJECTS, 4), -1.0)
    labels = torch.full((batch, MOST_OBJECTS), -1)
    sides = torch.rand(batch, OBJECTS, 2, generator=generator) * side / 2 + 8
    corners = torch.rand(batch, OBJECTS, 2, generator=generator) * (side - sides)
    boxes[:, :OBJECTS] = torch.cat([corners, corners + sides], dim=2)
    labels[:, :OBJECTS] = torch.randint(CLASSES, (batch, OBJECTS), generator=generator)
    numbers, ones = torch.arange(batch), torch.ones(batch, dtype=torch.float64)
    return DetectionBatch(images, boxes.to(device), labels.to(device), ones, numbers, numbers)


def our_detector(batch: DetectionBatch, dropblock: bool) -> tuple[nn.Module, Callable[[], Tensor]]:
    torch.manual_seed(0)
    model = build_model("retinanet", num_classes=CLASSES)
    if dropblock:
        install(model, dropblock_layer, in_paper_groups)
    model, task = channels_last(model, str(batch.images.device)), Detection([str(n) for n in range(CLASSES)])
    return model, lambda: task.loss(model, batch)[0]


def their_detector(batch: DetectionBatch) -> tuple[nn.Module, Callable[[], Tensor]]:
    """torchvision's RetinaNet without frozen layers; at this size its own resizing and padding change nothing."""
    from torchvision.models.detection import retinanet_resnet50_fpn
    from torchvision.ops import FrozenBatchNorm2d

    side = batch.images.shape[-1]
    torch.manual_seed(0)
    model = retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES, min_size=side, max_size=side
    )
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())
    model = channels_last(model, str(batch.images.device))
    truth = [
        {"boxes": boxes[labels >= 0], "labels": labels[labels >= 0]}
        for boxes, labels in zip(batch.boxes, batch.labels, strict=True)
    ]
    return model, lambda: torch.stack(list(model(list(batch.images), truth).values())).sum()


def detector_markdown(result: dict[str, Any]) -> str:
    """The measured table, one row per contestant."""
    theirs, without = f"to {THEIR_DETECTOR}", f"to {OUR_DETECTOR}"
    columns: dict[str, Callable[[Row], object]] = {
        "training step": named,
        "ms, median [quartiles]": lambda row: quartiles(row["milliseconds"], ".0f"),
        "/ torchvision's": lambda row: "" if row["name"] == THEIR_DETECTOR else interval(row[theirs], ".3f"),
        "/ without DropBlock": lambda row: interval(row[without], ".3f") if row["name"] == WITH_DROPBLOCK else "",
        "memory of a step, MB": lambda row: f"{row['bytes'] / 1e6:.0f}",
    }
    return f"""# A training step of RetinaNet with DropBlock

ResNet-50, batch {result["batch"]}, {result["side"]} px, {CLASSES} classes, {OBJECTS} objects an image, \
channels_last, {result["dtype"]}, {result["rounds"]} interleaved rounds by {result["clock"]} time; \
ratios are medians of the rounds [95 % interval of the median]. \
DropBlock: block {BLOCK}, keep_prob {KEEP_PROB}, groups 3 and 4.

{table(columns, result["rows"])}

Other processes took up to {100 * max(result["share_of_others"]):.0f} % of the processors in a counted round."""


def measure_regularizers(arguments: argparse.Namespace) -> dict[str, Any]:
    """Steps of the training loop with each regularizer beside one without; and image by image what acts there."""
    device, words = torch.device(arguments.device), ("data=fake", "model=resnet18", "recipe=quick", "epochs=1000")
    runs: dict[str, Callable[[], object]] = {}
    for name in (NONE, *(arguments.regularizers or IN_A_STEP)):
        own = (f"regularizer={name}", f"model.width={WIDTH}", f"batch_size={arguments.batch}", "progress=false")
        plan = plan_of(*words, *own, f"device={arguments.device}")
        data = open_data(plan, device, Ranks())
        fit, _ = build_fit(plan, data, RunDirectory(Path()), device, Ranks(), StopRequest())  # writes nothing
        runs[name] = partial(one_step, fit, next(iter(data.train.epoch(0))))
    rows, _, shares = harness.compare(runs, arguments, {"to_none": NONE})

    images = np.random.default_rng(0).integers(0, 256, (IMAGES, SMALL_SIDE, SMALL_SIDE, 3), np.uint8)
    policies = [image_by_image(name, images) for name in ON_IMAGES]
    facts = {"batch": arguments.batch, "width": WIDTH, "side": SMALL_SIDE, "share_of_others": shares}
    return {"kind": "regularizers", **facts, "rows": rows, "policies": policies}


def one_step(fit: Fit, batch: Any) -> None:
    """The next step of a run, in its middle: keep_prob is what it is there on average."""
    fit.step(batch, 0.5)


def image_by_image(name: str, images: Any) -> Row:
    """Milliseconds of processor time an image, and the share that torchvision's operations on a PIL image take."""
    policy: TorchvisionPolicy = IMAGE_REGULARIZERS[name](
        **{option: of["default"] for option, of in declared(name).options.items()}
    )
    transform, inside = policy.transform, 0.0

    def timed(image: Any) -> Any:
        nonlocal inside
        start = time.process_time()
        changed = transform(image)
        inside += time.process_time() - start
        return changed

    policy.transform = timed
    start = time.process_time()
    for index, pixels in enumerate(images):
        policy.on_image(pixels, Draws(np.zeros(0), 1, 0, index))
    whole = time.process_time() - start
    return {"name": name, "milliseconds": 1000 * whole / len(images), "share": inside / whole}


def regularizers_markdown(result: dict[str, Any]) -> str:
    """One row a regularizer, of a step and of an image."""
    columns: dict[str, Callable[[Row], object]] = {
        "regularizer": lambda row: row["name"],
        "step, ms, median [quartiles]": lambda row: quartiles(row["milliseconds"], ".0f"),
        "/ none": lambda row: "" if row["name"] == NONE else interval(row["to_none"], ".3f"),
    }
    of_images: dict[str, Callable[[Row], object]] = {
        "regularizer": lambda row: row["name"],
        "ms an image": lambda row: f"{row['milliseconds']:.2f}",
        "in torchvision's operations on a PIL image": lambda row: f"{100 * row['share']:.0f} %",
    }
    return f"""# A training step with the regularizers that DropBlock is compared with

ResNet-18 of width {result["width"]}, batch {result["batch"]}, {result["side"]} px, threads: \
{result["before"]["threads"]}, {result["rounds"]} interleaved rounds by {result["clock"]} time; ratios are medians of \
the rounds [95 % interval of the median].

{table(columns, result["rows"])}

{table(of_images, result["policies"])}

Other processes took up to {100 * max(result["share_of_others"]):.0f} % of the processors in a counted round."""


def measure_precision(arguments: argparse.Namespace) -> dict[str, Any]:
    """ResNet-18 on small images in bfloat16: this project's autocast and torch's, beside float32."""
    device = torch.device("cpu")
    precisions: dict[str, Mixed] = {
        FLOAT32: partial(autocast, device, "float32"),
        AUTOCAST: partial(autocast, device, "bfloat16"),
        TORCH_ALONE: partial(torch.autocast, "cpu", torch.bfloat16),
    }
    runs = {}
    for name, mixed in precisions.items():
        torch.manual_seed(0)
        model = channels_last(build_model("resnet18", num_classes=10, width=SMALL_WIDTH, stem="small"), "cpu")
        images, labels = images_of(arguments.batch, SMALL_SIDE, "cpu"), torch.randint(10, (arguments.batch,))
        loss = partial(lambda model, x, y: nn.functional.cross_entropy(model(x), y), model, images, labels)
        runs[name] = training_step(model, loss, mixed)
    rows, _, shares = harness.compare(runs, arguments, {"to_float32": FLOAT32})
    instructions = torch.backends.cpu.get_cpu_capability()
    facts = {"batch": arguments.batch, "instructions": instructions, "share_of_others": shares}
    return {"kind": "precision", **facts, "rows": rows}


def precision_markdown(result: dict[str, Any]) -> str:
    """The measured table, one row per precision."""
    before = result["before"]
    columns: dict[str, Callable[[Row], object]] = {
        "type": lambda row: row["name"],
        "ms": lambda row: quartiles(row["milliseconds"], ".0f"),
        "x float32": lambda row: "" if row["name"] == FLOAT32 else interval(row["to_float32"], ".2f"),
    }
    return f"""# A training step in bfloat16 on a CPU with {result["instructions"]}

ResNet-18 of width {SMALL_WIDTH}, {SMALL_SIDE} px, batch {result["batch"]}, channels_last, torch {before["torch"]}, \
threads: {before["threads"]}, {result["rounds"]} interleaved rounds by {result["clock"]} time; median \
[quartiles], ratio within a round [95 % interval of the median].

{table(columns, result["rows"])}"""
