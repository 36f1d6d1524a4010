"""DropBlock on the CPU: the cost follows the number of blocks, not the number of units.

At keep_prob 0.975 nine of ten 14x14 maps hold no block at all. So the blocks are drawn by the gaps between them, the
output is written once as `x * scale`, and after that only the blocks are visited, to be zeroed.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dropblock.draws import random_bits
from dropblock.rates import Geometry, geometry, seed_rate

PIECE = 1 << 21  # bytes for each thread, about what its second-level cache holds


def bernoulli_positions(trials: int, rate: float, seed: int) -> Tensor:
    """Positions of the successes among `trials` independent trials: sorted whole numbers in float64.

    The number of trials up to a success is geometric, ceil(log(u) / log(1 - rate)). The draws u have 53 bits and whole
    numbers below 2^53 add exactly in float64, so this is the Bernoulli process itself for any rate in [0, 1].
    """
    if rate <= 0.0 or trials == 0:
        return torch.empty(0, dtype=torch.float64)
    if rate >= 1.0:
        return torch.arange(trials, dtype=torch.float64)
    # One batch of gaps reaches the last trial but for five standard deviations.
    generator = torch.Generator().manual_seed(to_32_bits(seed))
    expected, per_log = trials * rate, 1 / math.log1p(-rate)
    batch = min(trials, int(expected + 5 * math.sqrt(expected)) + 8)

    def steps() -> Tensor:
        """Running sums of the gaps to the next successes."""
        return torch.rand(batch, dtype=torch.float64, generator=generator).log_().mul_(per_log).ceil_().cumsum_(0)

    position = steps().sub_(1.0)
    while (inside := int(torch.searchsorted(position, float(trials)))) == len(position):  # hardly ever
        position = torch.cat((position, steps().add_(position[-1])))
    return position[:inside]


def to_32_bits(seed: int) -> int:
    """All 64 bits of a seed in the 32 that the CPU's generator takes (splitmix64's finalizer)."""
    seed &= (1 << 64) - 1
    seed = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & ((1 << 64) - 1)
    seed = ((seed ^ (seed >> 27)) * 0x94D049BB133111EB) & ((1 << 64) - 1)
    return (seed ^ (seed >> 31)) & 0xFFFFFFFF


def draw(x: Tensor, keep_prob: Tensor, block_size: int, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Draw the blocks of a batch. Which units they drop depends on the shape of `x`, never on its memory layout.

    Returns:
        number of kept units, 0-dimensional int64; and where the first corners of the blocks lie in the memory of `x`,
        (K,) int64. A block as large as the map is named by its map instead, sample * channels + channel.
    """
    n, c, *size = x.shape
    if x.numel() == 0:
        return torch.zeros((), dtype=torch.int64), torch.empty(0, dtype=torch.int64)

    # Only the seeds that fire are drawn: at the paper's rates a few in a thousand of the valid positions.
    of = geometry(block_size, *size)
    gamma = seed_rate(float(keep_prob), block_size, *size)
    map_, corner, blocks = corners(x, of, bernoulli_positions(n * c * of.seeds, gamma, int(seed)))
    return torch.tensor(x.numel() - count_units(map_, corner, of)), blocks


