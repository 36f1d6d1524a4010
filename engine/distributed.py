"""One process or many: the few collective operations that training needs, each a no-op in a single process."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


class LostPeer(RuntimeError):
    """Another rank has ended or does not answer; what ended it stands in its own output."""


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks."""
        if self.world_size > 1:
            tensor = tensor.clone()
            _together(dist.all_reduce, tensor)
        return tensor

    def max(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        if self.world_size > 1:
            tensor = torch.tensor(number)
            _together(dist.all_reduce, tensor, dist.ReduceOp.MAX)
            return int(tensor)
        return number

    def any(self, flag: bool) -> bool:
        """True if the flag is set on any rank."""
        return bool(self.max(int(flag)))

    def gather(self, value: T) -> list[T]:
        """The value of every rank, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[T | None] = [None] * self.world_size
        _together(dist.all_gather_object, values, value)
        return values  # type: ignore[return-value]

    def barrier(self) -> None:
        if self.world_size > 1:
            _together(dist.barrier)


def _together(operation: Callable[..., object], *arguments: object) -> None:
    try:
        operation(*arguments)
    except RuntimeError as error:
        raise lost_peer(error) or error from error


def lost_peer(error: BaseException) -> LostPeer | None:
    """Translate a gloo error, of a closed or silent socket, into LostPeer; None for any other error."""
    text = " ".join(str(error).split())
    if not isinstance(error, RuntimeError) or "gloo" not in text.lower():
        return None
    reason = re.split(r"\.cc:\d+\] ", text)[-1].partition(". ")[0]  # without the place in gloo's code, and its advice
    return LostPeer(f"another rank has ended or does not answer, its own message says why ({reason})")


def find_device(name: str) -> torch.device:
    """The device called `auto`, `cpu`, `cuda` or `cuda:N`; without N each local rank takes the GPU of its number.

    Raises:
        ValueError: for another name, or if a GPU is asked for that is not there.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError(f"device={name}: choose auto, cpu, cuda or cuda:N")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device={name}: no usable GPU here; leave device=auto, or see what nvidia-smi says")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    rank = int(os.environ.get("LOCAL_RANK", 0))
    number = int(name.partition(":")[2] or rank)
    if ":" in name and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) > 1:
        raise ValueError(f"device={name}: several ranks cannot share a GPU; device=cuda gives each its own")
    if number >= torch.cuda.device_count():
        raise ValueError(f"device={name}: GPU {number} of {torch.cuda.device_count()}; they are counted from 0")
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def join(device: torch.device, patience: float) -> Ranks:
    """Join the process group that torchrun describes in the environment; one rank where it does not.

    Args:
        device: this rank's; decides the backend.
        patience: seconds that a rank waits for the others before it gives up.

    Raises:
        ValueError: if the variables make no sense, the port is taken, or the other ranks cannot be reached.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return Ranks()
    try:
        ranks = Ranks(*(int(os.environ.get(name, 0)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
        if ranks.world_size > 1 and not dist.is_initialized():
            # The host-side sums and flags go through gloo, gradients on GPUs through nccl.
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=timedelta(seconds=patience))
    except (ValueError, dist.DistError) as error:
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        reason = "the port is in use, choose another" if "EADDRINUSE" in line else line[:160]
        place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise ValueError(
            f"the ranks cannot meet at MASTER_ADDR:MASTER_PORT={place} (RANK={os.environ['RANK']}, "
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}): {reason}"
        ) from error
    return ranks


HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
)  # fmt: skip


def wrap(model: nn.Module, ranks: Ranks, device: torch.device, compiled: bool) -> nn.Module:
    """Wrap a model for training: torch.compile if asked, DistributedDataParallel where there are several ranks.

    DDP leaves the buffers alone: running statistics are averaged by `share_statistics`; keep_prob, mask seeds and drop
    counters are each rank's own.
    """
    if compiled:
        torch.compiler.reset()  # torch counts the networks of earlier runs, too, and leaves the ninth uncompiled
    network: Any = torch.compile(model) if compiled else model
    if ranks.world_size == 1:
        return network
    ddp = nn.parallel.DistributedDataParallel
    ddp._set_params_and_buffers_to_ignore_for_model(network, [name for name, _ in network.named_buffers()])
    return ddp(network, device_ids=[device.index] if device.type == "cuda" else None)


def synchronized(model: nn.Module, device: torch.device) -> nn.Module:
    """The model with BatchNorm over the batches of all ranks together; its keys stay.

    Raises:
        ValueError: on a CPU, where torch has no such layer.
    """
    if device.type != "cuda":
        raise ValueError("recipe.sync_batchnorm=true: torch has it for GPUs alone; omit it on a CPU")
    return with_hooks(nn.SyncBatchNorm.convert_sync_batchnorm, model)


def with_hooks(convert: Callable[[nn.Module], nn.Module], model: nn.Module) -> nn.Module:
    """Convert a model by a function that replaces modules, and carry the hooks of the old modules over.

    The sites of a foreign network hang on the hooks of its BatchNorms.
    """
    before = dict(model.named_modules())
    converted = convert(model)
    for name, module in converted.named_modules():
        old = before.get(name, module)
        if old is not module:
            for hooks in HOOKS:
                getattr(module, hooks).update(getattr(old, hooks))
    return converted


def running_statistics(model: nn.Module) -> list[Tensor]:
    """Persistent floating point buffers: BatchNorm's running means and variances."""
    persistent = model.state_dict(keep_vars=True)
    return [buffer for name, buffer in model.named_buffers() if name in persistent and buffer.is_floating_point()]


@torch.no_grad()
def share_statistics(statistics: list[Tensor], ranks: Ranks) -> None:
    """Make the running statistics of every rank the mean over the ranks.

    After every step, not only where they are needed: then all ranks hold the same state at any moment, a checkpoint of
    the main rank is the state of all, and writing one changes nothing.
    """
    if ranks.world_size > 1 and statistics:
        means = ranks.sum(torch.cat([buffer.flatten() for buffer in statistics])) / ranks.world_size
        parts = means.split([buffer.numel() for buffer in statistics])
        torch._foreach_copy_(statistics, [part.view_as(b) for part, b in zip(parts, statistics, strict=True)])
