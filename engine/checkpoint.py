"""Checkpoints: written whole or not at all (`engine.files`), and checked by a sum of their own.

`torch.load` reads a file with a flipped bit without complaint and a full disk leaves half a file under the final name,
so a checkpoint is a torch archive followed by its SHA-256, and appears under its name only when it is whole. Readers
that do not know the trailer (`torch.load(path, weights_only=True)`) skip it.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from engine.files import write_aside

TRAILER = b"dropblock-sha256"
DIGEST = 32


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged or not one; the message is one line that names the file."""


def save(payload: dict[str, Any], path: Path, keep_previous: bool = False) -> None:
    """Write a payload of tensors and plain types under `path`, all or nothing.

    Args:
        payload: readable by `torch.load(weights_only=True)`.
        path: its folder exists.
        keep_previous: let the file that was there live on as `previous.pt`.

    Raises:
        OSError: if the disk is full or the folder cannot be written; what was there before is untouched.
    """
    buffer = io.BytesIO()
    torch.save(payload, buffer)
    data = buffer.getbuffer()
    parts: list[bytes | memoryview] = [data, TRAILER, hashlib.sha256(data).digest()]
    write_aside(path, parts, "previous.pt" if keep_previous else None)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU; every bit is verified and nothing in it executed.

    Raises:
        CheckpointError: if it is missing, damaged or not a checkpoint.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from error
    # The sum first: torch reads a file with a flipped bit without complaint.
    data, trailer, digest = raw[: -DIGEST - len(TRAILER)], raw[-DIGEST - len(TRAILER) : -DIGEST], raw[-DIGEST:]
    if trailer != TRAILER:
        raise CheckpointError(f"{path}: truncated, or not a checkpoint of this program")
    if hashlib.sha256(data).digest() != digest:
        raise CheckpointError(f"{path}: damaged, its checksum does not match")

    # A whole file may still be somebody else's: nothing in it is executed, and it has to be a checkpoint.
    try:
        payload = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: refused, it holds more than tensors and plain values") from error
    if not isinstance(payload, dict) or "model" not in payload:
        raise CheckpointError(f"{path}: not a checkpoint of this program")
    if not _dense(payload):  # the indices of a sparse one are read without a check when it is used
        raise CheckpointError(f"{path}: refused, it holds a tensor that is not dense")
    return payload


def _dense(value: Any) -> bool:
    """True if all tensors within nested containers are plain ones."""
    if isinstance(value, dict):
        return all(_dense(part) for part in value.values())
    if isinstance(value, list | tuple):
        return all(_dense(part) for part in value)
    return not isinstance(value, torch.Tensor) or (value.layout == torch.strided and not value.is_quantized)


def load_latest(folder: Path) -> tuple[dict[str, Any], Path] | None:
    """The newest whole checkpoint of a run: `last.pt`, or with a warning the one before it. None if there is none.

    Raises:
        CheckpointError: if there are checkpoints and none is whole; starting over silently would lose the work.
    """
    damage: CheckpointError | None = None
    for path in (folder / "last.pt", folder / "previous.pt"):
        if path.exists():
            try:
                found = load(path), path
            except CheckpointError as error:
                damage = damage or error
                continue
            if damage is not None:
                warnings.warn(f"{damage}; the checkpoint before it is used", stacklevel=2)
            return found
    if damage is not None:
        raise CheckpointError(f"{damage}, and there is no whole one before it; fresh=true starts over") from damage
    return None


def set_damaged_aside(used: Path) -> None:
    """After a resume from `previous.pt`: rename the damaged `last.pt`, or it would become the next `previous.pt`."""
    last = used.with_name("last.pt")
    if used != last and last.exists():
        os.replace(last, used.with_name("damaged.pt"))
