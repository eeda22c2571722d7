"""Rows that span all others: exact, with small coefficients, whatever the matrix."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.linalg.pivoting import GROWTH, pivots


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.data())
def test_all_rows_are_small_combinations_of_the_chosen_ones(rows: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, rows))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    columns = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    columns *= torch.logspace(0, -data.draw(st.integers(0, 8)), rows, dtype=torch.float64)[:, None]
    U = torch.linalg.qr(columns).Q
    chosen, C = pivots(U)
    assert len(set(chosen.tolist())) == rank
    assert torch.equal(C[chosen], torch.eye(rank, dtype=C.dtype))
    assert C.abs().max() <= GROWTH + 1e-9
    torch.testing.assert_close(C @ U[chosen], U, atol=1e-12, rtol=0)


def test_the_leading_rows_are_not_taken_where_they_are_bad() -> None:
    U = torch.linalg.qr(torch.tensor([[1e-9, 0.0], [0.0, 1e-9], [3.0, 1.0], [1.0, 2.0]], dtype=torch.float64)).Q
    assert sorted(pivots(U)[0].tolist()) == [2, 3]
