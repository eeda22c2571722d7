"""Weights that share their memory without being one object."""

from __future__ import annotations

import pytest
import torch
from support.nets import batches_of
from torch import Tensor, nn

import rankwise as rw
from rankwise.running.state import numbers_in


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(24, 24, bias=False), nn.Linear(24, 24, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def numbers(model: nn.Module) -> int:
    return numbers_in(model.parameters())


@pytest.mark.parametrize("method", ["sequential", "one-shot"])
def test_one_memory_is_one_site(method: str) -> None:
    model = Two().eval()
    model.b.weight = nn.Parameter(model.a.weight.data)
    sites = rw.find(model, torch.randn(2, 24))
    assert sites.total_params == 24 * 24
    assert sites["a"].aliases == ("b",)
    small, report = rw.compress(model, batches_of(32, 24), keep={"params": 0.7}, method=method)
    assert small.a is small.b
    assert numbers(small) == report.compressed.params <= 0.7 * 24 * 24


@pytest.mark.parametrize("view", [lambda w: w.t(), lambda w: w.flip(0).flip(0).set_(w.untyped_storage(), 0, w.shape)])
def test_memory_in_another_layout_is_counted_once(view) -> None:
    model = Two().eval()
    with torch.no_grad():
        model.b.weight = nn.Parameter(view(model.a.weight.data))
    sites = rw.find(model, torch.randn(2, 24))
    assert sites.total_params == 24 * 24


def test_a_transposed_twin_stays_dense_with_the_reason() -> None:
    model = Two().eval()
    model.b.weight = nn.Parameter(model.a.weight.data.t())
    sites = rw.find(model, torch.randn(2, 24))
    assert sites["a"].dense_because == "its weight is tied to Linear (b)"
    assert sites["b"].dense_because == "its weight is tied to Linear (a)"


def test_neighbours_in_one_block_are_no_ties() -> None:
    model = Two().eval()
    block = torch.randn(2, 24, 24)
    model.a.weight, model.b.weight = nn.Parameter(block[0]), nn.Parameter(block[1])
    sites = rw.find(model, torch.randn(2, 24))
    assert sites.total_params == 2 * 24 * 24
    assert all(site.dense_because is None and not site.aliases for site in sites.values())
