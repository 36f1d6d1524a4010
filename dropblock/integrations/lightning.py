"""DropBlock for Lightning: `Trainer(callbacks=[DropBlockCallback(example, network="net")])`.

For `lightning.pytorch`, and where it is not installed for `pytorch_lightning`; a callback of one works in a trainer of
the other.
"""

from __future__ import annotations

from typing import Any

from dropblock.integrations import TrainedLayers

try:
    from lightning.pytorch import Callback
except ImportError:
    from pytorch_lightning import Callback


class DropBlockCallback(TrainedLayers, Callback):
    """Installs the layers in `setup`, schedules them by `trainer.global_step`, logs each `log_every_n_steps` steps.

    Args: see `dropblock.integrations.TrainedLayers`. A network that `configure_model` makes is too late for `setup`:
    make it in `__init__`. The measured drop is the mean over ranks.
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self.install(pl_module)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.steps, self.logged_at = trainer.estimated_stepping_batches, trainer.global_step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.before_batch(trainer.global_step, self.steps, trainer.global_rank, batch_idx)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        # Accumulated batches end at one and the same step; only the last of them is a step's end.
        if trainer.global_step > self.logged_at and trainer.global_step % trainer.log_every_n_steps == 0:
            self.logged_at = trainer.global_step
            pl_module.log_dict(self.values(), sync_dist=trainer.world_size > 1)
