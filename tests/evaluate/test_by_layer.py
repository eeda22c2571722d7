"""Errors of layers inside a network, against the definition."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rankwise.evaluate import layer_errors


def test_errors_follow_the_definition_and_add_up_along_the_network() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)).eval()
    small = copy.deepcopy(dense)
    small[0].weight.data += 0.05 * torch.randn_like(small[0].weight)
    batches = [torch.randn(6, 3, 4, 4) + 1, torch.randn(3, 3, 4, 4) + 1]
    found = layer_errors(small, dense, batches, ["0", "3", "not there"])
    whole = torch.cat(batches)
    for name, dims, parts in (("0", (0, 2, 3), 1), ("3", (0,), 4)):
        with torch.no_grad():
            y, z = dense[:parts](whole).double(), small[:parts](whole).double()
        expected = (y - z).square().sum() / (y - y.mean(dims, keepdim=True)).square().sum()
        assert found[name] == pytest.approx(float(expected), rel=1e-5)
    assert found.keys() == {"0", "3"}
    assert not dense[0]._forward_hooks


def test_a_layer_that_is_called_twice_is_compared_call_by_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.fc(x))

    dense = Twice()
    assert layer_errors(copy.deepcopy(dense), dense, [torch.randn(4, 3)], ["fc"]) == {"fc": 0.0}
