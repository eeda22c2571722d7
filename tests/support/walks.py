"""Checkpoints of a network that walks at random."""

from __future__ import annotations

import torch
from torch import Tensor, nn

COUNT = 9


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def trained(model: nn.Module, count: int = COUNT, scale: float = 0.1) -> list[dict[str, Tensor]]:
    """States of a walk from the network's own."""
    generator = torch.Generator().manual_seed(1)
    states = [{name: tensor.clone() for name, tensor in model.state_dict().items()}]
    for _ in range(count - 1):
        states.append({name: _moved(tensor, scale, generator) for name, tensor in states[-1].items()})
    return states


def _moved(tensor: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    return tensor + scale * torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor


def flat(tensors: dict[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([tensors[name].double().flatten() for name in names])
