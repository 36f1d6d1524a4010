"""DropBlock in a LightningModule: the lines that end in `# +` were added to it. python examples/lightning_module.py

Needs lightning (or pytorch_lightning), torchvision and scikit-learn (for 1,797 handwritten digits); of this project the
library `dropblock` alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torchvision
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset, random_split

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # not needed where dropblock is installed

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger

from dropblock.integrations.lightning import DropBlockCallback  # +


class Digits(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torchvision.models.resnet18(num_classes=10)

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        self.log("accuracy", 100 * (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def main(epochs: int = 3, images: int = 1797, folder: str = "outputs/lightning") -> dict[str, float]:
    """Train; returns the last values that were logged."""
    pl.seed_everything(0)
    digits = load_digits()
    pixels = torch.from_numpy(digits.images[:images]).float()[:, None].repeat(1, 3, 1, 1) / 16
    pixels = F.interpolate(pixels, size=32, mode="bilinear")
    data = TensorDataset(pixels, torch.from_numpy(digits.target[:images]))
    train, val = random_split(data, [images - images // 6, images // 6])
    dropblock = DropBlockCallback(pixels[:1], keep_prob=0.9, block_size=3, network="net", group_divisor=4)  # +
    trainer = pl.Trainer(
        max_epochs=epochs,
        log_every_n_steps=5,
        logger=CSVLogger(folder),
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[dropblock],  # +
    )
    trainer.fit(Digits(), DataLoader(train, 64, shuffle=True, drop_last=True), DataLoader(val, 64))
    values = {name: round(float(value), 4) for name, value in trainer.callback_metrics.items()}
    print(*(f"{name} {value:g}" for name, value in sorted(values.items())), sep="\n")
    return values


if __name__ == "__main__":
    main()
