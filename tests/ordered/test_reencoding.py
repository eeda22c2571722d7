"""Extracted networks are stored with fewer parameters by pivot rows, without loss."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import rankwise as rw
from rankwise.linalg.pivoting import pivots
from rankwise.ordered import order_, settle_


def test_pivot_rows_store_the_same_weight_with_fewer_parameters() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(32, 48)), torch.randn(5, 32)
    sites = rw.find(model, x)
    order_(model, sites)
    settle_(model, sites, "", {"0": 9})
    plan = rw.choose(model, sites, metric="weight", pin={"0": "pivoted_svd:9"}, keep={"params": 10**6})
    small = rw.factorise(model, plan, sites)
    assert torch.allclose(small(x), model(x), atol=1e-5)
    assert sum(p.numel() for p in small.parameters()) == (48 + 32 - 9) * 9 + 48  # 639, not 720, and the bias


@pytest.mark.slow
def test_pivot_rows_are_better_conditioned_than_the_leading_ones() -> None:
    W = torch.randn(768, 768, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    U = torch.linalg.qr(W[:, :384]).Q
    rows, C = pivots(U)
    leading = torch.linalg.solve(U[:384], U, left=False)
    assert float(torch.linalg.cond(U[rows])) < 0.2 * float(torch.linalg.cond(U[:384]))
    assert float(C.abs().max()) <= 1.06 < float(leading.abs().max())
