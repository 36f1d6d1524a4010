"""Writers of a run's numbers: metrics.jsonl with TensorBoard, and a progress bar."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor
from tqdm import tqdm

from engine.files import cannot_write, write_aside

SECONDS_BETWEEN_LINES = 30.0  # of progress, into a file or a pipe
WIDE = 110  # columns of a terminal with space for a long bar and the steps


class MetricsWriter:
    """Writes a run's log entries to metrics.jsonl and for TensorBoard, under the same names.

    Opening removes the entries after `step`, which belong to work that a kill undid, so each step stands once.

    Args:
        folder: the run directory.
        step: the step that the run continues from.
        evaluates: True if the run begins with the evaluation of this step: one that a kill undid is removed, too.
        writes: False on all ranks but the main one; then every method does nothing.
    """

    def __init__(self, folder: Path, step: int, evaluates: bool = False, writes: bool = True) -> None:
        self.path, self.writes = folder / "metrics.jsonl", writes
        if writes:
            from torch.utils.tensorboard import SummaryWriter

            with self._named():
                # The entries of work that a kill undid: lines are removed, TensorBoard is asked to forget them.
                kept = self._forget_after(step, evaluates)
                self.file = open(self.path, "a")  # noqa: SIM115 - open as long as the run
                self.writer = SummaryWriter(str(folder), purge_step=step if evaluates else step + 1)
                for entry in kept if evaluates else ():  # TensorBoard forgets all of a step, or nothing of it
                    if entry.pop("step") == step:
                        self._show(step, {name: value for name, value in entry.items() if name != "epoch"})

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.close()
        except OSError:
            if error is None:  # else the full disk is reported already
                raise

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _forget_after(self, step: int, evaluates: bool) -> list[dict[str, Any]]:
        """Rewrite metrics.jsonl without the entries after a step; returns those that are left."""
        if not self.path.exists():
            return []
        kept, entries = [], []
        for line in self.path.read_text(errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # a line that the kill cut off
                break
            # The evaluation of this very step is repeated; what training logged at it stays.
            undone = evaluates and entry["step"] == step and any(name.startswith(("val/", "test/")) for name in entry)
            if entry["step"] <= step and not undone:
                kept.append(line)
                entries.append(entry)
        write_aside(self.path, ["".join(line + "\n" for line in kept).encode()])
        return entries

    def _show(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def add(self, step: int, epoch: float, values: dict[str, float]) -> None:
        """One log entry: `step` optimizer steps are done."""
        if self.writes:
            with self._named():
                self.file.write(json.dumps({"step": step, "epoch": round(epoch, 4), **values}) + "\n")
                self._show(step, values)

    def add_images(self, step: int, name: str, images: Tensor) -> None:
        """Show pictures (N, 3, H, W) uint8 on TensorBoard, as one about as wide as high."""
        if self.writes:
            from torchvision.utils import make_grid

            count, _, height, width = images.shape
            columns = max(1, round(math.sqrt(count * height / width)))
            with self._named():
                self.writer.add_image(name, make_grid(images, columns, padding=4, pad_value=255), step)

    def flush(self) -> None:
        """Write to the disk; called before a checkpoint, so that no checkpoint is ahead of its metrics."""
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


def add_to_hparams_table(folder: Path, hparams: dict[str, Any]) -> None:
    """Give a finished run its row in TensorBoard's HParams table.

    torch's `add_hparams` would make a second run of it, in a folder of its own. Here the row lies in the run directory,
    and its metrics are the last values that the run itself has logged.

    The list of columns, which torch writes as well, is left out: TensorBoard would take that of one run for all, and
    hide what this run does not have (the knobs of a layer, say). Without it, it collects the columns of all runs.

    Args:
        folder: the run directory.
        hparams: by name; None stands for what the run does not have, and what TensorBoard has no column for is text.
    """
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams as summaries

    with SummaryWriter(str(folder), filename_suffix=".hparams") as writer:
        assert writer.file_writer is not None
        present = {
            name: value if isinstance(value, bool | int | float) else str(value)
            for name, value in hparams.items()
            if value is not None
        }
        _, *values = summaries(present, {})
        for summary in values:
            writer.file_writer.add_summary(summary)


class Progress:
    """A progress bar over the steps of the whole run: time left, loss, headline, images per second.

    It is one line from 80 columns on, and gone when the run ends. Where there is no terminal, a line every half minute
    instead.

    Args:
        total, step: steps of the run, and steps already done.
        shown: False for no output at all.
    """

    def __init__(self, total: int, step: int, shown: bool) -> None:
        terminal = sys.stderr.isatty()
        wide = shutil.get_terminal_size().columns >= WIDE
        layout = "{desc} {percentage:3.0f}%|{bar:24}| {n_fmt}/{total_fmt} steps, {remaining} left{postfix}"
        narrow = "{desc} {percentage:3.0f}%|{bar:8}| {remaining} left{postfix}"
        self.bar = tqdm(
            total=total,
            initial=step,
            disable=not (shown and terminal),
            mininterval=0.2,
            dynamic_ncols=True,
            leave=False,
            bar_format=layout if wide else narrow,
        )
        self.lines = shown and not terminal
        self.total, self.step, self.last_line, self.where = total, step, time.monotonic(), ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def advance(self, epoch: int, epochs: int) -> None:
        self.where = f"epoch {epoch + 1}/{epochs}"
        self.step += 1
        self.bar.set_description_str(self.where, refresh=False)
        self.bar.update()

    def evaluating(self) -> None:
        self.bar.set_postfix_str("evaluating")

    def show(self, *values: str) -> None:
        text = "  ".join(values)
        self.bar.set_postfix_str(text, refresh=False)
        if self.lines and time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            print(f"{self.where}, step {self.step}/{self.total}: {text}", flush=True)

    def write(self, line: str) -> None:
        """Print a line above the bar."""
        if self.bar.disable:
            print(line, flush=True)
        else:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()
