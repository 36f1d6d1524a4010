"""The law of DropBlock as closed formulas (Ghiasi, Lin, Le 2018, arXiv 1810.12890, section 3).

Plain numbers in, plain numbers out: no tensors, no randomness. The operators are tested against these functions, and
the sites table and the run record show them beside what was measured.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache


def effective_block(block_size: int, height: int, width: int) -> tuple[int, int]:
    """The block that fits a map: `block_size` clamped to each side, before gamma is computed.

    The paper gives no rule for maps smaller than the block; its released code clamps, and takes square maps only.
    Here each axis is clamped on its own.

    Args:
        block_size: side of the block in units of the feature map, >= 1.
        height, width: size of the feature map, >= 1.

    Raises:
        ValueError: if any of the three is below 1.
    """
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, not {block_size}")
    if height < 1 or width < 1:
        raise ValueError(f"a feature map must be at least 1x1, not {height}x{width}")
    return min(block_size, height), min(block_size, width)


def seed_rate(keep_prob: float, block_size: int, height: int, width: int) -> float:
    """gamma: the probability that a valid position seeds a block (paper, equation 1), in [0, 1 - keep_prob].

        gamma = (1 - keep_prob) / (b_h b_w)  *  H W / ((H - b_h + 1) (W - b_w + 1))

    The first factor spreads the wanted drop over the units of a block, the second corrects for seeds being allowed
    only where a whole block fits. Overlap of blocks is ignored, so the drop asked for is approached from below;
    `expected_drop` gives the exact value.

    Args:
        keep_prob: share of units to keep, in [0, 1].
        block_size: side of the block; clamped to the map first.
        height, width: size of the feature map.

    Raises:
        ValueError: if keep_prob lies outside [0, 1], or a size is below 1.
    """
    if not 0.0 <= keep_prob <= 1.0:
        raise ValueError(f"keep_prob must lie in [0, 1], not {keep_prob}")
    b_h, b_w = effective_block(block_size, height, width)
    return (1.0 - keep_prob) / (b_h * b_w) * (height * width) / ((height - b_h + 1) * (width - b_w + 1))


def expected_drop(keep_prob: float, block_size: int, height: int, width: int) -> float:
    """The exact expected share of dropped units, overlap of blocks included, in [0, 1].

    A unit survives when none of the valid seeds whose block covers it fires: P(kept) = (1 - gamma)^(covering seeds).
    At keep_prob 0.9 and block 7 a 14x14 map drops 9.3 %, not 10 %; a 7x7 map exactly 10 %.

    Args and errors: as for `seed_rate`.
    """
    gamma = seed_rate(keep_prob, block_size, height, width)
    counts = _units_by_covering_seeds(block_size, height, width)
    kept = sum(units * (1.0 - gamma) ** seeds for seeds, units in counts)
    return 1.0 - kept / (height * width)


@lru_cache(maxsize=256)
def _units_by_covering_seeds(block_size: int, height: int, width: int) -> tuple[tuple[int, int], ...]:
    """(number of valid seeds whose block covers a unit, how many units of the map have that number)."""
    b_h, b_w = effective_block(block_size, height, width)
    rows, columns = Counter(covering_seeds(height, b_h)), Counter(covering_seeds(width, b_w))
    product: Counter[int] = Counter()
    for r, rows_with_r in rows.items():
        for c, columns_with_c in columns.items():
            product[r * c] += rows_with_r * columns_with_c
    return tuple(product.items())


def covering_seeds(side: int, block: int) -> list[int]:
    """For each position along one axis, how many of the `side - block + 1` valid seeds cover it."""
    return [min(i, side - block) - max(0, i - block + 1) + 1 for i in range(side)]
