"""Class-activation maps of runs: python -m scripts.cam RUN [RUN ...] [--images 8] [--out FILE]

Evidence for the class of an image in the last group of a network (Zhou et al. 2016), one row a run, as in Figure 6 of
the paper: give a run without and one with DropBlock, of the same data. The number at each row is the share of the map
above half of its maximum, averaged over the whole test set: larger where several regions are used.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs.checking import UserError
from data import Data
from experiment.source import NetworkSource
from experiment.trained import opened, trained
from scripts.entry import folder, guarded, parser_of


@torch.no_grad()
def activation_maps(model: Any, images: Tensor, labels: Tensor) -> Tensor:
    """(N, h, w): the evidence for the class of each image at every position of the last group, from 0 to 1."""
    evidence = torch.einsum("nchw,nc->nhw", model.features(images), model.fc.weight[labels]).clamp(min=0)
    return evidence / evidence.amax((1, 2), keepdim=True).clamp(min=1e-12)


def share_above_half(model: nn.Module, data: Data) -> float:
    """Mean share of a map above half of its maximum, over the test set."""
    shares = [(activation_maps(model, b.images, b.labels) > 0.5).float().mean((1, 2)) for b in data.test.epoch(0)]
    return float(torch.cat(shares).mean())


def one_of_each_class(data: Data, number: int) -> tuple[Tensor, Tensor]:
    """The first test image of each of the first classes, and the labels."""
    chosen: dict[int, Tensor] = {}
    for batch in data.test.epoch(0):
        for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
            chosen.setdefault(label, image)
        if len(chosen) == data.num_classes:
            break
    labels = sorted(chosen)[:number]
    return torch.stack([chosen[label] for label in labels]), torch.tensor(labels)


def draw(paths: list[Path], root: str | None, number: int, out: Path) -> None:
    """Draw the images, and below them a row for every run.

    Raises:
        UserError: for runs of another task, of different data, or of a network without `features` and `fc`.
    """
    device = torch.device("cpu")
    runs = [opened(NetworkSource(run=str(path), data_root=root, workers=0), device) for path in paths]
    for path, (plan, _, data) in zip(paths, runs, strict=True):
        if data.task != "classification":
            raise UserError(f"{path}: a run of {data.task}; class-activation maps are of classification")
        if plan.model.library is not None:
            raise UserError(f"{path}: the classifier of a network of {plan.model.library} is not known here")
    if len({data.fingerprint for _, _, data in runs}) > 1:
        raise UserError("these runs have seen different data: their maps cannot stand side by side")
    data = runs[0][2]
    images, labels = one_of_each_class(data, number)

    # A grid of small pictures, with space for the names of the runs at the left.
    width, height = 1.35 * len(labels) + 2.0, 1.4 * (len(runs) + 1) + 0.2
    margins = {"wspace": 0.06, "hspace": 0.06, "left": 2.0 / width, "right": 0.99}
    figure, grid = plt.subplots(len(runs) + 1, len(labels), figsize=(width, height), squeeze=False, gridspec_kw=margins)
    for axes in grid.flat:
        axes.set_axis_off()

    # The images, each in its own range: they come normalised.
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    shown = ((images - low) / (high - low)).permute(0, 2, 3, 1)
    for i, axes in enumerate(grid[0]):
        axes.imshow(shown[i].squeeze(-1).numpy(), cmap="gray")
        axes.set_title(data.classes[int(labels[i])], fontsize=9)

    # The maps of each run over the images in grey.
    names = [plan.variant for plan, _, _ in runs]
    if len(set(names)) < len(names):  # seeds of one configuration, or networks
        names = [str(path) for path in paths]
    for path, name, (plan, payload, _), row in zip(paths, names, runs, grid[1:], strict=True):
        model, _ = trained(plan, payload, data, device)
        if not (hasattr(model, "features") and hasattr(model, "fc")):
            raise UserError(f"{path}: {plan.model.name} has no `features` and `fc`, so its maps are not known")
        maps = activation_maps(model, images, labels)[:, None]
        maps = F.interpolate(maps, size=images.shape[2:], mode="bilinear")[:, 0]
        for i, axes in enumerate(row):
            axes.imshow(shown[i].mean(-1).numpy(), cmap="gray")
            axes.imshow(maps[i].numpy(), cmap="inferno", alpha=0.62, vmin=0, vmax=1)
        above = f"{100 * share_above_half(model, data):.1f} % of the map\nabove half its maximum"
        label = f"{name.replace('-', chr(10))}\n{above}"
        row[0].text(-0.08, 0.5, label, transform=row[0].transAxes, ha="right", va="center", fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)
    plt.close(figure)


@guarded
def main(arguments: list[str]) -> int:
    """Arguments in, exit code out: 0, or 2 with one line."""
    parser = parser_of(__doc__)
    parser.add_argument("runs", type=folder, nargs="+", metavar="RUN", help="a run directory")
    parser.add_argument("--images", type=int, default=8, help="how many, each of another class")
    parser.add_argument("--data-root", help="where the data are")
    parser.add_argument("--out", type=Path, help="another file than cam.png in the directory of the last RUN")
    given = parser.parse_args(arguments)
    if given.images < 1:
        raise UserError(f"--images {given.images}: must be at least 1")
    out = given.out or given.runs[-1] / "cam.png"
    draw(given.runs, given.data_root, given.images, out)
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
