"""Stacked metrics do for every problem of a batch what its own metric does."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rankwise.linalg.diagonal import Diagonal
from rankwise.linalg.later import Later
from rankwise.linalg.metric import Dense, Identity, Metric, Sampled
from rankwise.linalg.stacked import chosen, stacked

C, Q, T = 3, 4, 5
D = C * Q


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def metrics_of(kind: str) -> Sequence[Metric]:
    moments = [normal(20, D, seed=seed) for seed in range(3)]
    dense = [Dense(rows.mT @ rows, 0.1) for rows in moments]
    return {
        "dense": dense,
        "sampled": [Sampled(rows[: 4 + seed], 0.1 * seed) for seed, rows in enumerate(moments)],
        "diagonal": [Diagonal(rows.square().sum(0), 0.2) for rows in moments],
        "identity": [Identity(D)] * 3,
        "mixed": [dense[0], Identity(D), Sampled(moments[1][:5], 0.3)],
        "shared": [dense[0]] * 3,
        "later": [Later(lambda metric=metric: metric, D, metric.device) for metric in dense],
    }[kind]


@pytest.mark.parametrize("kind", ["dense", "sampled", "diagonal", "identity", "mixed", "shared", "later"])
def test_each_problem_has_its_own_metric(kind: str) -> None:
    metrics, M_GTD = metrics_of(kind), normal(3, T, D, seed=9)
    for places in ([0, 1, 2], [2, 0]):
        batch = chosen(stacked(metrics), torch.tensor(places))
        for dtype in (torch.float64, torch.float32):
            near = {"rtol": 1e-9, "atol": 1e-9} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-3}
            some, own = M_GTD[places].to(dtype), batch.to(dtype)
            assert own.times(some).dtype == own.inner(some).dtype == dtype
            times, inner = own.times(some).double(), own.inner(some).double()
            for number, place in enumerate(places):
                torch.testing.assert_close(times[number], metrics[place].times(M_GTD[place]), **near)
                torch.testing.assert_close(inner[number], metrics[place].inner(M_GTD[place]), **near)
        for number, place in enumerate(places):
            dense = batch.dense() if batch.dense().dim() == 3 else batch.dense()[None]
            torch.testing.assert_close(dense[number if len(dense) > 1 else 0], metrics[place].dense())
            for held in ([0], [1], [0, 1], []):
                found = batch.marginal((C, Q), held)
                found = found if found.dim() == 2 else found[number if len(found) > 1 else 0]
                torch.testing.assert_close(found, metrics[place].marginal((C, Q), held))


def test_what_all_share_is_kept_once() -> None:
    (metric, *_) = metrics_of("dense")
    assert isinstance(metric, Dense)
    batch = stacked([metric] * 5)
    assert batch.dense().shape == (1, D, D)
    assert batch.dense().data_ptr() != 0
    assert chosen(batch, torch.tensor([3, 1])).dense().shape == (1, D, D)
