"""Pictures of what a trained network predicts: python -m scripts.predictions run=outputs/.../seed-1

    run=FOLDER          the last checkpoint of a run; which=best takes the one chosen on val
    checkpoint=FILE     a checkpoint that train.py wrote
    split=test          test or val
    images=6            how many, spread evenly over the split
    samples=30          the mean prediction over the masks of this many passes, see evaluate.py (segmentation)
    min_score=0.3       detections above it are drawn
    out=FILE            PNG; default: predictions-SPLIT.png in the run directory
    device, data_root, download: those of train.py

One column an image. Classification: the image with its class and the predicted one. Segmentation: image, truth,
prediction, the pixels where the two differ, and the entropy of the prediction, white where all classes are alike.
Detection: the true boxes, and below them the detections with scores.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
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

from configs.checking import UserError, one_of
from configs.command_line import read_values
from data import Data
from engine.distributed import Ranks, find_device
from engine.tasks import Detection
from engine.tasks.pictures import as_pixels, class_colours
from engine.tasks.segmentation import IGNORE, full_size
from experiment.build import build_task
from experiment.evaluation import Finished, own_layers
from experiment.sampling import Sampling
from experiment.source import NetworkSource
from experiment.trained import opened, trained
from scripts.entry import guarded

ERRORS = {"right": (255, 255, 255), "wrong": (214, 39, 40), "not counted (white in the truth)": (170, 170, 170)}
MANY = 24  # classes that a legend shows


@dataclass
class Request(NetworkSource):
    """The arguments of this program."""

    split: str = "test"
    images: int = 6
    min_score: float = 0.3
    samples: int | None = None
    device: str = "auto"
    out: str | None = None


def spread_over(loader: Any, count: int, batch_size: int) -> list[Any]:
    """`count` samples of a split at even distances, as batches of one; only the batches that hold one are loaded."""
    places = [number * loader.num_samples // count for number in range(min(count, loader.num_samples))]
    found = []
    for number, inside in groupby(places, lambda place: place // batch_size):
        batch = next(iter(loader.epoch(0, number)))
        parts = batch.split(batch.size)
        found += [parts[min(place % batch_size, batch.size - 1)] for place in inside]
    return found


@torch.no_grad()
def averaged(finished: Finished, batches: Sequence[Any], samples: int) -> Callable[[Tensor], Tensor]:
    """A function that gives the mean prediction over masks for the images of these batches, as logits."""
    network, control = finished.network(*own_layers(finished, samples))
    sampling = Sampling(finished.task, control, samples)
    logs = {id(batch.images): sampling.mean_prediction(network, batch)[0].log() for batch in batches}
    return lambda images: logs[id(images)]


def draw_classification(column: list[Axes], network: nn.Module, batch: Any, data: Data, min_score: float) -> None:
    """The image, titled by its class and the predicted one; red where they differ."""
    probabilities = network(batch.images).float().softmax(1)[0]
    best, truth = int(probabilities.argmax()), int(batch.labels[0])
    show(column[0], as_pixels(batch.images)[0])
    text = f"{data.classes[truth]}\n{data.classes[best]} ({100 * float(probabilities[best]):.0f} %)"
    column[0].set_title(text, fontsize=8, color="black" if best == truth else "crimson")


def draw_segmentation(column: list[Axes], network: nn.Module, batch: Any, data: Data, min_score: float) -> None:
    """Image, true classes, predicted classes, the pixels where they differ, and the entropy of the prediction."""
    mask = batch.masks.cpu()
    logits = full_size(network(batch.images).float(), mask.shape[1:]).cpu()
    predicted, logs = logits.argmax(1), logits.log_softmax(1)
    counted = mask != IGNORE
    right = ((mask == predicted) & counted).sum() / counted.sum().clamp(min=1)
    column[0].set_title(f"{100 * float(right):.1f} % of pixels right", fontsize=8)

    # The square is padded on the right and at the bottom: rows and columns end with the last pixel that has a class.
    ends = []
    for axis, side in enumerate(mask.shape[1:]):
        labelled = torch.nonzero(counted[0].any(1 - axis))
        ends.append(int(labelled.max()) + 1 if len(labelled) else side)
    parts = (as_pixels(batch.images), class_colours(mask), class_colours(predicted), error_colours(mask, predicted))
    for axes, pixels in zip(column[:4], parts, strict=True):
        show(axes, pixels[0, :, : ends[0], : ends[1]])
    # From black, sure of a class, to white, all classes alike.
    entropy = -(logs.exp() * logs).sum(1)[0, : ends[0], : ends[1]] / math.log(logits.shape[1])
    column[4].imshow(entropy.numpy(), cmap="magma", vmin=0, vmax=1)
    column[4].set_axis_off()


def error_colours(mask: Tensor, predicted: Tensor) -> Tensor:
    """Classes (N, H, W) as (N, 3, H, W) uint8: red where they differ, white where not, grey without a true class."""
    colours = torch.tensor(list(ERRORS.values()), dtype=torch.uint8)
    kind = torch.where(mask == IGNORE, 2, (mask != predicted).long())
    return colours[kind].permute(0, 3, 1, 2)


def draw_detection(column: list[Axes], network: nn.Module, batch: Any, data: Data, min_score: float) -> None:
    """True boxes, and below them the detections above the score. A colour is a class."""
    found = Detection(data.classes, min_score).detections(network, batch)[0]
    real = batch.labels[0] >= 0
    truth = (batch.boxes[0][real], batch.labels[0][real], [""] * int(real.sum()))
    detected = (found.boxes, found.labels, [f" {score:.2f}" for score in found.scores.tolist()])
    pixels = as_pixels(batch.images)[0]
    for axes, (boxes, labels, scores) in zip(column, (truth, detected), strict=True):
        show(axes, pixels)
        axes.set_title(f"{len(boxes)} object{'s' * (len(boxes) != 1)}", fontsize=8)
        for (left, top, right, bottom), label, score in zip(boxes.tolist(), labels.tolist(), scores, strict=True):
            colour = plt.get_cmap("tab10")(label % 10)
            size = (right - left, bottom - top)
            axes.add_patch(Rectangle((left, top), *size, fill=False, edgecolor=colour, linewidth=1.4))
            # The name stands above the box where there is room, else inside.
            side = "bottom" if top > pixels.shape[1] / 20 else "top"
            frame = {"facecolor": colour, "edgecolor": "none", "pad": 0.6}
            name = f"{data.classes[label]}{score}"
            axes.text(left, top, name, fontsize=5.5, color="white", bbox=frame, va=side, clip_on=True)


def show(axes: Axes, pixels: Tensor) -> None:
    """(3, H, W) uint8."""
    axes.imshow(pixels.permute(1, 2, 0).cpu().numpy())
    axes.set_axis_off()


# Task -> (titles of the rows of its picture, a function that fills a column of them).
PICTURES: dict[str, tuple[list[str], Callable[[list[Axes], nn.Module, Any, Data, float], None]]] = {
    "classification": (["true class,\npredicted"], draw_classification),
    "segmentation": (["image", "truth", "prediction", "error", "entropy"], draw_segmentation),
    "detection": (["truth", "detections"], draw_detection),
}


@torch.no_grad()
def draw(network: nn.Module, data: Data, batches: list[Any], min_score: float, title: str, out: Path) -> None:
    """Write the picture of these batches of one.

    Raises:
        UserError: for a task without an entry in PICTURES.
    """
    if data.task not in PICTURES:
        raise UserError(f"task {data.task}: no pictures of its predictions; there are for {', '.join(PICTURES)}")

    # A column an image. Classes of masks have colours, which a legend below the picture names.
    rows, draw_column = PICTURES[data.task]
    side = 2.9 if data.task == "detection" else 1.9
    legend = data.task == "segmentation" and data.num_classes <= MANY
    figure, grid = plt.subplots(
        len(rows), len(batches), squeeze=False, layout="constrained",
        figsize=(side * len(batches) + 0.8, side * len(rows) + 0.5 + 0.5 * legend),
    )  # fmt: skip
    left = {"xycoords": "axes fraction", "rotation": 90, "ha": "right", "va": "center", "annotation_clip": False}
    for axes, row in zip(grid[:, 0], rows, strict=True):
        axes.annotate(row, (-0.06, 0.5), **left)
    for column, batch in zip(grid.T, batches, strict=True):
        draw_column(list(column), network, batch, data, min_score)
    figure.suptitle(title, fontsize=9)
    if legend:
        colours = class_colours(torch.arange(data.num_classes).view(1, 1, -1))[0, :, 0].T / 255
        patches = [Patch(color=c.tolist(), label=name) for c, name in zip(colours, data.classes, strict=True)]
        for label, error in ERRORS.items():
            patches.append(Patch(facecolor=f"#{bytes(error).hex()}", edgecolor="0.6", label=label))
        figure.legend(
            handles=patches, loc="outside lower center", ncols=max(1, int(figure.get_figwidth() / 1.2)), fontsize=7
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=140)
    plt.close(figure)


@guarded
def main(arguments: list[str]) -> int:
    """Arguments in, exit code out: 0, or 2 with one line."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    request = read_values(arguments, Request)
    request.check()
    one_of("split", request.split, ("test", "val"))
    if request.images < 1:
        raise UserError(f"images={request.images}: must be at least 1")

    # The network in evaluation mode, and the split it was trained beside.
    source = NetworkSource(**{field.name: getattr(request, field.name) for field in fields(NetworkSource)})
    source.workers = 0  # a few batches are read sooner than processes are started
    device = find_device(request.device)
    plan, payload, data = opened(source, device)
    loader = getattr(data, request.split)
    if loader is None:
        raise UserError(f"split={request.split}: {plan.data.name} was used without one")
    network: Any = trained(plan, payload, data, device)[0]

    # The title says which network was trained on what, and from where in the training it is.
    batches = spread_over(loader, request.images, plan.recipe.eval_batch_size)
    trained_on = f"{plan.variant} ({plan.model.name}) on {plan.data.title or plan.data.name}"
    title = f"{trained_on}, {request.split}; step {payload['step']:,}"
    near = Path(request.run) if request.run else Path(request.checkpoint or "").parent
    out = Path(request.out) if request.out else near / f"predictions-{request.split}.png"
    if request.samples is not None:
        if data.task != "segmentation":
            raise UserError(f"samples={request.samples}: for pictures of segmentation, not of {data.task}")
        finished = Finished(plan, payload, data, build_task(plan, data), device, Ranks())
        network = averaged(finished, batches, request.samples)
        title += f"; mean of {request.samples} masks"
    draw(network, data, batches, request.min_score, title, out)
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
