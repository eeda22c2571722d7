"""A small network and labelled data, for the importance of its neurons."""

from __future__ import annotations

import pytest
import torch
from support.nets import make
from torch import Tensor, nn


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 4))


@pytest.fixture
def model() -> nn.Module:
    return make(net).double()


@pytest.fixture
def data() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(60, 12, generator=generator, dtype=torch.float64) * torch.linspace(0, 2, 12, dtype=torch.float64)
    return [(part, part[:, -4:].argmax(1)) for part in x.split(25)]  # the last batch is smaller
