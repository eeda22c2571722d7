"""Networks of the artifact tests, dense and compressed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rankwise.files import digest
from rankwise.formats import get_format
from rankwise.network.replacing import replace

Ranks = tuple[int, ...]


class Net(nn.Module):
    """A bit of everything: plain and grouped convolutions, batch norm, a transposed linear, an unsaved buffer."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 12, 3, stride=2, padding=1, groups=2, bias=False)
        self.head = nn.Sequential(nn.Linear(12, 10), nn.GELU(), Conv1D(6, 10))
        self.register_buffer("scale", torch.linspace(0.1, 1, 6), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.grouped(self.norm(self.conv(x)).relu())
        return self.head(y.mean((2, 3))) * self.scale


class Tied(nn.Module):
    """One block under two names, and an embedding tied to a dense head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.again = self.block
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.again(self.block(self.embedding(tokens))))


def compressed(model: nn.Module, chains: dict[str, tuple[str, Ranks]], bias: bool = True) -> nn.Module:
    """A copy of the model with random chains."""
    model = copy.deepcopy(model)
    for name, (format, ranks) in chains.items():
        replace(model, [name], get_format(format).build(model.get_submodule(name), ranks, bias))
    for buffer in model.buffers():
        if buffer.is_floating_point() and buffer.shape == (8,):
            buffer.uniform_(0.5, 1.5)
    return model


CHAINS: dict[str, tuple[str, Ranks]] = {
    "conv": ("tucker2", (5, 2)),
    "grouped": ("spatial_svd", (3,)),
    "head.0": ("svd", (4,)),
    "head.2": ("svd", (3,)),
}


def images(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def assert_same(a: nn.Module, b: nn.Module, x: Tensor) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(a(x), b(x))


def edit(artifact: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change a manifest and its checksum with it, as somebody would who wants it to be loaded."""
    content = json.loads((artifact / "rankwise.json").read_text())
    del content["checksum"]
    change(content)
    (artifact / "rankwise.json").write_text(json.dumps(content | {"checksum": digest(content)}))
