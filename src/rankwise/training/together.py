"""Several processes that train one network, started by torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def together(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started, unless they are joined already or there is only this one."""
    wanted = int(os.environ.get("WORLD_SIZE", "1")) > 1 and dist.is_available()
    if not wanted or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process; 0 for a single one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def shared(value: float, device: torch.device) -> float:
    """The value of the first process, so that all processes decide the same."""
    if world() == 1:
        return value
    told = torch.tensor([value], dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    dist.broadcast(told, 0)
    return float(told)


def wrapped(step: nn.Module, device: torch.device) -> nn.Module:
    """The module whose forward gives the loss; with several processes its backward averages the gradients."""
    if world() == 1:
        return step
    devices = [device.index] if device.type == "cuda" else None
    # When blocks learn side by side, the parameters between them get no gradient.
    return DistributedDataParallel(step, device_ids=devices, find_unused_parameters=True)
