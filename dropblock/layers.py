"""Thin modules around the operators: each holds its keep_prob, its mask seed and two counters, and nothing else.

All of these are buffers that a `state_dict` leaves out, so a network has the same keys with any layer or none, and a
schedule may change keep_prob between steps without a recompilation or a host synchronisation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dropblock.functional import drop_block2d_counted, fresh_seed
from dropblock.law import effective_block, expected_drop, seed_rate


class DropLayer(nn.Module):
    """What every layer that drops units has in common.

    In training it drops and counts; in evaluation, and before anybody asked for it, it is the identity.
    Masks come from `mask_seed` once `set_mask_seed` was called (the same seed gives the same mask), before that from
    torch's default generator.

    Args:
        keep_prob: share of units to keep, in [0, 1].

    Raises:
        ValueError: if keep_prob lies outside [0, 1].
    """

    keep_prob: Tensor
    mask_seed: Tensor
    kept_units: Tensor
    seen_units: Tensor

    def __init__(self, keep_prob: float) -> None:
        super().__init__()
        if not 0.0 <= keep_prob <= 1.0:
            raise ValueError(f"keep_prob must lie in [0, 1], not {keep_prob}")
        self.group: int | str = 0  # set by `install`
        self.seeded = False
        self.register_buffer("keep_prob", torch.tensor(keep_prob, dtype=torch.float32), persistent=False)
        self.register_buffer("mask_seed", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("kept_units", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("seen_units", torch.zeros((), dtype=torch.int64), persistent=False)

    def set_mask_seed(self, seed: int) -> None:
        """From now on the mask is a function of this seed, an int64."""
        self.seeded = True
        self.mask_seed.fill_(seed)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        seed = self.mask_seed if self.seeded else fresh_seed(x.device)
        y, kept = self.drop(x, seed)
        self.kept_units += kept
        self.seen_units += x.numel()
        return y

    def drop(self, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        """The operator of this layer: (output like `x`, number of kept units as a 0-dimensional int64 tensor)."""
        raise NotImplementedError  # pragma: no cover

    def block(self, height: int, width: int) -> tuple[int, int]:
        """The size of what is dropped together on a map of this size."""
        raise NotImplementedError  # pragma: no cover

    def seed_rate(self, keep_prob: float, height: int, width: int) -> float:
        """The probability of one draw of the mask."""
        return 1.0 - keep_prob

    def expected_drop(self, keep_prob: float, height: int, width: int) -> float:
        """The exact expected share of dropped units on a map of this size."""
        return 1.0 - keep_prob


class DropBlock2d(DropLayer):
    """DropBlock for (N, C, H, W) feature maps: see `dropblock.drop_block2d`.

    Args:
        block_size: side of the dropped squares, >= 1; clamped to the map per axis. 1 is dropout, the whole map is
            SpatialDropout (paper, section 3).
        keep_prob: in [0, 1]; a schedule may change it between steps.
    """

    def __init__(self, block_size: int = 7, keep_prob: float = 0.9) -> None:
        super().__init__(keep_prob)
        effective_block(block_size, 1, 1)
        self.block_size = block_size

    def drop(self, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        return drop_block2d_counted(x, self.keep_prob, self.block_size, seed)

    def block(self, height: int, width: int) -> tuple[int, int]:
        return effective_block(self.block_size, height, width)

    def seed_rate(self, keep_prob: float, height: int, width: int) -> float:
        return seed_rate(keep_prob, self.block_size, height, width)

    def expected_drop(self, keep_prob: float, height: int, width: int) -> float:
        return expected_drop(keep_prob, self.block_size, height, width)

    def extra_repr(self) -> str:
        return f"block_size={self.block_size}"


def installed_layers(model: nn.Module) -> list[DropLayer]:
    """Every layer of this library in the model, in the order of `model.modules()`."""
    return [module for module in model.modules() if isinstance(module, DropLayer)]
