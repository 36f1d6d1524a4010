"""One sampling rule, computed in the way that suits the device; and its gradient.

A backend is a pair of functions. `draw` makes the mask: a function of (shape, keep_prob, block_size, seed). `apply`
scales and zeroes. The result is linear in x and equal to its own adjoint, so the gradient is `apply` once more.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dropblock import sparse_cpu
from dropblock.reference import dense_apply, dense_draw
from dropblock.sparse_cpu import CHANNELS_LAST, channels_last

# Bytes per unit that a mask may take between forward and backward. A larger one is drawn again from its seed. The bits
# of the Triton kernels stay below it where a line has seven units and more: reading them costs less than drawing.
SAVED_BYTES = 0.3

# Of a layer, 0-dimensional int64 tensors on its device: kept units, seen units, and a word that is 0 between two calls,
# for programs of a GPU that add up what they keep.
Counters = tuple[Tensor, Tensor, Tensor]


class Backend(NamedTuple):
    """A way to compute the operator on one kind of device.

    `draw(x, keep_prob, block_size, seed)` returns (kept, mask):

    - It uses shape, layout and device of `x`, not the values: backward passes the gradient. `x` has one to three axes
      after (N, C), contiguous or channels-last. `keep_prob` (float32) and `seed` (int64) are 0-dimensional tensors on
      its device; reading them on the host synchronizes a GPU.
    - kept: number of kept units, a 0-dimensional int64 tensor on the device; 0 for an empty batch.
    - mask: a tensor that only `apply` reads: bits, corners, or the seed. It is kept for backward up to `SAVED_BYTES` a
      unit, else drawn again, so equal arguments give equal masks.
    - What is dropped is a function of shape, keep_prob, block size and seed alone. Every valid block seed is drawn with
      probability `rates.seed_rate`, at a resolution finer than float32 (rates of 1e-6 are tested).

    `apply(x, kept, mask, block_size)` returns where(mask, x * scale, 0), scale = units / kept units, in the type and
    layout of `x`: computed in float32 (float64 for float64), rounded once, 0 where a dropped unit is NaN, all zero if
    nothing is kept. It is its own adjoint, so the gradient needs nothing else.

    With `counts`, draw takes the counters of a layer as a fifth argument (None for none) and adds to them itself; it
    computes by no operation of torch that autograd sees.
    """

    draw: Callable[..., tuple[Tensor, Tensor]]
    apply: Callable[[Tensor, Tensor, Tensor, int], Tensor]
    name: str = ""  # in the tables of benchmarks
    counts: bool = False


SPARSE_CPU = Backend(sparse_cpu.draw, sparse_cpu.apply, "sparse")
DENSE = Backend(dense_draw, dense_apply, "dense")


def backend_for(x: Tensor) -> Backend:
    """The fastest backend for a tensor on its device. The Triton kernels know maps of one and two axes."""
    if x.device.type == "cpu":
        return SPARSE_CPU
    return gpu_backend(x.device) if x.device.type == "cuda" and x.ndim < 5 else DENSE


@functools.cache
def gpu_backend(device: torch.device) -> Backend:
    """The Triton kernels; the dense backend where Triton is not installed (silently) or cannot compile (a warning).

    Triton is imported on first use only, and each kernel tried on a few units: it may lack a C compiler, or the GPU may
    be too old.
    """
    if importlib.util.find_spec("triton") is None:
        return DENSE
    try:
        from dropblock import triton_kernel

        backend = Backend(triton_kernel.draw, triton_kernel.apply, "triton", counts=True)
        zero = torch.zeros((), dtype=torch.int64, device=device)
        for dtype, layout in ((torch.float32, torch.contiguous_format), (torch.bfloat16, torch.channels_last)):
            x = torch.ones(1, 2, 2, 2, dtype=dtype, device=device).contiguous(memory_format=layout)
            kept, mask = backend.draw(x, torch.ones((), device=device), 1, zero)
            backend.apply(x, kept, mask, 1)
    except Exception as error:  # each of Triton's stages and backends has error types of its own
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(f"DropBlock runs without its Triton kernels on {device} ({reason})", stacklevel=2)
        return DENSE
    return backend


def drop(
    backend: Backend, x: Tensor, keep_prob: Tensor, block_size: int, seed: Tensor, counters: Counters | None = None
) -> tuple[Tensor, Tensor]:
    """Drop blocks with the given backend, differentiably: (output in the layout of `x`, number of kept units).

    Args:
        counters: those of a layer, which the units of this call are added to.
    """
    # The layout decides the indices of the sparse mask: backward has to see the same one.
    x = as_stored(x, channels_last(x))
    if backend.counts:
        kept, mask = backend.draw(x, keep_prob, block_size, seed, counters)
    else:
        with torch.no_grad():
            kept, mask = backend.draw(x, keep_prob, block_size, seed)
            if counters is not None:
                counters[0].add_(kept)
                counters[1].add_(x.numel())
    return _Apply.apply(x, backend, keep_prob, block_size, seed, kept, mask), kept


@torch.no_grad()
def drop_each(x: Tensor, keep_prob: Tensor, block_size: int, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """Drop blocks of every sample by a seed, and a normaliser, of its own: for averages over masks, without a gradient.

    What becomes of a sample is a function of its own seed, whatever stands beside it in the batch.

    Args:
        seeds: (N,) int64, on the device of `x`.

    Returns:
        the output, and the number of kept units of each sample, (N,).
    """
    if x.device.type == "cpu":
        return sparse_cpu.drop_each(as_stored(x, channels_last(x)), keep_prob, block_size, seeds)
    return dense_each(x, keep_prob, block_size, seeds)


def dense_each(x: Tensor, keep_prob: Tensor, block_size: int, seeds: Tensor) -> tuple[Tensor, Tensor]:
    """`drop_each` on any device, by the dense backend."""

    def drop_one(one: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        kept, mask = dense_draw(one[None], keep_prob, block_size, seed)
        return dense_apply(one[None], kept, mask, block_size)[0], kept

    return torch.vmap(drop_one)(x, seeds)


def as_stored(x: Tensor, last: bool) -> Tensor:
    """`x` in memory: contiguous, or with its channels last."""
    return x.contiguous(memory_format=CHANNELS_LAST[x.ndim] if last else torch.contiguous_format)


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        backend: Backend,
        keep_prob: Tensor,
        block_size: int,
        seed: Tensor,
        kept: Tensor,
        mask: Tensor,
    ) -> Tensor:
        ctx.backend, ctx.block_size, ctx.channels_last = backend, block_size, channels_last(x)
        if mask.nbytes <= SAVED_BYTES * x.numel():
            ctx.save_for_backward(kept, mask)
        else:  # copies, as a schedule may fill the originals before backward
            ctx.save_for_backward(kept, keep_prob.clone(), seed.clone())
        return backend.apply(x, kept, mask, block_size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient = as_stored(gradient, ctx.channels_last)
        saved = ctx.saved_tensors  # read once: activation checkpointing refuses a second time
        if len(saved) == 2:
            kept, mask = saved
            keep_prob = seed = kept  # not looked at: the mask is there
        else:
            kept, keep_prob, seed = saved
            mask = ctx.backend.draw(gradient, keep_prob, ctx.block_size, seed)[1]
        if torch.is_grad_enabled():  # create_graph: this gradient will be differentiated in its turn
            again = _Apply.apply(gradient, ctx.backend, keep_prob, ctx.block_size, seed, kept, mask)
        else:
            again = ctx.backend.apply(gradient, kept, mask, ctx.block_size)
        return again, None, None, None, None, None, None
