"""One law, computed in the way that suits the device; and its gradient.

A path is a pair of functions. `draw` makes the mask: a function of (shape, keep_prob, block_size, seed). `apply`
scales and zeroes. The result is linear in x and equal to its own adjoint, so the gradient is `apply` once more.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dropblock import dense, sparse_cpu

# Bytes per unit that a mask may take between forward and backward. A larger one is drawn again from its seed.
SAVED_BYTES = 0.02


class Path(NamedTuple):
    """draw(x, keep_prob, block_size, seed) -> (kept units, mask); apply(x, kept, mask, block_size) -> output."""

    draw: Callable[[Tensor, Tensor, int, Tensor], tuple[Tensor, Tensor]]
    apply: Callable[[Tensor, Tensor, Tensor, int], Tensor]


SPARSE_CPU = Path(sparse_cpu.draw, sparse_cpu.apply)
DENSE = Path(dense.draw, dense.apply)


def path_for(device: torch.device) -> Path:
    """The fastest path on a device."""
    if device.type == "cpu":
        return SPARSE_CPU
    return gpu_path() if device.type == "cuda" else DENSE


@functools.cache
def gpu_path() -> Path:
    """The Triton kernels; the dense path where Triton is not installed. Triton is imported on first use only."""
    try:
        from dropblock import triton_kernel
    except ImportError:
        return DENSE
    return Path(triton_kernel.draw, triton_kernel.apply)


def drop(path: Path, x: Tensor, keep_prob: Tensor, block_size: int, seed: Tensor) -> tuple[Tensor, Tensor]:
    """Drop blocks along the given path, differentiably: (output in the layout of `x`, number of kept units)."""
    x = as_stored(x, sparse_cpu.channels_last(x))
    with torch.no_grad():
        kept, mask = path.draw(x, keep_prob, block_size, seed)
    return _Apply.apply(x, path, keep_prob, block_size, seed, kept, mask), kept


def as_stored(x: Tensor, channels_last: bool) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, path: Path, keep_prob: Tensor, block_size: int, seed: Tensor, kept: Tensor, mask: Tensor
    ) -> Tensor:
        ctx.path, ctx.block_size, ctx.channels_last = path, block_size, sparse_cpu.channels_last(x)
        if mask.nbytes <= SAVED_BYTES * x.numel():
            ctx.save_for_backward(kept, mask)
        else:  # copies, as a schedule may fill the originals before backward
            ctx.save_for_backward(kept, keep_prob.clone(), seed.clone())
        return path.apply(x, kept, mask, block_size)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradient = as_stored(gradient, ctx.channels_last)
        if len(ctx.saved_tensors) == 2:
            kept, mask = ctx.saved_tensors
            keep_prob = seed = kept  # not looked at: the mask is there
        else:
            kept, keep_prob, seed = ctx.saved_tensors
            mask = ctx.path.draw(gradient, keep_prob, ctx.block_size, seed)[1]
        if torch.is_grad_enabled():  # create_graph: this gradient will be differentiated in its turn
            again = _Apply.apply(gradient, ctx.path, keep_prob, ctx.block_size, seed, kept, mask)
        else:
            again = ctx.path.apply(gradient, kept, mask, ctx.block_size)
        return again, None, None, None, None, None, None


def drop_in_graph(x: Tensor, keep_prob: Tensor, block_size: int, seed: Tensor) -> tuple[Tensor, Tensor]:
    """`drop` on the path of the device, as one node of a graph that torch.compile traces."""
    return _drop_node(as_stored(x, sparse_cpu.channels_last(x)), keep_prob, block_size, seed)


@torch.library.custom_op("dropblock::drop_block2d", mutates_args=())
def _drop_node(x: Tensor, keep_prob: Tensor, block_size: int, seed: Tensor) -> tuple[Tensor, Tensor]:
    path = path_for(x.device)
    kept, mask = path.draw(x, keep_prob, block_size, seed)
    return path.apply(x, kept, mask, block_size), kept


@torch.library.custom_op("dropblock::drop_block2d_again", mutates_args=())
def _again_node(x: Tensor, keep_prob: Tensor, block_size: int, seed: Tensor, kept: Tensor) -> Tensor:
    path = path_for(x.device)
    return path.apply(x, kept, path.draw(x, keep_prob, block_size, seed)[1], block_size)


@_drop_node.register_fake
def _(x: Tensor, keep_prob: Tensor, block_size: int, seed: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), seed.new_empty(())


@_again_node.register_fake
def _(x: Tensor, keep_prob: Tensor, block_size: int, seed: Tensor, kept: Tensor) -> Tensor:
    return torch.empty_like(x)


def _remember_drop(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, keep_prob, ctx.block_size, seed = inputs
    ctx.channels_last = sparse_cpu.channels_last(x)
    ctx.save_for_backward(keep_prob, seed, output[1])


def _remember_again(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, keep_prob, ctx.block_size, seed, kept = inputs
    ctx.channels_last = sparse_cpu.channels_last(x)
    ctx.save_for_backward(keep_prob, seed, kept)


def _gradient(ctx: Any, gradient: Tensor, *_: Any) -> Tensor:
    keep_prob, seed, kept = ctx.saved_tensors
    return _again_node(as_stored(gradient, ctx.channels_last), keep_prob, ctx.block_size, seed, kept)


_drop_node.register_autograd(lambda *args: (_gradient(*args), None, None, None), setup_context=_remember_drop)
_again_node.register_autograd(lambda *args: (_gradient(*args), None, None, None, None), setup_context=_remember_again)
