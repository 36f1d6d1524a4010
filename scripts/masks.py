"""A picture of the masks of each layer: python -m scripts.masks [--out docs/results/masks.png]

A photograph goes through a ResNet-50 as it is initialised; its maps at the end of group 3 are the input of the layers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from torch import Tensor, nn

from dropblock import DropBlock2d, DropLayer, Dropout, DropPath, SpatialDropout
from models import build_model
from scripts.entry import guarded, parser_of

GROUP, SIDE, CHANNELS = 3, 448, 2
DROPPED, KEPT, INK = "#d9d4cc", "#31506f", "#222222"
MAPS = "magma"
SEEDS = 10000  # tried until something is dropped that is shown


def photograph(side: int) -> Tensor:
    """The middle of a photograph that scikit-learn carries, (1, 3, side, side) in [0, 1]."""
    from sklearn.datasets import load_sample_images

    image = torch.from_numpy(np.array(load_sample_images().images[1])).permute(2, 0, 1)[None] / 255
    left = (image.shape[3] - image.shape[2]) // 2
    square = image[..., left : left + image.shape[2]]
    return nn.functional.interpolate(square, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)


def maps_of(model: nn.Module, image: Tensor, group: int) -> Tensor:
    """The output of a group of a ResNet, (1, C, H, W). BatchNorm normalises by this image: no statistics are needed."""
    found: list[Tensor] = []
    handle = model.get_submodule(f"layer{group}").register_forward_hook(lambda *call: found.append(call[2]))
    with torch.no_grad():
        model.train()(image)
    handle.remove()
    return found[0]


def distinct_channels(maps: Tensor, number: int) -> list[int]:
    """Channels with much structure, each unlike those before it."""
    flat = maps[0].flatten(1)
    flat = flat - flat.mean(1, keepdim=True)
    strength, unit = flat.norm(dim=1), nn.functional.normalize(flat, dim=1)
    chosen = [int(strength.argmax())]
    while len(chosen) < number:
        likeness = (unit @ unit[chosen].T).abs().amax(1)
        chosen.append(int((strength * (1 - likeness)).argmax()))
    return chosen


def drop_visibly(layer: DropLayer, shape: torch.Size, shown: list[int]) -> Tensor:
    """The mask of the layer, bool, for the first seed that drops a part of the channels shown.

    Drop path drops all channels or none: there any drop counts.
    """
    for seed in range(SEEDS):
        layer.set_mask_seed(seed)
        kept = layer(torch.ones(shape)) > 0
        gone = 1 - kept[0, shown].flatten(1).float().mean(1)
        if gone.max() > 0 and (gone.min() < 1 or isinstance(layer, DropPath)):
            return kept
    raise ValueError(f"{type(layer).__name__} drops nothing that would be seen: choose a lower keep_prob")


def draw(image: Tensor, maps: Tensor, keep_prob: float, out: Path) -> None:
    """One column a layer: its mask of the first channel, then what is left of each channel."""
    # From the smallest to the largest thing that is dropped as one.
    layers: list[tuple[str, str, DropLayer]] = [
        ("dropout", "single units", Dropout(keep_prob=keep_prob)),
        ("DropBlock, block 3", "3x3 squares", DropBlock2d(block_size=3, keep_prob=keep_prob)),
        ("DropBlock, block 7", "7x7 squares", DropBlock2d(block_size=7, keep_prob=keep_prob)),
        ("SpatialDropout", "whole channels", SpatialDropout(keep_prob=keep_prob)),
        ("drop path", "all channels of a sample", DropPath(keep_prob=keep_prob)),
    ]
    shown = distinct_channels(maps, CHANNELS)
    figure, grid = plt.subplots(
        CHANNELS + 1, len(layers) + 1, figsize=(2.05 * (len(layers) + 1), 2.05 * (CHANNELS + 1) + 0.85),
        gridspec_kw={"wspace": 0.07, "hspace": 0.07, "left": 0.045, "right": 0.99, "top": 0.9, "bottom": 0.07},
    )  # fmt: skip
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)

    # The first column is the input: the photograph, and the channels as they are.
    grid[0, 0].imshow(image[0].permute(1, 2, 0).numpy())
    masks = [drop_visibly(layer, maps.shape, shown) for _, _, layer in layers]
    for i, kept in enumerate(masks, start=1):
        colours = ListedColormap([DROPPED, KEPT])
        grid[0, i].imshow(kept[0, shown[0]].numpy(), cmap=colours, vmin=0, vmax=1)
    for axes, (name, together, *_) in zip(grid[0], [("input", "a photograph"), *layers], strict=True):
        axes.text(0.5, 1.17, name, transform=axes.transAxes, ha="center", fontsize=11.5, color=INK, weight="bold")
        axes.text(0.5, 1.05, together, transform=axes.transAxes, ha="center", fontsize=9, color="#666666")

    # One row a channel, colours from its dark to its bright end; dropped units in grey.
    everything = torch.ones(maps.shape, dtype=torch.bool)
    for row, channel in enumerate(shown, start=1):
        values = maps[0, channel]
        low, high = float(values.quantile(0.02)), float(values.quantile(0.995))
        grid[row, 0].set_ylabel(f"channel {channel}", fontsize=10, color=INK)
        for axes, kept in zip(grid[row], [everything, *masks], strict=True):
            left = np.ma.masked_array(values.numpy(), ~kept[0, channel].numpy())
            axes.imshow(left, cmap=plt.get_cmap(MAPS).with_extremes(bad=DROPPED), vmin=low, vmax=high)

    height, width = maps.shape[2:]
    caption = (
        f"Maps of {height}x{width} units at the end of group {GROUP} of an untrained ResNet-50. Every layer has "
        f"keep_prob {keep_prob:g} and the first seed that drops something shown here.\n"
        "Grey: dropped. Top row: the mask of the channel below it. Photograph: vultilion, CC BY 2.0."
    )
    figure.text(0.045, 0.012, caption, fontsize=9, color=INK)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)


@guarded
def main(arguments: list[str]) -> int:
    """Arguments in, exit code out: 0, or 2 with one line."""
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=Path, default=Path("masks.png"))
    parser.add_argument("--keep-prob", type=float, default=0.75, help="between 0 and 1, both excluded (0.75)")
    given = parser.parse_args(arguments)
    if not 0 < given.keep_prob < 1:
        raise ValueError(f"--keep-prob {given.keep_prob}: must lie between 0 and 1")
    torch.manual_seed(0)
    image = photograph(SIDE)
    model = build_model("resnet50", num_classes=10, zero_gamma=True)
    draw(image, maps_of(model, image - image.mean((2, 3), keepdim=True), GROUP), given.keep_prob, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
