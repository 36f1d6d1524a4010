"""The finished network that a command is about. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from configs.checking import UserError, one_of


@dataclass
class NetworkSource:
    """A run directory or a checkpoint file, and the place of its data.

    Args:
        run: run directory; or
        checkpoint: a file that train.py wrote.
        which: the checkpoint of the last epoch (`last`) or the one chosen on val (`best`), with `run`.
        data_root: directory of the data, if it is another one than the run found them in.
        download: download missing data.
        workers: loader processes; None: one per core.
    """

    run: str | None = None
    checkpoint: str | None = None
    which: str = "last"
    data_root: str | None = None
    download: bool = True
    workers: int | None = None

    def check(self) -> None:
        """Raise UserError unless it names exactly one network."""
        if (self.run is None) == (self.checkpoint is None):
            raise UserError("give either run=FOLDER or checkpoint=FILE; see --help")
        one_of("which", self.which, ("last", "best"))
        if self.checkpoint is not None and self.which == "best":
            raise UserError("which=best: of a run=FOLDER; with checkpoint=FILE that file is opened")
