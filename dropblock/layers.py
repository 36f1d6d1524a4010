"""Thin modules around the operators: each holds its keep_prob, its mask seed and its counters, and nothing else.

All of these are buffers that a `state_dict` leaves out, so a network has the same keys with any layer or none, and a
schedule may change keep_prob between steps without a recompilation or a host synchronisation. Those of the layers that
are installed together lie in one tensor (`Shared`), so that a step sets them all in one launch.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from itertools import groupby
from numbers import Integral
from types import FunctionType
from typing import Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor, fx, nn

from dropblock.draws import STEP, mixed
from dropblock.functional import (
    BLOCK_SIZE,
    Rate,
    as_number,
    check_maps,
    checked_drop,
    fresh_seed,
    refuse_positional,
    share_to_keep,
)
from dropblock.graph_node import count_node, transformed, wanted
from dropblock.operator import backend_for, drop, drop_each
from dropblock.rates import effective_block, expected_drop, seed_rate

OWN = "own"  # the group of a layer that is a child of the network itself, not at a site
INTEGERS = ("mask_seed", "kept_units", "seen_units", "draw_state")
SHARED = ("keep_prob", *INTEGERS)


class Shared:
    """The buffers of some layers in one tensor for each name, in the order of the layers, whose own are views of it.

    They stay together when the network is moved, as every layer moves to its place in a tensor of the new device. A
    copy of a layer, a pickled one, and one that is given another buffer have buffers of their own, as a layer alone.
    """

    def __init__(self, layers: Sequence[DropLayer]) -> None:
        self.size = len(layers)
        # By name and device: the tensor of all layers, and the views of each.
        self.tensors: dict[tuple[str, torch.device], tuple[Tensor, list[Tensor]]] = {}
        for place, layer in enumerate(layers):
            layer._shared = self, place
            for name in SHARED:
                layer._buffers[name] = self.placed(name, place, getattr(layer, name))

    def placed(self, name: str, place: int, value: Tensor) -> Tensor:
        """The view that is the buffer of the layer at this place, on the device of the value, and with it."""
        key = name, value.device
        if key not in self.tensors:
            whole = torch.zeros(self.size, dtype=value.dtype, device=value.device)
            self.tensors[key] = whole, [whole[i] for i in range(self.size)]
        return self.tensors[key][1][place].copy_(value)

    def whole(self, name: str, layers: Sequence[DropLayer]) -> Tensor | None:
        """The tensor of all buffers of this name, if they are those of these layers in this order."""
        buffers = [layer._buffers[name] for layer in layers]
        whole, views = self.tensors.get((name, layers[0].keep_prob.device), (None, []))
        together = len(views) == len(buffers) and all(map(operator.is_, buffers, views))
        return whole if together else None


def set_buffers(name: str, layers: Sequence[DropLayer], values: Sequence[float]) -> None:
    """Set a buffer of every layer: in one launch for layers that share it, in one for each other layer."""
    values = list(values)
    for shared, group in groupby(layers, key=lambda layer: layer._shared and layer._shared[0]):
        members = list(group)
        its, values = values[: len(members)], values[len(members) :]
        whole = shared.whole(name, members) if shared else None
        if whole is not None:
            whole.copy_(torch.tensor(its, dtype=whole.dtype), non_blocking=True)
        else:
            for layer, value in zip(members, its, strict=True):
                getattr(layer, name).fill_(value)


class DropLayer(nn.Module):
    """Base class of all layers that drop units. Active in training mode only, where it drops and counts.

    Masks come from `mask_seed` once `set_mask_seed` was called (the same seed gives the same mask), before that from
    torch's default generator.

    `group` is the group of the site that `install` puts the layer at, and "own" for a layer that a network has as a
    child of its own; such a layer gets the keep_prob of the schedule itself, unless it is given a number: `group = 3`.
    One that is called on several maps in a pass is given their numbers: `layer(x, level)`.

    Args:
        keep_prob: share of units to keep, in [0, 1]; 0.9 if no rate is given. By name only: the layers of other
            libraries take a drop rate in its place.
        p, drop_prob: the same rate as a share to drop, 1 - keep_prob. One of the three may be given.

    Raises:
        ValueError: if the rate lies outside [0, 1].
        TypeError: if it is given by position or twice, or is no number.
    """

    keep_prob: Tensor
    mask_seed: Tensor
    kept_units: Tensor
    seen_units: Tensor
    draw_state: Tensor  # 0 between two calls: see `operator.Counters`
    _shared: tuple[Shared, int] | None = None  # where the buffers lie beside those of other layers, and the place
    image_seeds: Tensor | None = None  # (N,) int64, for masks of single images
    batchwise = False  # True for a layer whose draw is one for all images: it sees no images, but weights, say
    together = ""  # "batch" where images are seen, and one draw serves all of a batch
    replaced = False  # True once `install` has put another layer in its place

    def __init__(self, *positional: object, keep_prob: Rate = None, p: Rate = None, drop_prob: Rate = None) -> None:
        super().__init__()
        name = type(self).__name__
        refuse_positional(name, positional)
        self.initial_keep_prob = float(share_to_keep(name, *map(as_number, (keep_prob, p, drop_prob))))
        self.group: int | str = OWN
        self.seeded = False
        for name, value in DropLayer.fresh_buffers(self).items():
            self.register_buffer(name, value, persistent=False)

    def fresh_buffers(self) -> dict[str, Tensor]:
        """The buffers of a new layer, by name."""
        integers = {name: torch.zeros((), dtype=torch.int64) for name in INTEGERS}
        return {"keep_prob": torch.tensor(self.initial_keep_prob, dtype=torch.float32), **integers}

    def set_mask_seed(self, seed: int) -> None:
        """Fix the next masks: from now on they are a function of this seed, an int64."""
        check_seed(seed)
        self.seeded, self.image_seeds = True, None
        self.mask_seed.fill_(seed)

    def set_image_seeds(self, seed: int, images: Tensor) -> None:
        """Fix the next masks image by image, each with a normaliser of its own.

        What is dropped of an image is a function of `seed` and the image's number, whatever stands beside it in the
        batch: for averages over masks (Monte Carlo dropout). Without a gradient.

        Args:
            seed: an int64.
            images: (N,) whole numbers, one for each image of the batches that come.
        """
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a tensor of numbers, one for each image, not a {type(images).__name__}")
        self.set_mask_seed(seed)
        self.image_seeds = mixed(images.to(self.mask_seed.device) * STEP + self.mask_seed)

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        if isinstance(x, fx.Proxy):  # a leaf for every tracer: the graph keeps this module, its schedule and counters
            inputs = (x, level) if level else (x,)
            return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), inputs, {})
        if not self.training:
            return x
        if self.image_seeds is None or self.batchwise:
            return self._counted_drop(x, self.seed_of(x, level))
        y, kept = self.drop_each(x, self.seed_of(x, level) - self.mask_seed + self.image_seeds)
        self._count(kept.sum(), x.numel())
        return y

    def _counted_drop(self, x: Tensor, seed: Tensor) -> Tensor:
        """The output of `drop`, its units counted."""
        y, kept = self.drop(x, seed)
        self._count(kept, x.numel())
        return y

    def _count(self, kept: Tensor, units: int) -> None:
        """Add to the counters, on the device, for the measured drop of the record; nothing waits for the host.

        The second forward pass of activation checkpointing is not counted again.
        """
        if transformed():
            count_node(self.kept_units, self.seen_units, kept, units)
        elif not in_backward():
            self.kept_units.add_(kept)  # not `+=`, which assigns the attribute anew: three times the cost
            self.seen_units.add_(units)

    def seed_of(self, x: Tensor, level: int = 0) -> Tensor:
        """The seed of the next mask.

        A layer outside the numbered groups may meet several maps in one pass, as in a head. The caller numbers them,
        and each has a mask of its own; where they have no numbers, each size has. The layer does not count its calls:
        a checkpointed pass is run twice.
        """
        if not self.seeded:
            return fresh_seed(x.device)
        if isinstance(self.group, str):
            return self.mask_seed + (x.shape[-2] * 65_537 + x.shape[-1] + (level << 33))
        return self.mask_seed

    def drop(self, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        """The operator of this layer in training, which every layer defines.

        The mask is to be a function of `seed` alone (`dropblock.random_mask`, `random_uniform`), so that a resumed run
        draws it again, and neither `seed` nor `self.keep_prob` is to be read by the host (no `float()`, no `if`).
        `dropblock.apply_mask` makes both results from a mask.

        Args:
            x: (N, C, H, W) feature maps, or with one or three axes; floating point.
            seed: 0-dimensional int64 tensor on the device of `x`.

        Returns:
            (output like `x`, rescaled so that its mean is that of `x`; number of kept units as a 0-dimensional int64
            tensor).
        """
        raise NotImplementedError(f"{type(self).__name__} defines no drop(x, seed)")

    def drop_each(self, x: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """`drop` of every image alone: (output like `x`, kept units of each image, (N,)).

        Args:
            seeds: (N,) int64 tensor on the device of `x`.
        """

        def drop_one(image: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
            y, kept = self.drop(image[None], seed)
            return y[0], kept

        return torch.vmap(drop_one, randomness="different")(x, seeds)

    def block(self, *size: int) -> tuple[int, ...]:
        """The sides of the box that is dropped together on a map of this size, for the sites table; () for no box."""
        return ()

    def seed_rate(self, keep_prob: float, *size: int) -> float:
        """The gamma of the sites table: the probability that a position, or whatever is drawn, starts a drop."""
        return 1.0 - keep_prob

    def expected_drop(self, keep_prob: float, *size: int) -> float:
        """The exact expected share of dropped units on a map with these sides."""
        return 1.0 - keep_prob

    def extra_repr(self) -> str:
        keep_prob = self.initial_keep_prob if self.keep_prob.is_meta else float(self.keep_prob)
        return f"keep_prob={keep_prob:.6g}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """`to`, `half`, `to_empty` and the like move the buffers to another device and leave type and value alone.

        In bfloat16 keep_prob would move in steps of 1/256: 0.998 would be 0.9961.
        """
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, moved in list(self.named_buffers(recurse=False)):
            value = before[name]
            if value.is_meta and not moved.is_meta:
                value = self.fresh_buffers().get(name, moved)
            there = value.to(moved.device)
            if self._shared and there is not before[name] and name in SHARED:
                shared, place = self._shared
                there = shared.placed(name, place, there)
            self._buffers[name] = there
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Give copies and pickles buffers of their own."""
        if self._shared is None:
            return self.__dict__
        own = {name: None if value is None else value.clone() for name, value in self._buffers.items()}
        return {**self.__dict__, "_shared": None, "_buffers": own}

    def __prepare_scriptable__(self) -> nn.Module:
        raise TypeError(
            f"torch.jit.script cannot compile {type(self).__name__}: use torch.compile, torch.export or torch.jit.trace"
        )


