"""DropBlock in a U-Net of one's own: the lines that end in `# +` were added to it. python examples/own_unet.py

Needs torch alone, and of this project the library `dropblock`. The images are discs under noise.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # not needed where dropblock is installed

from dropblock import DropBlock2d, KeepProbSchedule, LayerControl, drops_text, install_into, suggest  # +


def unit(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class UNet(nn.Module):
    """Four scales, the encoder's maps joined to the decoder's: (N, 1, H, W) -> logits, (N, 1, H, W)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        w = width
        self.encoder = nn.ModuleList([unit(1, w), unit(w, 2 * w), unit(2 * w, 4 * w), unit(4 * w, 8 * w)])
        self.decoder = nn.ModuleList([unit(12 * w, 4 * w), unit(6 * w, 2 * w), unit(3 * w, w)])
        self.head = nn.Conv2d(w, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps: list[Tensor] = []
        for stage in self.encoder:
            x = stage(F.max_pool2d(x, 2) if maps else x)
            maps.append(x)
        for stage, skip in zip(self.decoder, maps[-2::-1], strict=True):
            x = stage(torch.cat([F.interpolate(x, scale_factor=2), skip], 1))
        return self.head(x)


def discs(number: int, side: int = 64) -> tuple[Tensor, Tensor]:
    """Images with one disc each, and its mask."""
    middle, radius = torch.rand(number, 2, 1, 1) * side, 6 + torch.rand(number, 1, 1) * 10
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    masks = ((y - middle[:, 0]) ** 2 + (x - middle[:, 1]) ** 2 < radius**2).float()[:, None]
    return masks + torch.randn(masks.shape), masks


def main(steps: int = 100, batch: int = 16) -> float:
    """Train; returns the intersection over union on new images, in percent."""
    torch.manual_seed(0)
    images, masks = discs(steps * batch)
    model = UNet()
    print(places := suggest(model, images[:1]))  # +
    install_into(model, lambda site: DropBlock2d(block_size=3), places)  # +
    schedule = KeepProbSchedule(model, keep_prob=0.9, total_steps=steps)  # +
    layers = LayerControl(model, images[:1], {"dropblock": schedule})  # +
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        rows = slice(step * batch, (step + 1) * batch)
        loss = F.binary_cross_entropy_with_logits(model(images[rows]), masks[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()  # +
    print(drops_text(layers.drops()))  # +

    images, masks = discs(64)
    with torch.no_grad():
        found = model.eval()(images) > 0
    iou = 100 * ((found & (masks > 0)).sum() / (found | (masks > 0)).sum()).item()
    print(f"intersection over union {iou:.1f} %")
    return iou


if __name__ == "__main__":
    main()
