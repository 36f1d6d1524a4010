"""The ways to compute DropBlock, side by side for the tests, and what the sampling rule says about them.

The Triton backend needs a GPU (then its tests are marked `gpu`), or Triton's interpreter: TRITON_INTERPRET=1 set before
Triton is imported. `test_triton_interpreter.py` runs these tests in such a process.
"""

import itertools
import math
import os

import pytest
import torch
from torch import Tensor

from dropblock.operator import DENSE, SPARSE_CPU, Backend, drop, gpu_backend
from dropblock.rates import effective_block, seed_rate, valid_seeds
from dropblock.reference import keep_mask, select_scaled


def draw_reference(x: Tensor, keep_prob: Tensor, block_size: int, seed: Tensor) -> tuple[Tensor, Tensor]:
    n, c, *size = x.shape
    block = effective_block(block_size, *size)
    generator = torch.Generator().manual_seed(int(seed))
    noise = torch.rand((n, c, *valid_seeds(tuple(size), block)), generator=generator, device=x.device)
    mask = keep_mask(noise < seed_rate(float(keep_prob), block_size, *size), block)
    return mask.sum(), mask


BACKENDS = {
    "reference": Backend(draw_reference, lambda x, kept, mask, block_size: select_scaled(x, mask, kept)),
    "sparse": SPARSE_CPU,
    "dense": DENSE,
}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED or torch.cuda.is_available():
    BACKENDS["triton"] = gpu_backend(torch.device("cpu" if INTERPRETED else "cuda"))


def case_of(backend: str, *case: object) -> object:
    """The parameters of a test on a backend, marked where it needs a GPU."""
    return pytest.param(backend, *case, marks=pytest.mark.gpu if backend == "triton" and not INTERPRETED else ())


def knows(backend: str, size: tuple[int, ...]) -> bool:
    """False for maps of three axes on a GPU, which the dense backend has."""
    return backend != "triton" or len(size) < 3


EACH_BACKEND = [case_of(name) for name in BACKENDS]


def device_of(backend: str) -> torch.device:
    return torch.device("cuda" if backend == "triton" and not INTERPRETED else "cpu")


def run(backend: str, x: Tensor, keep_prob: float, block_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """(output, kept) of a backend; keep_prob and seed as the 0-dimensional tensors that the operator takes."""
    return drop(
        BACKENDS[backend],
        x,
        torch.tensor(keep_prob, device=x.device),
        block_size,
        torch.tensor(seed, device=x.device),
    )


def kept_units(backend: str, shape: tuple[int, ...], keep_prob: float, block_size: int, seed: int) -> Tensor:
    """The mask of a backend, (N, C, *size) bool on the CPU, seen through its output on ones."""
    return (run(backend, torch.ones(shape, device=device_of(backend)), keep_prob, block_size, seed)[0] != 0).cpu()


def covered_by(size: tuple[int, ...], block_size: int) -> Tensor:
    """(units, seeds) bool: which valid seeds cover which unit. Built by walking, independent of the library."""
    block = [min(block_size, side) for side in size]
    units = itertools.product(*map(range, size))
    seeds = list(itertools.product(*(range(side - b + 1) for side, b in zip(size, block, strict=True))))
    return torch.tensor(
        [[all(s <= i < s + b for i, s, b in zip(unit, seed, block, strict=True)) for seed in seeds] for unit in units]
    )


def joint_distribution(size: tuple[int, ...], block_size: int, keep_prob: float) -> Tensor:
    """(units, units): P(both units kept) = (1 - gamma)^(number of valid seeds that cover either)."""
    cover = covered_by(size, block_size).double()
    alone = cover.sum(1)
    either = alone[:, None] + alone[None, :] - cover @ cover.T
    area = math.prod(min(block_size, side) for side in size)
    gamma = (1 - keep_prob) * math.prod(size) / (area * cover.shape[1])
    return (1 - gamma) ** either


def deviations(first: Tensor, second: Tensor, exact: Tensor) -> Tensor:
    """z-scores of the observed P(kept in first, kept in second) for every pair of positions.

    `first`, `second`: (maps, units) bool with independent rows. Pairs that are certain must be certain.
    """
    observed = first.double().T @ second.double() / len(first)
    spread = (exact * (1 - exact) / len(first)).sqrt()
    certain = spread < 1e-9
    assert torch.allclose(observed[certain], exact[certain], atol=1e-9)
    return (observed - exact)[~certain] / spread[~certain]
