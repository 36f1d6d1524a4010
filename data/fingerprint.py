"""One number that says whether two runs saw the same samples under the same labels."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def fingerprint(*parts: str | tuple[str, ...] | NDArray[np.generic] | Tensor) -> str:
    """sha256 over the parts, each preceded by its kind and size so that no two lists of parts run together."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            part = part.numpy()
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            text = part if isinstance(part, str) else "\0".join(part)
            digest.update(f"text{len(text)}".encode() + text.encode())
    return digest.hexdigest()
