"""DropBlock on a GPU, in Triton: one launch draws, one applies, and one is the gradient.

`_draw` decides the blocks without touching an activation. It walks each map from block to block by geometric gaps, as
the CPU path does, so a map costs as many draws as it holds blocks, plus one. It leaves one bit per unit, which is kept
for backward, the count for the one global normaliser, and adds to the counters of the layer. `_apply_*` then read x
once and write y once. Seed and keep_prob are read on the device: nothing waits for the host, and a CUDA graph can be
replayed with other values.

So far this has run in Triton's interpreter only, where the tests compare it with the closed form. It has not run on a
GPU yet, and no speed of it was measured.
"""

# mypy: disable-error-code="no-untyped-def"
# (Triton gives the arguments of a kernel their types.)

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from dropblock.rates import effective_block
from dropblock.sparse_cpu import channels_last

# Values per program. The interpreter pays per program, a GPU per register.
TILE = 1 << 14 if triton.knobs.runtime.interpret else 1 << 11
ONE_PROGRAM = tl.constexpr(1 << 40)  # in the word that the programs of a draw share; units stand below it
HERE = contextlib.nullcontext()


@triton.jit
def _next_block(position, seed, map_, turn, q, CELLS: tl.constexpr, DIGITS: tl.constexpr):
    """From one block of a map to its next: a geometric number of cells without a block, P(k or more) = q^k, lies
    between them.

    The binary digits of such a number are independent: digit j is 1 with probability q^(2^j) / (1 + q^(2^j)), and it
    has more than DIGITS of them with probability q^(2^DIGITS). So each is one comparison of whole numbers; a logarithm
    would need double precision. docs/OP.md has the error.
    """
    zero = map_ * 0
    gap, power = zero, q
    for j in tl.static_range(DIGITS + 1):
        # A word of 32 bits for each digit, behind them 30 bits that all share and that decide once in 2^32 draws.
        if j == 0 or (j + 1) % 4 == 0:
            words = tl.philox(seed, map_, zero + turn, zero + (j + 1) // 4, zero)
        if j == 0:
            low = words[0]
        u = (words[(j + 1) % 4].to(tl.int64) << 30) | (low.to(tl.int64) >> 2)
        if j < DIGITS:
            rounded = power.to(tl.float32)
            gap += tl.where(u < (rounded / (1.0 + rounded) * 4611686018427387904.0).to(tl.int64), 1 << j, 0)
            power *= power
        else:
            gap = tl.where(u < ((1.0 - power) * 4611686018427387904.0).to(tl.int64), gap, CELLS)
    return tl.minimum(position + 1 + gap, CELLS)


# The scalars of layers lie one behind the other: compiled once, and not once for each way that four addresses may end.
SCALARS = ["keep_prob_ptr", "seed_ptr", "draw_state_ptr", "kept_units_ptr", "seen_units_ptr"]


@triton.jit(do_not_specialize_on_alignment=SCALARS)
def _draw(
    bits_ptr, kept_ptr, keep_prob_ptr, seed_ptr, draw_state_ptr, kept_units_ptr, seen_units_ptr, maps, channels,
    H: tl.constexpr, W: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, PITCH: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, MAPS: tl.constexpr, LINES: tl.constexpr, BYTES: tl.constexpr,
    DIGITS: tl.constexpr, COUNTS: tl.constexpr,
):  # fmt: skip
    """Bit t of byte k in line i of a map: whether unit (i, 8 k + t) is dropped. The number of the others is `kept`."""
    COLUMNS: tl.constexpr = W - BW + 1
    CELLS: tl.constexpr = (H - BH + 1) * COLUMNS
    map_ = tl.program_id(0) * MAPS + tl.arange(0, MAPS)
    line = tl.program_id(1) * LINES + tl.arange(0, LINES)
    byte = tl.arange(0, BYTES)
    seed = tl.load(seed_ptr)
    wanted = 1.0 - tl.load(keep_prob_ptr).to(tl.float64)
    gamma = tl.minimum(tl.maximum(wanted, 0.0), 1.0) * (H * W / (BH * BW * CELLS))
    q = tl.maximum(1.0 - gamma, 0.0)

    # From block to block of each map, until all maps of this program are through. A block sets a run of bits in every
    # line that it covers.
    bits = tl.zeros((MAPS, LINES, BYTES), dtype=tl.int32)
    position = tl.where(map_ < maps, -1, CELLS)
    turn = 0
    position = _next_block(position, seed, map_, turn, q, CELLS, DIGITS)
    while tl.min(position, axis=0) < CELLS:
        top, left = position // COLUMNS, position % COLUMNS
        covered = (line[None, :] >= top[:, None]) & (line[None, :] < top[:, None] + BH) & (position < CELLS)[:, None]
        first = tl.minimum(tl.maximum(left[:, None] - 8 * byte[None, :], 0), 8)
        behind = tl.minimum(tl.maximum(left[:, None] + BW - 8 * byte[None, :], 0), 8)
        run = (1 << behind) - (1 << first)
        bits |= tl.where(covered[:, :, None], run[:, None, :], 0)
        turn += 1
        position = _next_block(position, seed, map_, turn, q, CELLS, DIGITS)

    # Overlapping blocks share bits, so units are counted when all are drawn: in pairs, fours, eights of bits.
    inside = (map_ < maps)[:, None, None] & (line < H)[None, :, None] & (byte < PITCH)[None, None, :]
    pairs = bits - ((bits >> 1) & 0x55)
    fours = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    dropped = tl.sum(tl.where(inside, (fours + (fours >> 4)) & 0x0F, 0))
    # Programs add their units and themselves to one word, so that the last to come knows the sum of all: it writes the
    # count, adds to the counters of the layer, and leaves the word at 0 for the next call. No other program reads what
    # it writes, so nothing is ordered by a fence.
    mine = dropped.to(tl.int64) + ONE_PROGRAM
    total = tl.atomic_add(draw_state_ptr, mine, sem="relaxed") + mine
    if total // ONE_PROGRAM == tl.num_programs(0) * tl.num_programs(1):
        units = tl.to_tensor(maps).to(tl.int64) * (H * W)  # Triton makes a constant of a 1
        kept = units - total % ONE_PROGRAM
        tl.store(kept_ptr, kept)
        tl.store(draw_state_ptr, kept * 0)
        if COUNTS:
            tl.store(kept_units_ptr, tl.load(kept_units_ptr) + kept)
            tl.store(seen_units_ptr, tl.load(seen_units_ptr) + units)

    # The bits lie as the units do, so that the kernel that applies them reads both in one direction.
    where = map_.to(tl.int64)[:, None, None]
    if CHANNELS_LAST:
        row = (where // channels) * H + line[None, :, None]
        address = (row * PITCH + byte[None, None, :]) * channels + where % channels
    else:
        address = (where * H + line[None, :, None]) * PITCH + byte[None, None, :]
    tl.store(bits_ptr + address, bits.to(tl.uint8), mask=inside)


@triton.jit
def _scaled(x, drop, kept_ptr, units, EXACT: tl.constexpr):
    """where(drop, 0, x * (units / kept)), the product formed in EXACT and rounded once."""
    kept = tl.maximum(tl.load(kept_ptr), 1)
    scale = (tl.to_tensor(units).to(tl.float64) / kept.to(tl.float64)).to(EXACT)
    return tl.where(drop != 0, 0.0, (x.to(EXACT) * scale)).to(x.dtype)


@triton.jit
def _apply_contiguous(
    x_ptr, y_ptr, bits_ptr, kept_ptr, units,
    W: tl.constexpr, PITCH: tl.constexpr, EXACT: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """Eight units at a time, whatever their lines: all index arithmetic is done once for the eight."""
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    start = group * 8
    row, column = start // W, (start % W).to(tl.int32)
    address = bits_ptr + row * PITCH + column // 8
    inside = start < units
    two_bytes = tl.load(address, mask=inside, other=0).to(tl.int32)
    two_bytes |= tl.load(address + 1, mask=inside, other=0).to(tl.int32) << 8  # a line ends with a byte of zeros
    drop = two_bytes >> (column % 8)
    for k in tl.static_range(1, (2 * W + 6) // W):  # the lines that begin within the eight units
        shift = k * W - column
        begins = (shift < 8) & (start + shift < units)
        drop |= tl.load(bits_ptr + (row + k) * PITCH, mask=begins, other=0).to(tl.int32) << tl.minimum(shift, 8)
    unit = start[:, None] + tl.arange(0, 8)[None, :]
    x = tl.load(x_ptr + unit, mask=unit < units)
    y = _scaled(x, (drop[:, None] >> tl.arange(0, 8)[None, :]) & 1, kept_ptr, units, EXACT)
    tl.store(y_ptr + unit, y, mask=unit < units)


@triton.jit
def _apply_channels_last(
    x_ptr, y_ptr, bits_ptr, kept_ptr, units, strips, channels,
    W: tl.constexpr, PITCH: tl.constexpr, EXACT: tl.constexpr, STRIPS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A strip is eight neighbours in a line, for all channels; the bits of a strip are one byte per channel."""
    strip = (tl.program_id(0).to(tl.int64) * STRIPS + tl.arange(0, STRIPS))[:, None, None]
    channel = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, None, :]
    eight = tl.arange(0, 8)[None, :, None]
    inside = (strip < strips) & (channel < channels)
    byte = tl.load(bits_ptr + strip * channels + channel, mask=inside, other=0).to(tl.int32)
    column = (strip % PITCH) * 8 + eight
    unit = ((strip // PITCH) * W + column) * channels + channel
    inside = inside & (column < W)
    x = tl.load(x_ptr + unit, mask=inside)
    y = _scaled(x, (byte >> eight) & 1, kept_ptr, units, EXACT)
    tl.store(y_ptr + unit, y, mask=inside)


def draw(
    x: Tensor, keep_prob: Tensor, block_size: int, seed: Tensor, counters: tuple[Tensor, Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Draw the blocks of a batch. Which units they drop depends on the shape of `x`, never on its memory layout.

    Args:
        counters: those of a layer, to be added to; see `operator.Backend`.

    Returns:
        number of kept units, 0-dimensional int64; and the bits of dropped units, uint8, laid out for `apply`.
    """
    launch = _draw_launch(TILE, block_size, channels_last(x), *x.shape)
    if launch is None:
        return torch.zeros((), dtype=torch.int64, device=x.device), torch.empty(0, dtype=torch.uint8, device=x.device)
    grid, number, arguments = launch
    kept = torch.empty((), dtype=torch.int64, device=x.device)
    bits = torch.empty(number, dtype=torch.uint8, device=x.device)
    # A layer has the word that the programs share at 0; for a call without a layer it is made.
    kept_units, seen_units, state = counters or (kept, kept, torch.zeros((), dtype=torch.int64, device=x.device))
    with _on(x):
        _draw[grid](bits, kept, keep_prob, seed, state, kept_units, seen_units, *arguments, counters is not None)
    return kept, bits


def apply(x: Tensor, kept: Tensor, bits: Tensor, block_size: int) -> Tensor:
    """x * (count / kept), rounded once, with zeros in the blocks; `x` in the memory layout it was drawn for."""
    y = torch.empty_like(x)
    last = channels_last(x)
    launch = _apply_launch(TILE, last, x.dtype == torch.float64, *x.shape)
    if launch is not None:
        grid, arguments = launch
        with _on(x):
            (_apply_channels_last if last else _apply_contiguous)[grid](x, y, bits, kept, *arguments)
    return y


# Grids and constants of a launch follow from shape, block and layout alone: worked out once for each.


@functools.lru_cache(maxsize=1024)
def _draw_launch(
    tile: int, block_size: int, last: bool, *shape: int
) -> tuple[tuple[int, int], int, tuple[Any, ...]] | None:
    """(grid, bytes of the mask, arguments after the tensors) of a draw; None where there is no unit."""
    n, c, height, width = _sizes(shape)
    if n * c == 0 or height * width == 0:
        return None
    b_h, b_w = effective_block(block_size, height, width)
    digits = ((height - b_h + 1) * (width - b_w + 1) - 1).bit_length()  # of the longest gap within a map
    pitch = _pitch(width, last)
    width_in_bytes = triton.next_power_of_2(pitch)
    lines = max(1, min(triton.next_power_of_2(height), tile // width_in_bytes))
    maps = max(1, tile // (lines * width_in_bytes))
    grid = math.ceil(n * c / maps), math.ceil(height / lines)
    constants = height, width, b_h, b_w, pitch, last, maps, lines, width_in_bytes, digits
    return grid, n * c * height * pitch, (n * c, c, *constants)


@functools.lru_cache(maxsize=1024)
def _apply_launch(tile: int, last: bool, double: bool, *shape: int) -> tuple[tuple[int, ...], tuple[Any, ...]] | None:
    """(grid, arguments after the tensors) of `apply`; None where there is no unit."""
    n, c, height, width = _sizes(shape)
    units = n * c * height * width
    if units == 0:
        return None
    pitch, exact = _pitch(width, last), tl.float64 if double else tl.float32
    if not last:
        return (math.ceil(units / tile),), (units, width, pitch, exact, tile // 8)
    channels = min(triton.next_power_of_2(c), tile // 8)
    strips, strips_at_once = n * height * pitch, tile // (8 * channels)
    grid = math.ceil(strips / strips_at_once), math.ceil(c / channels)
    return grid, (units, strips, c, width, pitch, exact, strips_at_once, channels)


def _pitch(width: int, channels_last: bool) -> int:
    """Bytes from one line of bits to the next."""
    return math.ceil(width / 8) + (0 if channels_last else 1)


def _sizes(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """(N, C, H, W). A map with one axis is a map of one line: the sampling rule is the same for the two."""
    n, c, *size = shape
    height, width = size if len(size) == 2 else (1, *size)
    return n, c, height, width


def _on(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be that of `x`."""
    if x.is_cuda and x.device.index != torch.cuda.current_device():
        return torch.cuda.device(x.device)
    return HERE
