"""Small networks that the tests of healing share."""

from __future__ import annotations

import copy

import torch
from helpers import Residual, batches_of, make
from torch import Tensor, nn

import rankwise as rw


def pair(keep: float = 0.3) -> tuple[nn.Module, nn.Module, Tensor]:
    """A dense network, its compression, and 96 samples."""
    dense = make(lambda: nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5)))
    data = batches_of(96, 12, count=1)
    small, _ = rw.compress(dense, data, keep={"params": keep}, formats=["svd"])
    return dense, small, data[0]


def residual(keep: float = 0.4) -> tuple[nn.Module, nn.Module, Tensor]:
    """The same of a residual network with batch norm, in-place ReLU and addition."""
    dense = make(Residual)
    data = batches_of(32, 3, 8, 8, count=1)
    small, _ = rw.compress(dense, data, keep={"macs": keep}, formats=["svd"])
    return dense, small, data[0]


def state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of everything in the state dict."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def worse(model: nn.Module) -> nn.Module:
    """A copy with all weights doubled."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.mul_(2)
    return changed
