"""A way around a memory error of oneDNN that strided 1x1 convolutions on few channels run into."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

FEW_CHANNELS = 16  # of the input; from here on every shape tried is sound


def pick_pixels_first(model: nn.Module) -> nn.Module:
    """Have strided 1x1 convolutions on fewer than 16 channels pick their pixels before they convolve.

    In float32 on CPUs with AVX-512 (torch 2.15, oneDNN), their backward pass writes outside its memory from about 48
    pixels a side on, mostly ending the process: ResNet-18 of width 8 at 64 pixels is one case. Convolving every s-th
    pixel with stride 1 is the same function; keys and parameters stay as they are.

    Args:
        model: changed in place.

    Returns:
        the model.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and affected(module):
            module.picked_stride, module.stride = module.stride, (1, 1)  # type: ignore[assignment]
            module.register_forward_pre_hook(pick)
    return model


def affected(conv: nn.Conv2d) -> bool:
    strided = conv.kernel_size == (1, 1) and max(conv.stride) > 1 and conv.padding in (0, (0, 0))
    return strided and conv.in_channels < FEW_CHANNELS


# A function of this module, not a closure: a deep copy of the network then works on its own modules.
def pick(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    stride: Any = module.picked_stride
    return (args[0][:, :, :: stride[0], :: stride[1]], *args[1:])
