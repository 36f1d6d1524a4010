"""One process or many: the few collective operations that training needs, each a no-op in a single process."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


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
            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return flag if self.world_size == 1 else bool(self.sum(torch.tensor(float(flag))).item())

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


def join(device: torch.device) -> Ranks:
    """Join the process group that torchrun announces in the environment, if it does.

    Raises:
        RuntimeError: if the peers cannot be reached.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return Ranks()
    ranks = Ranks(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", 0)))
    if ranks.world_size > 1 and not dist.is_initialized():
        # The host-side sums and flags go through gloo, gradients on GPUs through nccl.
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return ranks


def wrap(model: nn.Module, ranks: Ranks, device: torch.device) -> nn.Module:
    """DistributedDataParallel where there are peers; drop counters and mask seeds are no business of its broadcasts."""
    if ranks.world_size == 1:
        return model
    persistent = set(model.state_dict())
    own = [name for name, _ in model.named_buffers() if name not in persistent]
    ddp = nn.parallel.DistributedDataParallel
    ddp._set_params_and_buffers_to_ignore_for_model(model, own)
    return ddp(model, device_ids=[device.index] if device.type == "cuda" else None)


def find_device(name: str) -> torch.device:
    """The device called `auto`, `cpu` or `cuda`; `auto` takes a GPU where there is one, each local rank its own.

    Raises:
        ValueError: if a GPU is asked for where there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device=cuda: no usable GPU here; leave device=auto, or see what nvidia-smi says")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(device)
    return device
