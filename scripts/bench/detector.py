"""A training step of the detector beside torchvision's RetinaNet, on the same images and boxes, and DropBlock in it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from data.interface import DetectionBatch
from dropblock import DropBlock2d, install
from dropblock.schedule import keep_prob_in_group
from engine.precision import autocast
from engine.tasks.detection import Detection
from models import build_model
from scripts.bench.loop import peak_of
from scripts.bench.rounds import interleaved, interval_of_median, ratios, spread, surroundings

THEIRS, OURS, WITH_DROPBLOCK = "torchvision retinanet_resnet50_fpn", "retinanet", "retinanet with DropBlock"
CLASSES, OBJECTS, MOST_OBJECTS = 80, 7, 100  # COCO has 80 classes and about 7 objects an image
BLOCK, KEEP_PROB, GROUPS, SIDE = 7, 0.9, (3, 4), 320


def scenes(batch: int, side: int, device: str) -> DetectionBatch:
    """Noise with boxes, from one seed, padded as the loaders pad them."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, side, side, generator=generator)
    boxes = torch.full((batch, MOST_OBJECTS, 4), -1.0)
    labels = torch.full((batch, MOST_OBJECTS), -1)
    sides = torch.rand(batch, OBJECTS, 2, generator=generator) * side / 2 + 8
    corners = torch.rand(batch, OBJECTS, 2, generator=generator) * (side - sides)
    boxes[:, :OBJECTS] = torch.cat([corners, corners + sides], dim=2)
    labels[:, :OBJECTS] = torch.randint(CLASSES, (batch, OBJECTS), generator=generator)
    numbers = torch.arange(batch)
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    ones = torch.ones(batch, dtype=torch.float64)
    return DetectionBatch(images, boxes.to(device), labels.to(device), ones, numbers, numbers)


def our_loss(batch: DetectionBatch, dropblock: bool) -> tuple[nn.Module, Callable[[], Tensor]]:
    torch.manual_seed(0)
    model = build_model("retinanet", num_classes=CLASSES)
    if dropblock:

        def layer(site: Any) -> DropBlock2d:
            return DropBlock2d(block_size=BLOCK, keep_prob=keep_prob_in_group(KEEP_PROB, site.group))

        install(model, layer, lambda site: site.group in GROUPS)
    model = model.to(batch.images.device).to(memory_format=torch.channels_last).train()
    task = Detection([str(number) for number in range(CLASSES)])
    return model, lambda: task.loss(model, batch)[0]


def their_loss(batch: DetectionBatch) -> tuple[nn.Module, Callable[[], Tensor]]:
    """torchvision's, without frozen layers; its own resizing has nothing to do, its padding to 32 pixels neither."""
    from torchvision.models.detection import retinanet_resnet50_fpn
    from torchvision.ops import FrozenBatchNorm2d

    side = batch.images.shape[-1]
    torch.manual_seed(0)
    model = retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES, min_size=side, max_size=side
    )
    assert not any(isinstance(module, FrozenBatchNorm2d) for module in model.modules())
    model = model.to(batch.images.device).to(memory_format=torch.channels_last).train()
    truth = [
        {"boxes": boxes[labels >= 0], "labels": labels[labels >= 0]}
        for boxes, labels in zip(batch.boxes, batch.labels, strict=True)
    ]
    return model, lambda: torch.stack(list(model(list(batch.images), truth).values())).sum()


def training_step(model: nn.Module, loss: Callable[[], Tensor], dtype: str, device: str) -> Callable[[], object]:
    """Forward, loss, backward, SGD with momentum."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5, momentum=0.9)

    def step() -> None:
        with autocast(torch.device(device), dtype):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time in interleaved rounds, and the memory of a step, of the three."""
    device, before = arguments.device, surroundings(arguments.device)
    batch = scenes(arguments.batch, arguments.side, device)
    losses = {THEIRS: their_loss(batch), OURS: our_loss(batch, False), WITH_DROPBLOCK: our_loss(batch, True)}
    steps = {name: training_step(*parts, arguments.dtype, device) for name, parts in losses.items()}
    times, shares = interleaved(steps, arguments.rounds, 0.0, device, arguments.patience, arguments.clock)
    rows = []
    for name, step in steps.items():
        row: dict[str, Any] = {"name": name, "milliseconds": spread([1000 * seconds for seconds in times[name]])}
        row["bytes"] = peak_of(step, torch.device(device))
        for other in (THEIRS, OURS):
            found = ratios(times, name, other)
            row[f"to {other}"] = {**spread(found), "interval": interval_of_median(found)}
        rows.append(row)
    return {
        "kind": "detector",
        "batch": arguments.batch,
        "side": arguments.side,
        "dtype": arguments.dtype,
        "rounds": arguments.rounds,
        "clock": arguments.clock,
        "share_of_others": shares,
        "before": before,
        "after": surroundings(device),
        "rows": rows,
    }


def markdown(result: dict[str, Any]) -> str:
    """One row a contestant."""
    lines = [
        "# A training step of RetinaNet with DropBlock",
        "",
        f"ResNet-50, batch {result['batch']}, {result['side']} px, {CLASSES} classes, {OBJECTS} objects an image, "
        f"channels_last, {result['dtype']}, {result['rounds']} interleaved rounds by {result['clock']} time; "
        "ratios are medians of the rounds "
        f"[95 % interval of the median]. DropBlock: block {BLOCK}, keep_prob {KEEP_PROB}, groups 3 and 4.",
        "",
        "| training step | ms, median [quartiles] | / torchvision's | / without DropBlock | memory of a step, MB |",
        "|---" * 5 + "|",
    ]
    for row in result["rows"]:
        time = "{median:.0f} [{quarter:.0f}, {three_quarters:.0f}]".format(**row["milliseconds"])
        theirs = "" if row["name"] == THEIRS else ratio_text(row[f"to {THEIRS}"])
        ours = ratio_text(row[f"to {OURS}"]) if row["name"] == WITH_DROPBLOCK else ""
        lines.append(f"| {row['name']} | {time} | {theirs} | {ours} | {row['bytes'] / 1e6:.0f} |")
    disturbed = max(result["share_of_others"])
    lines += ["", f"Other processes took up to {100 * disturbed:.0f} % of the processors in a counted round."]
    return "\n".join(lines)


def ratio_text(ratio: dict[str, Any]) -> str:
    low, high = ratio["interval"]
    return f"{ratio['median']:.3f} [{low:.3f}, {high:.3f}]"
