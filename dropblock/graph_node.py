"""The operator as one node: what torch.compile, torch.export, torch.jit.trace and the transforms of torch.func see.

Same masks, same values as `operator.drop`. What lies between forward and backward is the seed and never the mask,
whose size depends on the draw. Both nodes have rules for gradients, in reverse and (by torch.func) in forward mode, and
for torch.vmap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dropblock.operator import as_stored, backend_for
from dropblock.sparse_cpu import channels_last


def wanted() -> bool:
    """True while torch.compile, torch.jit.trace or a transform of torch.func looks at the program."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or transformed()


def transformed() -> bool:
    """True while a transform of torch.func is active."""
    # torch has no public name for this question.
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def drop_in_graph(x: Tensor, keep_prob: Tensor, block_size: int, seed: Tensor) -> tuple[Tensor, Tensor]:
    """`drop` with the backend of the device, as one node of a graph."""
    if transformed():  # there the layout of a tensor cannot be asked for
        return _Drop.apply(x, keep_prob, block_size, seed, False)[:2]
    return drop_node(x, keep_prob, block_size, seed, channels_last(x))[:2]


@torch.library.custom_op("dropblock::drop_block", mutates_args=())
def drop_node(
    x: Tensor, keep_prob: Tensor, block_size: int, seed: Tensor, last: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(output, kept units, keep_prob, seed). The copies are for backward: a schedule may fill the originals before."""
    x = as_stored(x, last)
    backend = backend_for(x)
    kept, mask = backend.draw(x, keep_prob, block_size, seed)
    return backend.apply(x, kept, mask, block_size), kept, keep_prob.clone(), seed.clone()


@torch.library.custom_op("dropblock::drop_block_again", mutates_args=())
def again_node(x: Tensor, keep_prob: Tensor, block_size: int, seed: Tensor, kept: Tensor, last: bool) -> Tensor:
    """The same mask on another tensor of the shape: the gradient, and the gradient of the gradient."""
    x = as_stored(x, last)
    backend = backend_for(x)
    return backend.apply(x, kept, backend.draw(x, keep_prob, block_size, seed)[1], block_size)


@drop_node.register_fake
def _(x: Tensor, keep_prob: Tensor, block_size: int, seed: Tensor, last: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return as_stored(torch.empty_like(x), last), seed.new_empty(()), keep_prob.clone(), seed.clone()


@again_node.register_fake
def _(x: Tensor, keep_prob: Tensor, block_size: int, seed: Tensor, kept: Tensor, last: bool) -> Tensor:
    return as_stored(torch.empty_like(x), last)


def _remember_drop(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.block_size, ctx.last = inputs[2], inputs[4]
    ctx.save_for_backward(*output[2:], output[1])


def _remember_again(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, keep_prob, ctx.block_size, seed, kept, ctx.last = inputs
    ctx.save_for_backward(keep_prob, seed, kept)


def _gradient(again: Callable[..., Tensor], ctx: Any, gradient: Tensor) -> Tensor:
    keep_prob, seed, kept = ctx.saved_tensors
    return again(gradient, keep_prob, ctx.block_size, seed, kept, ctx.last)


drop_node.register_autograd(
    lambda ctx, gradient, *_: (_gradient(again_node, ctx, gradient), *[None] * 4), setup_context=_remember_drop
)
again_node.register_autograd(
    lambda ctx, gradient: (_gradient(again_node, ctx, gradient), *[None] * 5), setup_context=_remember_again
)


class _Drop(torch.autograd.Function):
    """`drop_node` for torch.func, whose transforms do not know the gradient of a registered operator."""

    generate_vmap_rule = True
    forward = staticmethod(drop_node)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        _remember_drop(ctx, inputs, output)
        ctx.save_for_forward(*output[2:], output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        return _gradient(_Again.apply, ctx, gradient), None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        return _gradient(_Again.apply, ctx, tangent), None, None, None  # linear in x: its tangent meets the same mask


class _Again(torch.autograd.Function):
    """`again_node` for torch.func."""

    generate_vmap_rule = True
    forward = staticmethod(again_node)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _remember_again(ctx, inputs, output)
        ctx.save_for_forward(inputs[1], inputs[3], inputs[4])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _gradient(_Again.apply, ctx, gradient), None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return _gradient(_Again.apply, ctx, tangent)


def _slices(info: Any, in_dims: tuple[int | None, ...], arguments: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """The arguments of each of the calls that torch.vmap batches."""
    return [
        tuple(a if dim is None else a.select(dim, i) for a, dim in zip(arguments, in_dims, strict=True))
        for i in range(info.batch_size)
    ]


@drop_node.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """One call each: a normaliser of its own, and a mask of its own where the seed differs (randomness="different")."""
    results = zip(*(drop_node(*one) for one in _slices(info, in_dims, arguments)), strict=True)
    return tuple(torch.stack(result) for result in results), (0, 0, 0, 0)


@again_node.register_vmap
def _(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
    return torch.stack([again_node(*one) for one in _slices(info, in_dims, arguments)]), 0


@torch.library.custom_op("dropblock::count", mutates_args=("kept_units", "seen_units"))
def count_node(kept_units: Tensor, seen_units: Tensor, kept: Tensor, units: int) -> None:
    """Add to the counters of a layer. A transform allows no `+=` on a tensor from outside, but a node of its own."""
    kept_units += kept
    seen_units += units


@count_node.register_vmap
def _(
    info: Any, in_dims: tuple[int | None, ...], kept_units: Tensor, seen_units: Tensor, kept: Tensor, units: int
) -> tuple[None, None]:
    if in_dims[0] is not None:  # a layer for each entry, as in an ensemble
        count_node(kept_units, seen_units, kept, units)
    else:
        kept = kept * info.batch_size if in_dims[2] is None else kept.sum()
        count_node(kept_units, seen_units, kept, units * info.batch_size)
    return None, None