def corners(x: Tensor, of: Geometry, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The blocks of some block seeds, numbered through all maps of `x`, ascending.

    Returns:
        the map of each, and the offset of its first corner if maps were stored one after the other, both float64; and
        where it lies in the memory of `x`, as `draw` gives it.
    """
    _, c, *size = x.shape
    if of.seeds == 1 or len(position) == 0:
        return position, position, position.long()

    # Division and floor in float64 are exact below 2^53, and much faster than division of integers. From the last axis
    # to the first: `above` numbers the lines, planes, maps that a seed lies in, and each of those is longer than its
    # valid part by side - seeds.
    above = corner = position
    for axis in reversed(range(len(size))):
        side, seeds = size[axis], of.valid[axis]
        above = above if seeds == 1 else (above / seeds).floor_()
        if seeds < side:
            corner = corner.add(above, alpha=(side - seeds) * of.strides[axis])
    map_, stored = above, corner

    # Offsets so far are those of maps stored one after the other; with channels last a unit is c apart from the next.
    if channels_last(x):
        sample = (map_ / c).floor_()
        stored = (corner * c).sub_(map_, alpha=of.units * c - 1).add_(sample, alpha=(of.units - 1) * c)
    return map_, corner, stored.long()


def apply(x: Tensor, kept: Tensor, blocks: Tensor, block_size: int) -> Tensor:
    """x * (count / kept), rounded once, with zeros in the blocks; `x` in the memory layout it was drawn for."""
    left = int(kept)
    if left == 0:
        return torch.zeros_like(x)
    if len(blocks) == 0:
        return x.clone()
    n, c, *size = x.shape
    of = geometry(block_size, *size)

    # Large tensors go piece by piece, so that the blocks of a piece are zeroed while it is in the cache.
    cache = PIECE * torch.get_num_threads()
    samples = n if x.nbytes <= 2 * cache else max(1, n * cache // x.nbytes)
    apart = c if of.seeds == 1 else c * of.units
    ends = [len(blocks)]
    if samples < n:  # blocks stand in the order of the samples
        ends = torch.searchsorted(blocks, torch.arange(samples, n + samples, samples) * apart).tolist()

    y, begin = torch.empty_like(x), 0
    for first, end in zip(range(0, n, samples), ends, strict=True):
        piece = y[first : first + samples]
        torch.mul(x[first : first + samples], x.numel() / left, out=piece)
        if begin < end:
            zero(piece, blocks[begin:end] - first * apart if first else blocks[begin:end], of)
        begin = end
    return y


def drop_each(
    x: Tensor, keep_prob: Tensor, block_size: int, seeds: Tensor, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Drop blocks of every sample by a seed, and a normaliser, of its own; without a gradient.

    Args:
        x: (N, C, *size), stored as `channels_last` says.
        seeds: (N,) int64. What becomes of a sample is a function of its own seed, whatever stands beside it.
        scale: factor of kept units; None: the count of a sample's units / the count of those kept.

    Returns:
        the output, and the number of kept units of each sample, (N,).
    """
    n, c, *size = x.shape
    of = geometry(block_size, *size)
    gamma = seed_rate(float(keep_prob), block_size, *size)
    map_, corner, blocks = corners(x, of, positions_of_each(c * of.seeds, gamma, seeds))
    kept = c * of.units - units_of_each(n, c, map_, corner, of)
    exact = torch.promote_types(x.dtype, torch.float32)
    factors = c * of.units / kept.clamp(min=1).double() if scale is None else torch.full((n,), scale)
    y = (x.to(exact) * factors.to(exact).view(n, *[1] * (x.ndim - 1))).to(x.dtype)
    zero(y, blocks, of)
    return y, kept


def units_of_each(n: int, c: int, map_: Tensor, corner: Tensor, of: Geometry) -> Tensor:
    """Number of units that the blocks cover in each of n samples of c maps, (n,) int64; see `count_units`."""
    if of.area == 1 or of.seeds == 1:  # no two blocks overlap
        return of.area * torch.bincount((map_ / c).long(), minlength=n)
    shared = torch.zeros(len(map_), dtype=torch.bool)
    same = map_[1:] == map_[:-1]
    shared[1:] |= same
    shared[:-1] |= same
    dropped = of.area * torch.bincount((map_[~shared] / c).long(), minlength=n)
    if shared.any():
        # Maps of several blocks get a canvas, one byte a unit.
        crowded = map_[shared]
        maps, canvas_map = torch.unique_consecutive(crowded, return_inverse=True)
        canvas = torch.zeros(len(maps) * of.units, dtype=torch.uint8)
        windows(canvas, of).index_fill_(0, (corner[shared] + (canvas_map - crowded) * of.units).long(), 1)
        dropped.index_add_(0, (maps / c).long(), canvas.view(len(maps), -1).sum(1))
    return dropped


def positions_of_each(trials: int, rate: float, seeds: Tensor) -> Tensor:
    """`bernoulli_positions` for each of some seeds, the i-th one's shifted by i * trials; in float64.

    The j-th gap of a seed is a hash of (seed, j), so all are drawn at once.
    """
    begin = trials * torch.arange(len(seeds), dtype=torch.float64)[:, None]
    if rate <= 0.0 or rate >= 1.0:
        return (begin + torch.arange(trials if rate >= 1.0 else 0)).flatten()
    expected, per_log = trials * rate, 1 / math.log1p(-rate)
    batch = min(trials, int(expected + 5 * math.sqrt(expected)) + 8)
    while True:
        # 52 bits in the middle of their steps: never 0 and never 1.
        u = (random_bits((1, batch), seeds[:, None]) >> 10).double().add_(0.5).mul_(2.0**-52)
        position = u.log_().mul_(per_log).ceil_().cumsum_(1).sub_(1.0)
        if bool((position[:, -1] >= trials).all()) or batch == trials:
            return (position + begin).masked_select(position < trials)  # in half of the time of an index
        batch = min(trials, 2 * batch)  # hardly ever


def zero(y: Tensor, blocks: Tensor, of: Geometry) -> None:
    """Zero blocks in place, given as `draw` gives them."""
    n, c, *size = y.shape
    if of.seeds > 1:
        windows(y, of, c if channels_last(y) else 1).index_fill_(0, blocks, 0)
    elif not channels_last(y):
        y.view(n * c, -1).index_fill_(0, blocks, 0)
    else:
        # The units of a map lie c apart: one pass over all of them is faster than visiting those. A pass over their
        # bits, because NaN * 0 is NaN.
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[y.element_size()]
        keep = torch.full((n * c,), -1, dtype=bits).index_fill_(0, blocks, 0)
        y.view(bits).bitwise_and_(keep.view(n, c, *[1] * len(size)))


CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last(x: Tensor) -> bool:
    """True if the channels of a unit lie side by side; torch knows this layout for two and three axes."""
    layout = CHANNELS_LAST.get(x.ndim)
    return layout is not None and x.is_contiguous(memory_format=layout) and not x.is_contiguous()


def windows(buffer: Tensor, of: Geometry, apart: int = 1) -> Tensor:
    """All blocks of a buffer as overlapping views: entry i is the block whose corner lies at offset i.

    Neighbours in a line lie `apart` apart.
    """
    strides = [apart * stride for stride in of.strides]
    behind = sum([(b - 1) * stride for b, stride in zip(of.block, strides, strict=True)])
    return buffer.as_strided((buffer.numel() - behind, *of.block), (1, *strides))


def count_units(map_: Tensor, corner: Tensor, of: Geometry) -> int:
    """Number of units that the blocks cover. Blocks overlap only in maps that hold several: those alone are painted.

    Args:
        map_, corner: (K,) float64, the map that a block lies in and its offset if maps are stored one after the other.
        of: geometry of the blocks and maps.
    """
    area, units = of.area, of.units
    # Blocks whose map is that of the block before.
    second = (map_[1:] == map_[:-1]).nonzero().view(-1) + 1
    if len(second) == 0:
        return len(map_) * area

    # Only the crowded maps get a canvas, one byte a unit.
    crowded = map_[second]
    maps, canvas_map = torch.unique_consecutive(crowded, return_inverse=True)
    pairs = corner.unfold(0, 2, 1)[second - 1]  # to paint a block twice does no harm
    offset = pairs.add_(canvas_map.sub(crowded).mul_(units).unsqueeze(1)).long().view(-1)
    canvas = torch.zeros(math.ceil(len(maps) * units / 1024) * 1024, dtype=torch.uint8)
    windows(canvas, of).index_fill_(0, offset, 1)
    # Summed eight bytes at a time as int64 words: 128 ones cannot carry into the next byte.
    painted = int(canvas.view(torch.int64).view(128, -1).sum(0).view(torch.uint8).sum())
    return (len(map_) - len(second) - len(maps)) * area + painted
