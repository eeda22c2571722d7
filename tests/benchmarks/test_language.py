"""The rival of 4 bits: nearest levels, in groups of 64, of the layers that may be factorised alone."""

from __future__ import annotations

import pytest
import torch
from benchmarks.language import GROUP, LEVELS, MEMORY, METHODS, rounded, to_levels
from torch import nn

import rankwise as rw
from rankwise.names import METHOD_SETS

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_number_goes_to_the_nearest_of_sixteen_levels() -> None:
    W = torch.randn(5, 150, generator=torch.Generator().manual_seed(0))
    found = to_levels(W)
    for row in range(5):
        for start in range(0, 150, GROUP):
            part, near = W[row, start : start + GROUP], found[row, start : start + GROUP]
            low, high = float(part.min()), float(part.max())
            levels = torch.linspace(low, high, LEVELS)
            nearest = (part[:, None] - levels).abs().amin(1)
            torch.testing.assert_close((part - near).abs(), nearest, rtol=0.02, atol=2e-3 * (high - low))
            assert len(near.unique()) <= LEVELS


def test_only_layers_that_may_be_factorised_are_rounded() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 64), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 9))
    x = torch.randint(9, (2, 3))
    sites = rw.find(model, x)
    small = rounded(model, sites)
    changed = [name for name, value in small.state_dict().items() if not torch.equal(value, model.state_dict()[name])]
    assert changed == [f"{name}.weight" for name, site in sites.items() if not site.stays_dense]
    assert pytest.approx((4 + 2 * 16 / GROUP) / 16, abs=0.002) == MEMORY


def test_all_methods_of_the_literature_are_there() -> None:
    assert set(METHOD_SETS) <= METHODS.keys()
