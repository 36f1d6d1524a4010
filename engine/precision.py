"""The precision of the forward pass: autocast, and bfloat16 on CPUs that have no instructions for it."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

PRECISIONS = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PRODUCTS = {
    *(functional.conv1d, functional.conv2d, functional.conv3d, functional.linear),
    *(functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d),
}


def set_numerics(device: torch.device, precision: str, cudnn_benchmark: bool) -> None:
    """Set the numerics of the whole process on a GPU: float32 products, or TF32 if it is asked for; cuDNN's choice."""
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.benchmark = cudnn_benchmark


def refuse_precision(device: torch.device, precision: str) -> None:
    """Refuse to train in a precision that the device does not have; to evaluate on another device is no mistake.

    Raises:
        ValueError: for TF32 without an NVIDIA or AMD GPU.
    """
    if precision == "tf32" and device.type != "cuda":
        raise ValueError(f"recipe.precision=tf32: GPUs alone have it; on {device} choose float32")


def numerics(device: torch.device) -> dict[str, Any]:
    """Settings of `set_numerics`, for the record of a run on a GPU."""
    if device.type != "cuda":
        return {}
    return {"tf32": torch.backends.cudnn.allow_tf32, "cudnn_benchmark": torch.backends.cudnn.benchmark}


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """Mixed precision with float32 weights; `float32` and `tf32` switch it off.

    On a CPU without AVX-512, where torch's bfloat16 kernels are far slower than float32 (docs/results/precision.md),
    `RoundedProducts` takes their place.
    """
    mixed = torch.autocast(device.type, dtype=PRECISIONS[precision], enabled=PRECISIONS[precision] != torch.float32)
    if precision == "bfloat16" and device.type == "cpu" and slow_in_bfloat16():
        return _both(mixed, RoundedProducts())
    return mixed


@cache
def slow_in_bfloat16() -> bool:
    """True on an x86 CPU without AVX-512, which oneDNN needs for bfloat16."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")


@contextmanager
def _both(first: AbstractContextManager[Any], second: AbstractContextManager[Any]) -> Iterator[None]:
    with first, second:
        yield


class RoundedProducts(TorchFunctionMode):
    """Convolutions and linear layers under bfloat16 autocast, computed in float32.

    Their operands and results are rounded to bfloat16 and the products summed in float32, forward and backward, as the
    instructions do: the numbers agree up to the order of summation.
    """

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function not in PRODUCTS or not torch.is_autocast_enabled("cpu"):
            return function(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            rounded = function(*map(_rounded, args), **{name: _rounded(value) for name, value in kwargs.items()})
        return rounded.to(torch.bfloat16) if rounded.dtype == torch.float32 else rounded


def _rounded(value: Any) -> Any:
    """A tensor's values rounded to bfloat16, in float32; float64 and everything else as it is, as in autocast."""
    if isinstance(value, Tensor) and value.dtype in PRECISIONS.values():
        return value.to(torch.bfloat16).to(torch.float32)
    return value
