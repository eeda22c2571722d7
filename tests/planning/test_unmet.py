from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import rankwise as rw
from rankwise.planning.constraints import Constraints
from rankwise.planning.unmet import check_budgets


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        *(nn.Conv2d(32, 32, 3, padding=1, groups=32) for _ in range(5)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


# MACs: 3 * 32 * 9 * 64 = 55,296; five times 32 * 9 * 64 = 18,432; 320. In all 147,776.
EXAMPLE = torch.zeros(1, 3, 8, 8)


class Counted:
    """Batches that say how many of them were read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Any:
        for _ in range(4):
            self.read += 1
            yield torch.randn(2, 3, 8, 8)


def test_the_layers_that_hold_the_rest_are_named_before_anything_is_collected() -> None:
    data = Counted()
    with pytest.raises(ValueError) as caught:
        rw.compress(network(), data, keep={"macs": 0.5})
    text = str(caught.value)
    assert "a budget of 73,888 macs (0.500 of dense) cannot be met: the network keeps at least 92,160 (0.624)" in text
    assert "62 % of the MACs are in layers that cannot be factorised" in text
    assert "62 % in 1 (12 %), 2 (12 %), 3 (12 %) and 2 more: depthwise" in text
    assert data.read == 1  # for the example


def test_reasons_are_grouped_the_largest_share_first() -> None:
    model = network()
    sites = rw.find(model, EXAMPLE)
    with pytest.raises(ValueError) as caught:
        check_budgets(model, sites, {"macs": 0.01}, Constraints(ignore="0", include=["0", "1"]))
    text = str(caught.value)
    parts = [text.index(part) for part in ("62 % in 1", "37 % in 0: ignored", "under 1 % in 8: not included")]
    assert parts == sorted(parts)


@pytest.mark.parametrize("unit", ["params", "bytes"])
def test_other_units(unit: str) -> None:
    model = nn.Sequential(nn.Embedding(10, 8), nn.LSTM(8, 64))
    sites = rw.find(model, torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match=f"(99|100) % of the {unit} are in .*: .*no kind of"):
        check_budgets(model, sites, {unit: 0.5}, Constraints())


def test_layers_of_no_kind_are_named_by_their_macs() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent, self.head = nn.LSTM(16, 32, batch_first=True), nn.Linear(32, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.recurrent(x)[0])  # type: ignore[no-any-return]

    with pytest.raises(ValueError, match="96 % in recurrent: no kind of layer that can be factorised"):
        rw.compress(Read(), [torch.randn(4, 5, 16)] * 2, keep={"macs": 0.5})


def test_a_budget_that_only_the_ranks_miss_tells_the_same() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"keeps at least .* 62 % of the MACs are in layers that cannot be factorised"):
        rw.choose(model, rw.find(model, EXAMPLE), keep={"macs": 0.63}, metric="weight", floor={"0": 9})


def test_budgets_that_can_be_met_pass() -> None:
    model = network()
    check_budgets(model, rw.find(model, EXAMPLE), {"macs": 0.7, "latency": 0.1}, Constraints())
    check_budgets(model, rw.find(model, EXAMPLE), None, Constraints())
