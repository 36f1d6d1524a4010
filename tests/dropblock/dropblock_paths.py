"""The ways to compute DropBlock, side by side for the tests, and what the law says about them.

The Triton path needs a GPU, or Triton's interpreter: it takes part where there is a GPU or TRITON_INTERPRET=1 was set
before Triton was imported. `test_triton_interpreter.py` runs these tests in such a process.
"""

import os

import torch
from torch import Tensor

from dropblock.law import effective_block, seed_rate
from dropblock.operator import DENSE, SPARSE_CPU, Path, drop, gpu_path
from dropblock.reference import keep_mask, select_scaled


def draw_reference(x: Tensor, keep_prob: Tensor, block_size: int, seed: Tensor) -> tuple[Tensor, Tensor]:
    n, c, height, width = x.shape
    b_h, b_w = effective_block(block_size, height, width)
    noise = torch.rand(
        (n, c, height - b_h + 1, width - b_w + 1), generator=torch.Generator().manual_seed(int(seed)), device=x.device
    )
    mask = keep_mask(noise < seed_rate(float(keep_prob), block_size, height, width), (b_h, b_w))
    return mask.sum(), mask


PATHS = {
    "reference": Path(draw_reference, lambda x, kept, mask, block_size: select_scaled(x, mask, kept)),
    "sparse": SPARSE_CPU,
    "dense": DENSE,
}
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if INTERPRETED or torch.cuda.is_available():
    PATHS["triton"] = gpu_path()


def device_of(path: str) -> torch.device:
    return torch.device("cuda" if path == "triton" and not INTERPRETED else "cpu")


def run(path: str, x: Tensor, keep_prob: float, block_size: int, seed: int) -> tuple[Tensor, Tensor]:
    """(output, kept) along a path; keep_prob and seed as the 0-dimensional tensors that the operator takes."""
    return drop(
        PATHS[path],
        x,
        torch.tensor(keep_prob, device=x.device),
        block_size,
        torch.tensor(seed, device=x.device),
    )


def kept_units(path: str, shape: tuple[int, int, int, int], keep_prob: float, block_size: int, seed: int) -> Tensor:
    """The mask of a path, (N, C, H, W) bool on the CPU, seen through its output on ones."""
    return (run(path, torch.ones(shape, device=device_of(path)), keep_prob, block_size, seed)[0] != 0).cpu()


def covered_by(height: int, width: int, block_size: int) -> Tensor:
    """(H W, seeds) bool: which valid seeds cover which position. Built by walking, independent of the library."""
    b_h, b_w = min(block_size, height), min(block_size, width)
    rows = []
    for i in range(height):
        for j in range(width):
            rows.append(
                [
                    top <= i < top + b_h and left <= j < left + b_w
                    for top in range(height - b_h + 1)
                    for left in range(width - b_w + 1)
                ]
            )
    return torch.tensor(rows)


def joint_law(height: int, width: int, block_size: int, keep_prob: float) -> Tensor:
    """(H W, H W): P(both positions kept) = (1 - gamma)^(number of valid seeds that cover either)."""
    cover = covered_by(height, width, block_size).double()
    alone = cover.sum(1)
    either = alone[:, None] + alone[None, :] - cover @ cover.T
    b_h, b_w = min(block_size, height), min(block_size, width)
    gamma = (1 - keep_prob) * height * width / (b_h * b_w * (height - b_h + 1) * (width - b_w + 1))
    return (1 - gamma) ** either


def deviations(first: Tensor, second: Tensor, law: Tensor) -> Tensor:
    """z-scores of the observed P(kept in first, kept in second) for every pair of positions.

    `first`, `second`: (maps, H W) bool with independent rows. Pairs the law calls certain must be certain.
    """
    observed = first.double().T @ second.double() / len(first)
    spread = (law * (1 - law) / len(first)).sqrt()
    certain = spread < 1e-9
    assert torch.allclose(observed[certain], law[certain], atol=1e-9)
    return (observed - law)[~certain] / spread[~certain]
