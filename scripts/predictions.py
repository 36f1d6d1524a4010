"""What a finished network makes of images: python scripts/predictions.py run=outputs/.../seed-1

    run=FOLDER          the last checkpoint of a run; which=best takes the one chosen on val
    checkpoint=FILE     a checkpoint that train.py wrote
    split=test          test or val
    images=6            how many, spread evenly over the split
    min_score=0.3       detections above it are drawn
    out=FILE            PNG; default: predictions-SPLIT.png in the run directory
    device, data_root, download: as in train.py

One column an image. Classification: the image with its class and the predicted one. Segmentation: image, truth,
prediction, and the pixels where the two differ. Detection: the true boxes, and below them the detections with scores.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs.checking import UserError, one_of
from configs.command_line import read_values
from configs.plan import Plan
from data import Data
from engine.distributed import find_device
from engine.tasks import Detection
from engine.tasks.pictures import as_pixels, class_colours
from engine.tasks.segmentation import IGNORE, full_size
from experiment.source import NetworkSource
from experiment.trained import opened, trained
from scripts.entry import guarded

ERRORS = {"right": (255, 255, 255), "wrong": (214, 39, 40), "not counted (white in the truth)": (170, 170, 170)}
MANY = 24  # classes that a legend has room for
Rows = list[str]  # titles of the rows of a picture


@dataclass
class Request(NetworkSource):
    """The arguments of this program."""

    split: str = "test"
    images: int = 6
    min_score: float = 0.3
    device: str = "auto"
    out: str | None = None


def spread_over(loader: Any, count: int, batch_size: int) -> list[Any]:
    """`count` samples of a split at even distances, as batches of one.

    Only the batches that hold one of them are loaded.
    """
    places = [number * loader.num_samples // count for number in range(min(count, loader.num_samples))]
    found = []
    for number, inside in groupby(places, lambda place: place // batch_size):
        batch = next(iter(loader.epoch(0, number)))
        parts = batch.split(batch.size)
        found += [parts[min(place % batch_size, batch.size - 1)] for place in inside]
    return found


def draw_classification(column: list[Axes], network: nn.Module, batch: Any, data: Data) -> None:
    """The image, titled by its class and the predicted one; red where they differ."""
    probabilities = network(batch.images).float().softmax(1)[0]
    best, truth = int(probabilities.argmax()), int(batch.labels[0])
    show(column[0], as_pixels(batch.images)[0])
    text = f"{data.classes[truth]}\n{data.classes[best]} ({100 * float(probabilities[best]):.0f} %)"
    column[0].set_title(text, fontsize=8, color="black" if best == truth else "crimson")


def draw_segmentation(column: list[Axes], network: nn.Module, batch: Any, data: Data) -> None:
    """Image, true classes, predicted classes, and where they differ (red; gray: has no class)."""
    mask = batch.masks.cpu()
    predicted = full_size(network(batch.images).float(), mask.shape[1:]).argmax(1).cpu()
    rows, columns = seen(mask[0])
    parts = (
        as_pixels(batch.images)[0],
        class_colours(mask)[0],
        class_colours(predicted)[0],
        differences(mask, predicted),
    )
    for axes, pixels in zip(column, parts, strict=True):
        show(axes, pixels[:, :rows, :columns])
    counted = mask != IGNORE
    right = ((mask == predicted) & counted).sum() / counted.sum().clamp(min=1)
    column[0].set_title(f"{100 * float(right):.1f} % of pixels right", fontsize=8)


def differences(mask: Tensor, predicted: Tensor) -> Tensor:
    """(3, H, W) uint8 of classes (1, H, W): red where they differ, white where not, gray where there is no class."""
    colours = torch.tensor(list(ERRORS.values()), dtype=torch.uint8)
    kind = torch.where(mask == IGNORE, 2, (mask != predicted).long())[0]
    return colours[kind].permute(2, 0, 1)


def seen(mask: Tensor) -> tuple[int, int]:
    """Rows and columns up to the last pixel with a class: the rest of the square is padding."""
    labelled = mask != IGNORE
    sides = [torch.nonzero(labelled.any(1 - axis)) for axis in (0, 1)]
    return tuple(int(places.max()) + 1 if len(places) else side for places, side in zip(sides, mask.shape, strict=True))  # type: ignore[return-value]


def draw_detection(column: list[Axes], network: nn.Module, batch: Any, data: Data, min_score: float) -> None:
    """True boxes; detections above the score. A colour is a class."""
    found = Detection(data.classes, min_score).detections(network, batch)[0]
    real = batch.labels[0] >= 0
    pixels = as_pixels(batch.images)[0]
    scores = [f" {score:.2f}" for score in found.scores.tolist()]
    parts = ((batch.boxes[0][real], batch.labels[0][real], [""] * int(real.sum())), (found.boxes, found.labels, scores))
    for axes, (boxes, labels, texts) in zip(column, parts, strict=True):
        show(axes, pixels)
        axes.set_title(f"{len(boxes)} object{'s' * (len(boxes) != 1)}", fontsize=8)
        for (left, top, right, bottom), label, text in zip(boxes.tolist(), labels.tolist(), texts, strict=True):
            colour = plt.get_cmap("tab10")(label % 10)
            size = (right - left, bottom - top)
            axes.add_patch(Rectangle((left, top), *size, fill=False, edgecolor=colour, linewidth=1.4))
            side = "bottom" if top > pixels.shape[1] / 20 else "top"  # above the box, where there is room
            box = {"facecolor": colour, "edgecolor": "none", "pad": 0.6}
            axes.text(
                left,
                top,
                f"{data.classes[label]}{text}",
                fontsize=5.5,
                color="white",
                bbox=box,
                va=side,
                clip_on=True,
            )


def show(axes: Axes, pixels: Tensor) -> None:
    """(3, H, W) uint8."""
    axes.imshow(pixels.permute(1, 2, 0).cpu().numpy())
    axes.set_axis_off()


ROWS: dict[str, Rows] = {
    "classification": ["true class,\npredicted"],
    "segmentation": ["image", "truth", "prediction", "error"],
    "detection": ["truth", "detections"],
}


@torch.no_grad()
def draw(network: nn.Module, data: Data, batches: list[Any], min_score: float, title: str, out: Path) -> None:
    """Write the picture of these batches of one.

    Raises:
        UserError: for a task without an entry in ROWS.
    """
    if data.task not in ROWS:
        raise UserError(f"task {data.task}: no pictures of its predictions; there are for {', '.join(ROWS)}")
    rows = ROWS[data.task]
    drawers: dict[str, Callable[..., None]] = {
        "classification": draw_classification,
        "segmentation": draw_segmentation,
        "detection": partial(draw_detection, min_score=min_score),
    }
    side = 2.9 if data.task == "detection" else 1.9
    legend = data.task == "segmentation" and data.num_classes <= MANY
    figure, grid = plt.subplots(
        len(rows), len(batches), squeeze=False, layout="constrained",
        figsize=(side * len(batches) + 0.8, side * len(rows) + 0.5 + 0.5 * legend),
    )  # fmt: skip
    for axes, row in zip(grid[:, 0], rows, strict=True):
        axes.annotate(
            row, (-0.06, 0.5), xycoords="axes fraction", rotation=90, ha="right", va="center", annotation_clip=False
        )
    for column, batch in zip(grid.T, batches, strict=True):
        drawers[data.task](list(column), network, batch, data)
    figure.suptitle(title, fontsize=9)
    if legend:
        colours = class_colours(torch.arange(data.num_classes).view(1, 1, -1))[0, :, 0].T / 255
        patches = [Patch(color=c.tolist(), label=name) for c, name in zip(colours, data.classes, strict=True)]
        for label, error in ERRORS.items():
            patches.append(Patch(facecolor=f"#{bytes(error).hex()}", edgecolor="0.6", label=label))
        figure.legend(handles=patches, loc="outside lower center", ncols=min(12, len(patches)), fontsize=7)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=140)
    plt.close(figure)


def titled(plan: Plan, payload: dict[str, Any], split: str) -> str:
    """What was trained on what, how long."""
    return (
        f"{plan.variant} ({plan.model.name}) on {plan.data.title or plan.data.name}, {split}; step {payload['step']:,}"
    )


@guarded
def main(arguments: list[str]) -> int:
    """The process: arguments in, exit code out."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    request = read_values(arguments, Request)
    request.check()
    one_of("split", request.split, ("test", "val"))
    if request.images < 1:
        raise UserError(f"images={request.images}: must be at least 1")
    source = NetworkSource(**{field.name: getattr(request, field.name) for field in fields(NetworkSource)})
    source.workers = 0  # a few batches are read sooner than processes are started
    device = find_device(request.device)
    plan, payload, data = opened(source, device)
    loader = getattr(data, request.split)
    if loader is None:
        raise UserError(f"split={request.split}: {plan.data.name} was used without one")
    network, _ = trained(plan, payload, data, device)
    batches = spread_over(loader, request.images, plan.recipe.eval_batch_size)
    name = f"predictions-{request.split}.png"
    near = Path(request.run) if request.run else Path(request.checkpoint or "").parent
    out = Path(request.out) if request.out else near / name
    draw(network, data, batches, request.min_score, titled(plan, payload, request.split), out)
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
