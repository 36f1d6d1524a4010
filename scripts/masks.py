"""Pictures of the regularizers: python -m scripts.masks [--out docs/results/masks.png]

The masks of each layer: a photograph goes through a ResNet-50 as it is initialised; its maps at the end of group 3 are
the input of the layers. With --images: what becomes of a photograph itself, by each regularizer of images and batches.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from torch import Tensor, nn

from configs.groups import declared
from data import ClassificationBatch
from data.batch_regularizers import BATCH_REGULARIZERS
from data.draws import Draws
from data.image_regularizers import IMAGE_REGULARIZERS
from dropblock import DropBlock2d, DropLayer, Dropout, DropPath, SpatialDropout
from engine.seeding import mix
from models import build_model
from scripts.entry import guarded, parser_of

GROUP, SIDE, CHANNELS = 3, 448, 2
DROPPED, KEPT, INK = "#d9d4cc", "#31506f", "#222222"
MAPS = "magma"
SEEDS = 10000  # tried until something is dropped that is shown
# Of the picture of images: its side, draws of each regularizer, columns, and the least change that is shown.
IMAGE_SIDE, DRAWS, COLUMNS, LEAST = 224, 2, 5, 0.03
CREDIT = "Photographs: vultilion and danielbuechele, CC BY 2.0."


def photograph(side: int, file: Path | None = None, number: int = 1) -> Tensor:
    """The middle of a photograph, (1, 3, side, side) in [0, 1]: of a file, or one of the two that scikit-learn has."""
    if file is not None:
        from PIL import Image, ImageOps

        with Image.open(file) as opened:
            pixels = np.array(ImageOps.exif_transpose(opened).convert("RGB"))
    else:
        from sklearn.datasets import load_sample_images

        pixels = np.array(load_sample_images().images[number])
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    height, width = image.shape[2:]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = image[..., top : top + edge, left : left + edge]
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


def changed_images(name: str, images: Tensor) -> list[Tensor]:
    """The first of two images in [0, 1] as a regularizer of its kind changes it: the first draws that one can see."""
    options = {option: of["default"] for option, of in declared(name).options.items() if of["default"] is not None}
    change = (IMAGE_REGULARIZERS | BATCH_REGULARIZERS)[name](**options)
    mean, std = images.mean((0, 2, 3), keepdim=True), images.std((0, 2, 3), keepdim=True)
    normalized = (images - mean) / std

    def drawn(seed: int) -> Tensor:
        if name in BATCH_REGULARIZERS:
            batch = ClassificationBatch(normalized, torch.arange(2), torch.arange(2))
            return change(batch, partial(mix, seed)).images[:1] * std + mean
        if hasattr(change, "on_batch"):  # (B, H, W, C), normalized, in place
            changed = change.on_batch(normalized[:1].permute(0, 2, 3, 1).contiguous(), seed, 0, np.zeros(1, np.int64))
            return changed.permute(0, 3, 1, 2) * std + mean
        pixels = (images[0].permute(1, 2, 0) * 255).round().byte().numpy()
        changed = change.on_image(pixels, Draws(np.zeros(0), seed, 0, 0))
        return torch.from_numpy(changed).permute(2, 0, 1)[None] / 255

    found: list[Tensor] = []
    for seed in range(SEEDS):
        if len(found) == DRAWS:
            break
        outcome = drawn(seed).clamp(0, 1)
        if (outcome - images[:1]).abs().mean() > LEAST:
            found.append(outcome)
    return found


def draw_images(images: Tensor, out: Path, credit: str = "") -> None:
    """Two photographs, (2, 3, side, side) in [0, 1], and the first of them after each regularizer of images."""
    hidden = [name for name in BATCH_REGULARIZERS if "places" in declared(name).options]  # these mix maps
    names = [*IMAGE_REGULARIZERS, *(name for name in BATCH_REGULARIZERS if name not in hidden)]
    cells: list[tuple[str, str, list[Tensor]]] = [("input", "the other image below", list(images[:, None]))]
    for name in names:
        cells.append((declared(name).label or name, f"regularizer={name}", changed_images(name, images)))

    # Blocks of so many columns; in inches, a band for the names above the draws of each.
    edge, gap, band, foot = 2.0, 0.08, 0.55, 0.4
    blocks = -(-len(cells) // COLUMNS)
    width, height = COLUMNS * (edge + gap) + gap, blocks * (band + DRAWS * (edge + gap)) + foot
    figure = plt.figure(figsize=(width, height))
    for number, (label, typed, outcomes) in enumerate(cells):
        block, column = divmod(number, COLUMNS)
        left, top = gap + column * (edge + gap), height - block * (band + DRAWS * (edge + gap)) - band
        for row, outcome in enumerate(outcomes):
            bottom = top - (row + 1) * (edge + gap) + gap
            axes = figure.add_axes((left / width, bottom / height, edge / width, edge / height))
            axes.imshow(outcome[0].permute(1, 2, 0).numpy())
            axes.axis("off")
        middle = (left + edge / 2) / width
        figure.text(middle, (top + 0.27) / height, label, ha="center", fontsize=11.5, color=INK, weight="bold")
        figure.text(middle, (top + 0.08) / height, typed, ha="center", fontsize=8, color="#666666")
    caption = f"Each with the defaults of its file: the first {DRAWS} draws whose change can be seen. {credit}"
    figure.text(gap / width, 0.12 / height, caption, fontsize=9, color=INK)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=90)
    plt.close(figure)


@guarded
def main(arguments: list[str]) -> int:
    """Arguments in, exit code out: 0, or 2 with one line."""
    parser = parser_of(__doc__)
    parser.add_argument("--out", type=Path, default=Path("masks.png"))
    parser.add_argument("--keep-prob", type=float, default=0.75, help="between 0 and 1, both excluded (0.75)")
    parser.add_argument("--images", action="store_true", help="the regularizers of images and batches instead")
    parser.add_argument("--photographs", type=Path, nargs="+", metavar="FILE", help="one of your own; --images: two")
    given = parser.parse_args(arguments)
    files = given.photographs or [None]
    if len(files) != 1 + (given.images and given.photographs is not None):
        raise ValueError(f"--photographs: give {'two files' if given.images else 'one file'}")
    if given.images:
        others = [
            photograph(IMAGE_SIDE, file, number) for file, number in zip([files[0], files[-1]], (1, 0), strict=True)
        ]
        draw_images(torch.cat(others), given.out, "" if given.photographs else CREDIT)
        return 0
    if not 0 < given.keep_prob < 1:
        raise ValueError(f"--keep-prob {given.keep_prob}: must lie between 0 and 1")
    torch.manual_seed(0)
    image = photograph(SIDE, files[0])
    model = build_model("resnet50", num_classes=10, zero_gamma=True)
    draw(image, maps_of(model, image - image.mean((2, 3), keepdim=True), GROUP), given.keep_prob, given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
