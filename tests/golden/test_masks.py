"""The masks of the CPU backends on maps of two axes: (shape, block_size, keep_prob, seed 12345) -> kept units, digest.

A mask that moves would move every number that was published with its seed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from dropblock.operator import DENSE, SPARSE_CPU, drop

MASKS: dict[str, str] = json.loads((Path(__file__).parent / "masks.json").read_text())


@pytest.mark.parametrize("name", ["sparse", "dense"])
def test_masks_are_bit_equal(name: str) -> None:
    chosen = {case: digest for case, digest in MASKS.items() if case.startswith(name)}
    assert len(chosen) == 54
    for case, digest in chosen.items():
        _, shape, _, block, _, keep_prob = case.split()
        x = torch.ones(tuple(map(int, shape.split("x"))))
        backend = {"sparse": SPARSE_CPU, "dense": DENSE}[name]
        y, kept = drop(backend, x, torch.tensor(float(keep_prob)), int(block), torch.tensor(12345))
        assert f"{int(kept)} {hashlib.sha256((y != 0).numpy().tobytes()).hexdigest()[:12]}" == digest, case
