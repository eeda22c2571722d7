"""A compressed network and its artifact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.artifact_nets import CHAINS, Net, compressed
from torch import nn

from rankwise.artifact import save


@pytest.fixture
def small() -> nn.Module:
    torch.manual_seed(0)
    return compressed(Net().eval(), CHAINS)


@pytest.fixture
def artifact(small: nn.Module, tmp_path: Path) -> Path:
    return save(small, tmp_path / "out")
