"""Every backend follows the joint distribution of the masks, not only the mean drop.

Statistical tests compare frequencies over M maps with their exact probabilities and fail beyond 6 standard
deviations: under the normal approximation 2e-9 per comparison, so with the number of comparisons below at most 3e-4
for the whole file. The seeds are fixed: a pass stays a pass until the code changes.
"""

import pytest
import torch
from torch.nn import functional as F

from dropblock.reference import MAX_POOL, keep_mask
from tests.dropblock.dropblock_backends import (
    BACKENDS,
    INTERPRETED,
    case_of,
    covered_by,
    deviations,
    joint_distribution,
    kept_units,
    knows,
)

LIMIT = 6.0
# size, block_size, keep_prob: odd, even, 1, the map, larger than the map, one side clamped, square or not; one axis and
# three, which the Triton kernels leave to the dense backend.
CASES = [
    ((8, 8), 3, 0.9),
    ((7, 7), 4, 0.8),
    ((6, 9), 2, 0.7),
    ((5, 5), 1, 0.6),
    ((5, 5), 5, 0.9),
    ((4, 3), 7, 0.9),
    ((5, 20), 7, 0.9),
    ((9, 9), 7, 0.0),
    ((14, 14), 7, 0.9),
    ((40,), 7, 0.8),
    ((5,), 9, 0.7),
    ((12,), 4, 0.0),
    ((5, 4, 6), 3, 0.8),
    ((2, 6, 5), 4, 0.7),
    ((3, 3, 3), 3, 0.8),
]
CASES = [case for case in CASES[::2] if len(case[0]) < 3] if INTERPRETED else CASES
MAPS = (32, 128) if INTERPRETED else (128, 256)


# The CPU's backend meets every case, each of the others every second one, and all of them the paper's.
PAIRS = [
    (backend, case)
    for number, case in enumerate(CASES)
    for backend in BACKENDS
    if backend in ("sparse", "triton") or number % 2 == (backend == "dense") or case == ((14, 14), 7, 0.9)
    if knows(backend, case[0])
]
SIZES = [(backend, size) for size in ((6, 6), (36,), (3, 3, 4)) for backend in BACKENDS if knows(backend, size)]


@pytest.mark.parametrize(("backend", "case"), [case_of(*pair) for pair in PAIRS], ids=str)
def test_every_pair_of_positions_and_whole_blocks(backend: str, case: tuple[tuple[int, ...], int, float]) -> None:
    # at most 196 * 197 / 2 pairs per case, 71 000 in all, times four backends
    size, block, keep_prob = case
    kept = kept_units(backend, (*MAPS, *size), keep_prob, block, seed=1)
    flat = kept.flatten(0, 1).flatten(1)
    z = deviations(flat, flat, joint_distribution(size, block, keep_prob))
    assert z.numel() == 0 or z.abs().max() < LIMIT
    # The dropped units are a union of whole blocks, each inside its map.
    clamped, some = tuple(min(block, side) for side in size), kept[:16, :64]
    whole_blocks = MAX_POOL[len(size)](some.float(), clamped, stride=1) == 0
    assert torch.equal(keep_mask(whole_blocks, clamped), some)
    assert not some.all()


@pytest.mark.parametrize("neighbours", ["channels", "samples", "seeds"])
@pytest.mark.parametrize(("backend", "size"), [case_of(*pair) for pair in SIZES], ids=str)
def test_maps_are_independent(backend: str, size: tuple[int, ...], neighbours: str) -> None:
    # 36 * 36 pairs of positions, 3 sizes, 3 kinds of neighbours, four backends
    kept = kept_units(backend, (*MAPS, *size), 0.8, 3, seed=2).flatten(2)
    if neighbours == "channels":
        first, second = kept[:, 0::2], kept[:, 1::2]
    elif neighbours == "samples":
        first, second = kept[0::2], kept[1::2]
    else:
        first, second = kept, kept_units(backend, (*MAPS, *size), 0.8, 3, seed=3).flatten(2)
    alone = joint_distribution(size, 3, 0.8).diagonal()
    z = deviations(first.flatten(0, 1), second.flatten(0, 1), alone[:, None] * alone[None, :])
    assert z.abs().max() < LIMIT


@pytest.mark.parametrize("backend", [case_of(name) for name in BACKENDS if name != "reference"])  # it has 24 bits
def test_rates_that_vanish_beside_one(backend: str) -> None:
    # gamma = 1e-6, as early in a linear schedule, over 3.2 million seeds a round. 4 rounds expect 12.8 blocks, and a
    # Poisson(12.8) lies outside 1 ... 40 with probability below 3e-6; the interpreter's one round expects 3.2, and
    # lies above 20 with probability below 1e-9.
    rounds, low, high = (1, 0, 20) if INTERPRETED else (4, 1, 40)
    shape, keep_prob = (64, 1024, 8, 8), 1 - 4e-6 * 49 / 64
    dropped = sum(int((~kept_units(backend, shape, keep_prob, 2, seed)).sum()) for seed in range(rounds))
    assert low <= dropped / 4 <= high


def far(kept: torch.Tensor, exact: torch.Tensor) -> float:
    """How far the masks of a foreign form are from the exact joint distribution, in standard deviations."""
    maps = kept.flatten(0, 1).flatten(1)
    return float(deviations(maps, maps, exact).abs().max())


def anywhere(shape: tuple[int, int, int, int], gamma: float, block: int) -> torch.Tensor:
    """Seeds over the whole map, blocks clipped at its border: what the copies share."""
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(5))
    return F.max_pool2d((noise < gamma).float(), block, stride=1, padding=block // 2) == 0


def test_the_copied_snippet_with_w2_minus_b2_has_another_distribution() -> None:
    """gamma W^2 / (W^2 - b^2), seeds over the whole map, rescaled by 1 / (1 - gamma): wrong mask, wrong mean."""
    side, block, keep_prob = 14, 7, 0.9
    gamma = (1 - keep_prob) / block**2 * side**2 / (side - block + 1) ** 2 * side**2 / (side**2 - block**2)
    kept = anywhere((128, 256, side, side), gamma, block)
    assert far(kept, joint_distribution((side, side), block, keep_prob)) > 10 * LIMIT
    # Its rescaling leaves the mean of the output short by the share of dropped units, about a quarter here.
    mean = float((kept.float() / (1 - gamma)).mean())
    assert mean == pytest.approx(0.74, abs=0.03)


def test_seeds_over_the_whole_map_with_the_papers_gamma_have_another_distribution() -> None:
    """The gamma of the paper belongs to seeds in the valid region: elsewhere 10 % becomes 93 % at 7x7."""
    kept = anywhere((128, 256, 7, 7), 0.1, 7)
    assert far(kept, joint_distribution((7, 7), 7, 0.9)) > 10 * LIMIT
    assert 1 - float(kept.float().mean()) == pytest.approx(0.93, abs=0.01)


def test_the_enumeration_itself() -> None:
    cover = covered_by((3, 3), 2)
    assert cover.sum(1).tolist() == [1, 2, 1, 2, 4, 2, 1, 2, 1]
