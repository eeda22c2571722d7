"""A residual network with its statistics and curves, which no test changes."""

from __future__ import annotations

from typing import Any

import pytest
from support.nets import Residual, batches_of, make
from torch import nn

from rankwise import Statistics, collect, profile

Net = tuple[nn.Module, Statistics]


@pytest.fixture(scope="session")
def net() -> Net:
    model = make(Residual)
    return model, collect(model, batches_of(8, 3, 16, 16), gradients=True)


@pytest.fixture(scope="session")
def curves(net: Net) -> Any:
    return profile(*net)
