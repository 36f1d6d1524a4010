"""DropBlock in a training loop of your own, with a network of torchvision: python examples/own_loop.py

Needs torch, torchvision and scikit-learn (for 1,797 handwritten digits); of this project the library `dropblock` alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torchvision
from sklearn.datasets import load_digits
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # not needed where dropblock is installed

import dropblock


def main(epochs: int = 3, batch: int = 64, images: int = 1797) -> float:
    """Train, print what was dropped, return the test accuracy in percent."""
    torch.manual_seed(0)
    digits = load_digits()
    pixels = torch.from_numpy(digits.images[:images]).float()[:, None].repeat(1, 3, 1, 1) / 16
    pixels = F.interpolate(pixels, size=32, mode="bilinear")
    labels = torch.from_numpy(digits.target[:images])
    train, test = torch.randperm(len(labels)).split([images - images // 6, images // 6])

    model = torchvision.models.resnet18(num_classes=10)
    # Layers at the sites of groups 3 and 4; group 3 drops a quarter of what group 4 drops.
    dropblock.install_into(model, lambda site: dropblock.DropBlock2d(block_size=3), sites=lambda site: site.group >= 3)
    schedule = dropblock.KeepProbSchedule(model, keep_prob=0.9, schedule="linear", group_divisor=4)
    layers = dropblock.LayerControl(model, pixels[:1], {"dropblock": schedule})
    print(dropblock.table_text(layers.table))

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    total, step = epochs * (len(train) // batch), 0
    for _ in range(epochs):
        model.train()
        for rows in train[torch.randperm(len(train))].split(batch)[: len(train) // batch]:
            schedule.set(step / total)  # before the step: the first one drops nothing
            loss = F.cross_entropy(model(pixels[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        print(dropblock.drops_text(layers.drops()))  # asked, expected, measured since the last call

    model.eval()
    with torch.no_grad():
        accuracy = 100 * (model(pixels[test]).argmax(1) == labels[test]).float().mean().item()
    print(f"test accuracy {accuracy:.2f} %")
    return accuracy


if __name__ == "__main__":
    main()
