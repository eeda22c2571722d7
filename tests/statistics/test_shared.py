"""Sites that read one tensor share its rows and products; their moments are the same as without."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.statistics import accumulator as module
from rankwise.statistics.accumulator import add_gram


class Attention(nn.Module):
    """Queries, keys and values of one input; the keys of some calls are of another."""

    def __init__(self, *, apart: bool = False, in_place: bool = False) -> None:
        super().__init__()
        self.q, self.k, self.v, self.last = (nn.Linear(12, 12) for _ in range(4))
        self.apart, self.in_place = apart, in_place

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.5
        q = self.q(x)
        if self.in_place:
            x += 1
        k = self.k(x.flip(1) if self.apart and x[0, 0, 0] > 0 else x)
        return self.last(q.softmax(-1) * k + self.v(x))


@pytest.fixture
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 9, 12, generator=generator) for _ in range(5)]


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of rows of all products; rows wait for few others."""
    rows: list[int] = []

    def counted(sum_GDD: Tensor, x_GND: Tensor) -> None:
        rows.append(x_GND.shape[1])
        add_gram(sum_GDD, x_GND)

    monkeypatch.setattr(module, "BLOCK_ROWS", 40)
    monkeypatch.setattr(module, "add_gram", counted)
    return rows


def alone(model: nn.Module, batches: list[Tensor], name: str) -> rw.Moments:
    return rw.collect(model, batches, only=[name], positions="all")[name]


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_the_same_bits_as_alone(batches: list[Tensor], apart: bool, in_place: bool, products: list[int]) -> None:
    model = Attention(apart=apart, in_place=in_place).eval()
    together = rw.collect(model, batches, positions="all")
    for name in ("q", "k", "v", "last"):
        expected = alone(model, batches, name)
        assert together[name].count == expected.count == 180
        assert torch.equal(together[name].mean_GD, expected.mean_GD)
        assert torch.equal(together[name].second_GDD, expected.second_GDD)


def test_one_product_for_all_that_read_the_same(batches: list[Tensor], products: list[int]) -> None:
    rw.collect(Attention().eval(), batches, positions="all")
    assert sum(products) == 2 * 180  # of the rows that q, k and v share, and of those of the last layer
    products.clear()
    rw.collect(Attention(in_place=True).eval(), batches, positions="all")
    assert sum(products) == 3 * 180  # k and v share, q does not


def test_masks_of_padding_are_shared_too(batches: list[Tensor], products: list[int]) -> None:
    rw.collect(Attention().eval(), batches, positions="all", mask=lambda x: torch.arange(9).expand(4, 9) < 7)
    assert sum(products) == 2 * 140