def check_seed(seed: Any) -> None:
    """Refuse a mask seed that is no whole number.

    Raises:
        TypeError: for any.
    """
    if not isinstance(seed, Integral | Tensor):
        raise TypeError(f"seed must be an integer, not {seed!r}")


def set_mask_seeds(layers: Sequence[DropLayer], seeds: Sequence[int]) -> None:
    """`set_mask_seed` of every layer."""
    for layer, seed in zip(layers, seeds, strict=True):
        check_seed(seed)
        if not layer.seeded:  # asked first: an nn.Module takes a microsecond to assign an attribute
            layer.seeded = True
        if layer.image_seeds is not None:
            layer.image_seeds = None
    set_buffers("mask_seed", layers, seeds)


def in_backward() -> bool:
    """True while a backward pass is running: a forward pass is then the second one of activation checkpointing.

    torch has no public name for this question; torch.utils.checkpoint asks it in the same way.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


Layer = TypeVar("Layer", bound=DropLayer)


def with_own_init(cls: type[Layer]) -> type[Layer]:
    """Class decorator: the inherited `__init__` under the name of this class, which is what errors then show."""
    inherited: Any = cls.__init__
    own = FunctionType(inherited.__code__, inherited.__globals__, "__init__", closure=inherited.__closure__)
    own.__kwdefaults__, own.__annotations__ = inherited.__kwdefaults__, inherited.__annotations__
    own.__qualname__ = f"{cls.__qualname__}.__init__"
    cls.__init__ = own  # type: ignore[method-assign]
    return cls


class _DropBlock(DropLayer):
    """DropBlock on maps with `axes` axes."""

    axes: ClassVar[int]

    def __init__(
        self,
        *positional: object,
        block_size: int = BLOCK_SIZE,
        keep_prob: Rate = None,
        p: Rate = None,
        drop_prob: Rate = None,
    ) -> None:
        super().__init__(*positional, keep_prob=keep_prob, p=p, drop_prob=drop_prob)
        effective_block(block_size)
        self.block_size = block_size

    def drop(self, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        check_maps(type(self).__name__, x, self.axes)
        return checked_drop(x, self.keep_prob, self.block_size, seed)

    def _counted_drop(self, x: Tensor, seed: Tensor) -> Tensor:
        if type(self).drop is not _DropBlock.drop or wanted():
            return super()._counted_drop(x, seed)
        check_maps(type(self).__name__, x, self.axes)
        own: dict[str, Any] = self._buffers  # an attribute of an nn.Module takes a microsecond
        counters = None if in_backward() else (own["kept_units"], own["seen_units"], own["draw_state"])
        return drop(backend_for(x), x, own["keep_prob"], self.block_size, seed, counters)[0]

    def drop_each(self, x: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        if type(self).drop is not _DropBlock.drop:
            return super().drop_each(x, seeds)
        check_maps(type(self).__name__, x, self.axes)
        return drop_each(x, self.keep_prob, self.block_size, seeds)

    def block(self, *size: int) -> tuple[int, ...]:
        return effective_block(self.block_size, *size)

    def seed_rate(self, keep_prob: float, *size: int) -> float:
        return seed_rate(keep_prob, self.block_size, *size)

    def expected_drop(self, keep_prob: float, *size: int) -> float:
        return expected_drop(keep_prob, self.block_size, *size)

    def extra_repr(self) -> str:
        return f"block_size={self.block_size}, {super().extra_repr()}"


@with_own_init
class DropBlock2d(_DropBlock):
    """DropBlock for (N, C, H, W) feature maps: see `dropblock.drop_block2d`. All arguments go by name.

    Args:
        block_size: side of the dropped squares, >= 1; clamped to the map per axis. 1 is dropout, the whole map is
            SpatialDropout (paper, section 3).
        keep_prob: share of units to keep, in [0, 1]; 0.9 if no rate is given. A schedule may change it between steps.
        p, drop_prob: the same rate as a share to drop, 1 - keep_prob. One of the three may be given.
    """

    axes = 2


@with_own_init
class DropBlock1d(_DropBlock):
    """DropBlock for (N, C, L) signals, such as audio and EEG; arguments as of `DropBlock2d`."""

    axes = 1


@with_own_init
class DropBlock3d(_DropBlock):
    """DropBlock for (N, C, D, H, W) volumes and videos; arguments as of `DropBlock2d`."""

    axes = 3


def check_model(model: object) -> None:
    """Check an argument that must be a network.

    Raises:
        TypeError: if it is something else, as its class or its parameters.
    """
    if not isinstance(model, nn.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise TypeError(f"model must be an nn.Module, not {given}")


def installed_layers(model: nn.Module) -> list[DropLayer]:
    """Every layer of this library in the model, in the order of `model.modules()`."""
    check_model(model)
    return [module for module in model.modules() if isinstance(module, DropLayer)]
