"""Where the numbers of a run go: metrics.jsonl, TensorBoard, and a progress bar."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from engine.checkpoint import cannot_write, write_aside


class MetricsWriter:
    """Writes a run's log entries to metrics.jsonl and for TensorBoard, under the same names.

    Opened at `step`, entries after it are removed (they belong to work that a kill undid), so each step stands once.

    Args:
        folder: the run directory.
        step: the step that the run continues from.
        writes: False on all ranks but the main one; then every method does nothing.
    """

    def __init__(self, folder: Path, step: int, writes: bool = True) -> None:
        self.path, self.writes = folder / "metrics.jsonl", writes
        if writes:
            from torch.utils.tensorboard import SummaryWriter

            with self._named():
                self._forget_after(step)
                self.file = open(self.path, "a")  # noqa: SIM115 - open as long as the run
                self.writer = SummaryWriter(str(folder), purge_step=step + 1)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except OSError:
            if error is None:  # else the disk that is full here is told already
                raise

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _forget_after(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text(errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except ValueError:
                break
        write_aside(self.path, ["".join(line + "\n" for line in kept).encode()])

    def add(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """One log entry: `step` optimizer steps are done."""
        if self.writes:
            with self._named():
                self.file.write(json.dumps({"step": step, "epoch": round(epoch, 4), **values}) + "\n")
                for name, value in values.items():
                    self.writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """To the disk: called before a checkpoint, so that no checkpoint is ahead of its metrics."""
        if self.writes:
            with self._named():
                self.file.flush()
                os.fsync(self.file.fileno())
                self.writer.flush()

    def close(self) -> None:
        if self.writes:
            self.writes = False
            with self._named():
                self.writer.close()
                self.file.close()


def add_to_hparams_table(folder: Path, hparams: dict[str, Any], metrics: Sequence[str]) -> None:
    """Give a finished run its row in TensorBoard's HParams table.

    torch's `add_hparams` would make a second run of it, in a folder of its own. Here the row lies in the run's folder,
    and its metrics are the last values of the run's own curves.

    Args:
        folder: the run folder.
        hparams: numbers, words and booleans by name; None stands for what the run does not have.
        metrics: names of curves.
    """
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams as summaries

    with SummaryWriter(str(folder), filename_suffix=".hparams") as writer:
        assert writer.file_writer is not None
        present = {name: value for name, value in hparams.items() if value is not None}
        for event in summaries(present, dict.fromkeys(metrics, 0.0)):  # the values do not enter the summaries
            writer.file_writer.add_summary(event)


class Progress:
    """A progress bar over the steps of the whole run: loss, accuracy, images per second, time left."""

    def __init__(self, total: int, step: int, shown: bool) -> None:
        # Into a file or a pipe a line every half minute is enough.
        interval = 0.2 if sys.stderr.isatty() else 30.0
        layout = "{desc} {percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
        self.bar = tqdm(
            total=total, initial=step, disable=not shown, mininterval=interval, bar_format=layout, dynamic_ncols=True
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, epoch: int, epochs: int) -> None:
        self.bar.set_description_str(f"epoch {epoch + 1}/{epochs}", refresh=False)
        self.bar.update()

    def show(self, **values: str) -> None:
        self.bar.set_postfix_str(" ".join(f"{name} {value}" for name, value in values.items()), refresh=False)

    def write(self, line: str) -> None:
        """A line above the bar."""
        if self.bar.disable:
            print(line, flush=True)
        else:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()
