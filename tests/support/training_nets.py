"""Small networks for tests of healing and training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.training import TrainReport, train
from support.nets import Residual, batches_of, make

OPTIONS: dict[str, Any] = {"epochs": 4, "batch": 20, "rate": 0.02, "seed": 1, "calibration": 40}


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


def network() -> nn.Module:
    return make(
        lambda: nn.Sequential(
            *(nn.Conv2d(2, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 3)),
        )
    )


def samples() -> tuple[Tensor, Tensor]:
    """Pictures whose class is where they are bright."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (200,), generator=generator)
    x = 0.5 * torch.randn(200, 2, 6, 6, generator=generator)
    x[torch.arange(200), 0, 2 * labels] += 1.5
    return x, labels


def trained(model: nn.Module | None = None, **more: Any) -> tuple[nn.Module, TrainReport]:
    return train(model or network(), *samples(), **{"keep": {"params": 0.5}, **OPTIONS, **more})
