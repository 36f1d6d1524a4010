"""DropBlock on a GPU, in Triton: two kernels, and nothing kept for backward but a seed and a count.

`_draw` decides the blocks without touching an activation. It walks each map from block to block by geometric gaps, as
the CPU path does, so a map costs as many draws as it holds blocks, plus one. It leaves one bit per unit, which is small
enough to stay in the cache, and the count for the one global normaliser. `_apply_*` then read x once and write y once.
Backward draws the same bits again from the seed. Seed and keep_prob are read on the device: nothing waits for the host,
and a CUDA graph can be replayed with other values.

So far this has run in Triton's interpreter only, where the tests compare it with the closed form. It has not run on a
GPU yet, and no speed of it was measured.
"""

# mypy: disable-error-code="no-untyped-def"
# (Triton gives the arguments of a kernel their types.)

from __future__ import annotations

import contextlib
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


@triton.jit
def _next_block(position, seed, map_, turn, gamma, CELLS: tl.constexpr):
    """From one block of a map to its next: a geometric number of cells without a block lies between them."""
    high, low, _, _ = tl.philox(seed, map_, map_ * 0 + turn, map_ * 0, map_ * 0)
    # 53 bits, as the tail of a geometric distribution with a small rate needs them; never 0.
    u = ((high >> 5).to(tl.float64) * 67108864.0 + (low >> 6).to(tl.float64) + 0.5) * (1.0 / 9007199254740992.0)
    gap = tl.minimum(tl.floor(tl.log(u) / tl.log(1.0 - gamma)), CELLS)
    gap = tl.where(gamma > 0.0, gap, CELLS)
    return tl.minimum(position + 1 + gap.to(tl.int32), CELLS)


@triton.jit
def _draw(
    bits_ptr, kept_ptr, keep_prob_ptr, seed_ptr, maps, channels,
    H: tl.constexpr, W: tl.constexpr, BH: tl.constexpr, BW: tl.constexpr, PITCH: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, MAPS: tl.constexpr, LINES: tl.constexpr, BYTES: tl.constexpr,
):  # fmt: skip
    """Bit t of byte k in line i of a map: whether unit (i, 8 k + t) is dropped. Subtracts their number from kept."""
    COLUMNS: tl.constexpr = W - BW + 1
    CELLS: tl.constexpr = (H - BH + 1) * COLUMNS
    map_ = tl.program_id(0) * MAPS + tl.arange(0, MAPS)
    line = tl.program_id(1) * LINES + tl.arange(0, LINES)
    byte = tl.arange(0, BYTES)
    seed = tl.load(seed_ptr)
    wanted = 1.0 - tl.load(keep_prob_ptr).to(tl.float64)
    gamma = tl.minimum(tl.maximum(wanted, 0.0), 1.0) * (H * W) / (BH * BW * CELLS)

    # From block to block of each map, until all maps of this program are through. A block sets a run of bits in every
    # line that it covers.
    bits = tl.zeros((MAPS, LINES, BYTES), dtype=tl.int32)
    position = tl.where(map_ < maps, -1, CELLS)
    turn = 0
    position = _next_block(position, seed, map_, turn, gamma, CELLS)
    while tl.min(position, axis=0) < CELLS:
        top, left = position // COLUMNS, position % COLUMNS
        covered = (line[None, :] >= top[:, None]) & (line[None, :] < top[:, None] + BH) & (position < CELLS)[:, None]
        first = tl.minimum(tl.maximum(left[:, None] - 8 * byte[None, :], 0), 8)
        behind = tl.minimum(tl.maximum(left[:, None] + BW - 8 * byte[None, :], 0), 8)
        run = (1 << behind) - (1 << first)
        bits |= tl.where(covered[:, :, None], run[:, None, :], 0)
        turn += 1
        position = _next_block(position, seed, map_, turn, gamma, CELLS)

    # Overlapping blocks share bits, so units are counted when all are drawn: in pairs, fours, eights of bits.
    inside = (map_ < maps)[:, None, None] & (line < H)[None, :, None] & (byte < PITCH)[None, None, :]
    pairs = bits - ((bits >> 1) & 0x55)
    fours = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    dropped = tl.sum(tl.where(inside, (fours + (fours >> 4)) & 0x0F, 0))
    # Only the next kernel reads the count: nothing to order, and no fence.
    tl.atomic_add(kept_ptr, -dropped.to(tl.int64), sem="relaxed")

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


def draw(x: Tensor, keep_prob: Tensor, block_size: int, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Draw the blocks of a batch. Which units they drop depends on the shape of `x`, never on its memory layout.

    Returns:
        number of kept units, 0-dimensional int64; and the bits of dropped units, uint8, laid out for `apply`.
    """
    n, c, height, width = _sizes(x)
    kept = torch.full((), x.numel(), dtype=torch.int64, device=x.device)
    last = channels_last(x)
    pitch = _pitch(width, last)
    bits = torch.empty(n * c * height * pitch, dtype=torch.uint8, device=x.device)
    if x.numel() == 0:
        return kept, bits
    b_h, b_w = effective_block(block_size, height, width)
    width_in_bytes = triton.next_power_of_2(pitch)
    lines = max(1, min(triton.next_power_of_2(height), TILE // width_in_bytes))
    maps = max(1, TILE // (lines * width_in_bytes))
    with _on(x):
        _draw[(math.ceil(n * c / maps), math.ceil(height / lines))](
            bits, kept, keep_prob, seed, n * c, c, height, width, b_h, b_w, pitch, last, maps, lines, width_in_bytes
        )
    return kept, bits


def apply(x: Tensor, kept: Tensor, bits: Tensor, block_size: int) -> Tensor:
    """x * (count / kept), rounded once, with zeros in the blocks; `x` in the memory layout it was drawn for."""
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    n, c, height, width = _sizes(x)
    last = channels_last(x)
    pitch = _pitch(width, last)
    exact = tl.float64 if x.dtype == torch.float64 else tl.float32
    with _on(x):
        if last:
            channels = min(triton.next_power_of_2(c), TILE // 8)
            strips, strips_at_once = n * height * pitch, TILE // (8 * channels)
            grid = (math.ceil(strips / strips_at_once), math.ceil(c / channels))
            _apply_channels_last[grid](
                x, y, bits, kept, x.numel(), strips, c, width, pitch, exact, strips_at_once, channels
            )
        else:
            programs = math.ceil(x.numel() / TILE)
            _apply_contiguous[(programs,)](x, y, bits, kept, x.numel(), width, pitch, exact, TILE // 8)
    return y


def _pitch(width: int, channels_last: bool) -> int:
    """Bytes from one line of bits to the next."""
    return math.ceil(width / 8) + (0 if channels_last else 1)


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    """(N, C, H, W). A map with one axis is a map of one line: the sampling rule is the same for the two."""
    n, c, *size = x.shape
    height, width = size if len(size) == 2 else (1, *size)
    return n, c, height, width


def _on(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be that of `x`."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
