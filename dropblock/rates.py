"""The sampling rule of DropBlock as closed formulas (Ghiasi, Lin, Le 2018, arXiv 1810.12890, section 3).

Plain numbers in, plain numbers out: no tensors, no randomness. The operators are tested against these functions, and
the sites table and the run record show them beside what was measured. A map has one, two or three axes; the paper has
two, and nothing in its rule depends on that number.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from functools import lru_cache
from typing import NamedTuple


def effective_block(block_size: int, *size: int) -> tuple[int, ...]:
    """The block that fits a map: `block_size` clamped to each side, before gamma is computed.

    The paper gives no rule for maps smaller than the block; its released code clamps, and takes square maps only.
    Here each axis is clamped on its own.

    Args:
        block_size: side of the block in units of the feature map, >= 1.
        size: the sides of the feature map (length; height, width; or depth, height, width), each >= 1.

    Raises:
        TypeError: if block_size is not an integer; True is none.
        ValueError: if any of them is below 1.
    """
    if type(block_size) is not int:
        if isinstance(block_size, bool):
            raise TypeError(f"block_size must be an integer, not {block_size}")
        try:
            block_size = operator.index(block_size)
        except TypeError:
            raise TypeError(f"block_size must be an integer, not {block_size!r}") from None
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, not {block_size}")
    if min(size, default=1) < 1:
        raise ValueError(f"a side of a feature map must be at least 1, not {'x'.join(map(str, size))}")
    return tuple([min(block_size, side) for side in size])


def valid_seeds(size: tuple[int, ...], block: tuple[int, ...]) -> tuple[int, ...]:
    """Number of positions along each axis at which a block can start and lie inside the map."""
    return tuple([side - b + 1 for side, b in zip(size, block, strict=True)])


class Geometry(NamedTuple):
    """Numbers that follow from the sizes of a block and of a map alone.

    block: clamped to the map, along each axis.
    valid: the positions where a block can start, along each axis.
    strides: units from one to the next along each axis, where maps are stored one after the other.
    area, units, seeds: units of a block and of a map, and valid positions.
    """

    block: tuple[int, ...]
    valid: tuple[int, ...]
    strides: tuple[int, ...]
    area: int
    units: int
    seeds: int


@lru_cache(maxsize=1024, typed=True)  # typed: 7.0 is an error even where 7 is known
def geometry(block_size: int, *size: int) -> Geometry:
    """The geometry of a map; args and errors as for `effective_block`. Remembered: a layer asks at every call."""
    block = effective_block(block_size, *size)
    valid = valid_seeds(size, block)
    strides = tuple([math.prod(size[axis + 1 :]) for axis in range(len(size))])
    return Geometry(block, valid, strides, math.prod(block), math.prod(size), math.prod(valid))


def seed_rate(keep_prob: float, block_size: int, *size: int) -> float:
    """gamma: the probability that a valid position seeds a block (paper, equation 1), in [0, 1 - keep_prob].

        gamma = (1 - keep_prob) / (b_h b_w)  *  H W / ((H - b_h + 1) (W - b_w + 1))

    and the same products over one or three axes. The first factor spreads the wanted drop over the units of a block,
    the second corrects for seeds being allowed only where a whole block fits. Overlap of blocks is ignored, so the drop
    asked for is approached from below; `expected_drop` gives the exact value.

    Args:
        keep_prob: share of units to keep, in [0, 1].
        block_size: side of the block; clamped to the map first.
        size: sides of the feature map.

    Raises:
        ValueError: if keep_prob lies outside [0, 1], or a size is below 1.
    """
    if not 0.0 <= keep_prob <= 1.0:
        raise ValueError(f"keep_prob must lie in [0, 1], not {keep_prob}")
    of = geometry(block_size, *size)
    return (1.0 - keep_prob) / of.area * of.units / of.seeds


def expected_drop(keep_prob: float, block_size: int, *size: int) -> float:
    """The exact expected share of dropped units, overlap of blocks included, in [0, 1].

    A unit survives when none of the valid seeds whose block covers it fires: P(kept) = (1 - gamma)^(covering seeds).
    At keep_prob 0.9 and block 7 a 14x14 map drops 9.3 %, not 10 %; a 7x7 map exactly 10 %.

    Args and errors: as for `seed_rate`.
    """
    gamma = seed_rate(keep_prob, block_size, *size)
    kept = sum(units * (1.0 - gamma) ** seeds for seeds, units in _units_by_covering_seeds(block_size, *size))
    return 1.0 - kept / math.prod(size)


@lru_cache(maxsize=256)
def _units_by_covering_seeds(block_size: int, *size: int) -> tuple[tuple[int, int], ...]:
    """(number of valid seeds whose block covers a unit, how many units of the map have that number)."""
    # A block covers a unit if it does so along every axis: the counts of the axes multiply.
    product = Counter({1: 1})
    for side, block in zip(size, effective_block(block_size, *size), strict=True):
        along_axis = Counter(covering_seeds(side, block))
        longer: Counter[int] = Counter()
        for seeds, units in product.items():
            for more, of_them in along_axis.items():
                longer[seeds * more] += units * of_them
        product = longer
    return tuple(product.items())


def covering_seeds(side: int, block: int) -> list[int]:
    """For each position along one axis, how many of the `side - block + 1` valid seeds cover it."""
    return [min(i, side - block) - max(0, i - block + 1) + 1 for i in range(side)]
