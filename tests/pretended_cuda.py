"""A made-up GPU: tensors that say they are on `cuda`, compute on the CPU, and note what would make the host wait.

On a GPU the host must not read a value of the device, and a copy between the two must not block. `PretendedCuda` sees
every operation below autograd, as a device does: it counts them as launches (views aside) and notes those that wait.
It stands for one device; kernels of Triton do not run on it.
"""

from __future__ import annotations

import traceback
from contextlib import ExitStack
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
# Operations whose result's size, or value, the host has to know.
READS = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten._unique2,
    aten.bincount,
    aten.item,
    aten.equal,
}


class OnCuda(Tensor):
    """A tensor of the made-up GPU; its values are those of a CPU tensor inside.

    Autograd takes it for one of the CPU, as there is no driver; to Python it says `cuda`.
    """

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inside: Tensor) -> OnCuda:
        return Tensor._make_wrapper_subclass(
            cls, inside.shape, inside.stride(), inside.storage_offset(), dtype=inside.dtype
        )

    def __init__(self, inside: Tensor) -> None:
        self.inside = inside

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    def cpu(self, *_: Any) -> Tensor:
        return self.to("cpu")

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        device, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is None or device.type == "cuda":
            return super().to(*args, **kwargs)
        waited("to the host")
        return self.detach().inside.clone()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("a tensor on cuda has no numpy()")


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the tensors inside; its result is on the GPU if an argument is, or if it is asked for there."""
    device = kwargs.get("device")
    on_cuda = any(isinstance(leaf, OnCuda) for leaf in tree_leaves((args, kwargs)))
    if device is not None:
        on_cuda, kwargs = torch.device(device).type == "cuda" or on_cuda, {**kwargs, "device": torch.device("cpu")}
    if kwargs.get("pin_memory"):
        kwargs = {**kwargs, "pin_memory": False}
    bare_args, bare_kwargs = tree_map_only(OnCuda, lambda t: t.inside, (args, kwargs))
    out = func(*bare_args, **bare_kwargs)
    if not on_cuda:
        return out
    out = tree_map_only(Tensor, lambda t: t if isinstance(t, OnCuda) else OnCuda(t), out)
    return return_and_correct_aliasing(func, args, kwargs, out)


def waited(what: str) -> None:
    """Note a wait in the `PretendedCuda` that is active."""
    for mode in torch.utils._python_dispatch._get_current_dispatch_mode_stack():
        if isinstance(mode, PretendedCuda):
            mode.waits.append(f"{what} at {place()}")


class PretendedCuda(TorchDispatchMode):
    """Within it `device="cuda"` is the made-up GPU.

    waits: operation and place of what would make the host wait, since the last `forget`.
    launches: operations on the device that compute or copy, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.forget()
        self._patches = ExitStack()

    def __enter__(self) -> Self:
        # Torch would look for a driver, for generators on the device, and for cuDNN's own operations.
        self._patches.enter_context(mock.patch.object(torch.cuda, "_lazy_init"))
        self._patches.enter_context(mock.patch.object(torch.cuda, "default_generators", (torch.Generator(),)))
        self._patches.enter_context(torch.backends.cudnn.flags(enabled=False))
        # A module that moves gets new parameters: the old ones have no place for a tensor inside.
        self._patches.callback(torch.__future__.set_overwrite_module_params_on_conversion, False)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def forget(self) -> None:
        self.waits: list[str] = []
        self.launches: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in (aten._pin_memory, aten.is_pinned):  # there is no memory to pin
            return args[0] if func.overloadpacket is aten._pin_memory else False
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [isinstance(leaf, OnCuda) for leaf in leaves]
        asked = kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda"
        out, packet = computed(func, args, kwargs), func.overloadpacket
        if any(there) or asked:
            if waits(packet, args, kwargs, leaves, there):
                self.waits.append(f"{packet} at {place()}")
            moved = packet is aten._to_copy and all(there) and kwargs.get("dtype") in (None, leaves[0].dtype)
            if (
                not func.is_view
                and packet not in (aten.empty, aten.empty_like, aten.empty_strided, aten.detach)
                and not moved
            ):
                self.launches.append(str(packet))
        return out


def waits(packet: Any, args: Any, kwargs: dict[str, Any], leaves: list[Tensor], there: list[bool]) -> bool:
    """True for an operation that a GPU would make the host wait for."""
    if packet in READS:
        return True
    # Between host and device; a number of the host goes along with the launch.
    elsewhere = [leaf for leaf, on_cuda in zip(leaves, there, strict=True) if not on_cuda and leaf.ndim]
    if packet is aten._to_copy:
        return not all(there) and not kwargs.get("non_blocking")
    if packet is aten.copy_:
        return bool(elsewhere) and not (len(args) > 2 and args[2])
    # By a mask: the number of its True decides the size.
    if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
        return bool(elsewhere) or any(leaf.dtype in (torch.bool, torch.uint8) for leaf in args[1] if leaf is not None)
    return bool(elsewhere)


def place() -> str:
    """The innermost line of this project that is running."""
    frames = [frame for frame in traceback.extract_stack() if "site-packages" not in frame.filename]
    ours = [frame for frame in frames if not frame.filename.endswith("pretended_cuda.py")]
    return f"{ours[-1].filename}:{ours[-1].lineno}"
