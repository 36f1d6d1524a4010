"""Text for the person at the terminal: aligned tables, durations."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any


class SurvivingStream:
    """Standard output or error whose loss does not end the program: a closed pipe or terminal, a full disk.

    From the first failure on, what is written is discarded.

    Args:
        stream: to write to; everything but writing is left to it.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._surviving(self._stream.write, text) or 0

    def flush(self) -> None:
        self._surviving(self._stream.flush)

    def _surviving(self, operation: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return operation(*arguments)
        except OSError:
            # What is still in the buffer goes there as well, when the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            return None


def prepare_output() -> None:
    """Keep a program going when its output is no longer read, and let one of its ranks speak for all.

    The first for `train.py | head` and a closed terminal. Under torchrun every process runs the whole program: standard
    output is the main rank's, errors are those of each.
    """
    if os.environ.get("RANK", "0") != "0":
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 # as long as the program
    sys.stdout, sys.stderr = SurvivingStream(sys.stdout), SurvivingStream(sys.stderr)


def columns() -> int | None:
    """Width of the terminal that standard output goes to; None for a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wrapped(text: str) -> str:
    """Text with lines that are too long for the terminal broken between words."""
    width = columns()
    if width is None:
        return text
    wrapper = textwrap.TextWrapper(width, subsequent_indent="      ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(wrapper.fill(line) for line in text.split("\n"))


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns padded to one width; numbers to the right, text to the left."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(headers), *cells]) for i in range(len(headers))]
    right = [all(_is_number(row[i]) for row in cells) for i in range(len(headers))]

    def line(row: Sequence[str]) -> str:
        padded = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(list(headers)), "  ".join("-" * w for w in widths), *(line(row) for row in cells)])


def _is_number(text: str) -> bool:
    try:
        float(text.rstrip("%"))
    except ValueError:
        return text in ("", "-")
    return True


LONGEST_CELL = 48  # characters; of a longer name both ends are shown


def table_rows(rows: Sequence[Sequence[Any]]) -> list[list[object]]:
    """Cells of a table: fractions with two places, "-" for a missing value, long names without their middle."""

    def cell_text(cell: Any) -> object:
        if isinstance(cell, str) and len(cell) > LONGEST_CELL:
            return f"{cell[: LONGEST_CELL // 2]}...{cell[-LONGEST_CELL // 2 + 3 :]}"
        return "-" if cell is None else f"{cell:.2f}" if isinstance(cell, float) else cell

    return [[cell_text(cell) for cell in row] for row in rows]


def duration(seconds: float) -> str:
    """`42 s`, `3 min 07 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def error_line(error: BaseException) -> str:
    """An error in one line; one of the disk begins with its path."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        paths = [str(path) for path in (error.filename, error.filename2) if path is not None]
        text = ": ".join(filter(None, (" -> ".join(paths), error.strerror)))
    return " ".join(text.split())


def counted(number: int, name: str) -> str:
    """`1 epoch`, `2 epochs`."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def metric_text(value: float, unit: str = "%", places: int = 2) -> str:
    """A metric with its unit; percentages have `places` digits, other metrics two more."""
    return f"{value:.{places}f}%" if unit == "%" else f"{value:.{places + 2}f} {unit}".rstrip()


SHOWN = 3  # metrics of a split at the terminal; all of them are logged


def epoch_line(
    epoch: int,
    epochs: int,
    values: Mapping[str, float],
    units: Mapping[str, str],
    headline: str,
    best: Mapping[str, float] | None = None,
    width: int | None = None,
) -> str:
    """The line of an evaluation: the headline now, the best on val so far, then further metrics.

    Args:
        values: metrics of val, where there is one, and test: `test/top1`.
        units: unit by metric.
        headline: the metric that chooses.
        best: the epoch that is best on val, this one included; None without val.
        width: columns of the terminal; what does not fit is left out. None: no limit.
    """
    shown, count, splits = [], Counter[str](), ("val", "test")
    for split in splits:
        if f"{split}/{headline}" in values:
            shown.append(f"{split}/{headline} {metric_text(values[f'{split}/{headline}'], units[headline])}")
    if best is not None:
        shown.append(f"best val {metric_text(best[f'val/{headline}'], units[headline])} in epoch {best['epoch']}")
    for name, value in values.items():
        split, metric = name.split("/")
        if metric != headline and count[split] < SHOWN - 1:  # of detection's twelve
            count[split] += 1
            shown.append(f"{name} {metric_text(value, units[metric])}")

    line = f"epoch {epoch:>3}/{epochs}"
    for part in shown:
        if width is not None and len(line) + 2 + len(part) > width:
            break
        line += f"  {part}"
    return line


def result_text(summary: dict[str, Any], folder: Path) -> str:
    """The short closing table of a run: every number with the split and the epoch it comes from."""
    headline = summary["headline"]
    unit = summary.get("metric_units", {}).get(headline, "%")  # those of older runs are all percentages
    rows: list[tuple[str, str, str]] = []

    # The last epoch is the result; the epoch that val chose; and the best on test, which chooses nothing.
    for which, split, note in (
        ("last", "test", ""),
        ("last", "val", ""),
        ("best", "val", ", the best on val"),
        ("best", "test", ", chosen as the best on val"),
        ("peak", "test", ", the best on test: chooses nothing"),
    ):
        name, values = f"{split}/{headline}", summary[which]
        if values and name in values:
            rows.append((f"{which} {name}", metric_text(values[name], unit), f"epoch {values['epoch']}{note}"))

    # The drop that was asked for, beside the one that was counted.
    for group, drop in summary["drop_last_epoch"].items():
        expected = f"expected {100 * drop['expected']:.2f}% over the last epoch"
        expected += ": NOT what the layer declares" if drop.get("off") else ""
        rows.append((f"dropped in {group}", f"{100 * drop['measured']:.2f}%", expected))
    speed = f"images/s in training, {duration(summary['train_seconds'])}"
    rows.append(("speed", f"{summary['images_per_s']:.0f}", speed))
    return "\n".join(
        [
            table(("result", "value", "of"), rows),
            f"run directory  {folder}",
            f"tensorboard --logdir {folder}",
        ]
    )
