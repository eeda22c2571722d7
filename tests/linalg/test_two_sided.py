"""The metric of both sides against its definition, and the closed forms that follow from it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rankwise.linalg.metric import Dense, Identity
from rankwise.linalg.reduced_rank import truncate
from rankwise.linalg.two_sided import TwoSided

pytestmark = pytest.mark.usefixtures("one_thread")


def moment(size: int, seed: int, rows: int | None = None) -> Tensor:
    x = torch.randn(rows or 2 * size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.mT @ x / len(x)


def weight(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None, max_examples=25)
@given(
    groups=st.integers(1, 3),
    T=st.integers(1, 6),
    D=st.integers(1, 7),
    scale=st.sampled_from([1e-12, 1.0, 1e9]),
    seed=st.integers(0, 9),
)
def test_energy_and_transform(groups: int, T: int, D: int, scale: float, seed: int) -> None:
    """Energies are traces, in units that do not depend on the scale of G; `back` undoes `forth`."""
    G_GTT = torch.stack([moment(T, seed + g) for g in range(groups)])
    sigmas = [moment(D, 20 + seed + g) for g in range(groups)]
    metric = TwoSided.of([Dense(sigma) for sigma in sigmas], scale * G_GTT)
    W = weight(groups * T, D, seed=seed)
    mean = G_GTT.diagonal(dim1=1, dim2=2).mean()
    parts = zip(W.reshape(groups, T, D), G_GTT / mean, sigmas, strict=True)
    direct = sum(float((G @ W_TD @ sigma @ W_TD.mT).trace()) for W_TD, G, sigma in parts)
    assert metric.energy(W) == pytest.approx(direct, rel=1e-6)
    kernel = W.reshape(groups * T, D, 1)
    torch.testing.assert_close(metric.back(metric.forth(kernel)), kernel, rtol=1e-6, atol=1e-6)


def test_without_outputs_it_is_the_metric_of_the_inputs() -> None:
    W, sigma = weight(4, 3), moment(3, 1)
    metric = TwoSided(inputs=[Dense(sigma)])
    assert metric.forth(W) is W
    assert metric.back(W) is W
    assert metric.energy(W) == pytest.approx(float((W @ sigma @ W.mT).trace()))


def test_gradients_that_are_all_zero_weigh_all_outputs_alike() -> None:
    metric = TwoSided.of([Identity(3)], torch.zeros(1, 4, 4))
    assert torch.equal(metric.forth(weight(4, 3)), weight(4, 3))


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_optimum_is_the_truncated_svd_between_both_roots(rank: int) -> None:
    G, sigma, W = moment(5, 1), moment(7, 2), weight(5, 7)
    metric = TwoSided.of([Dense(sigma)], G[None])
    U, V, missed = truncate(metric.forth(W), metric.inputs[0], rank)
    found = metric.back(U) @ V

    def root(M: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(M)
        return vectors @ torch.diag(values.sqrt()) @ vectors.mT

    left, right = root(G / G.diagonal().mean()), root(sigma)
    P, s, Q = torch.linalg.svd(left @ W @ right)
    best = torch.linalg.solve(left, P[:, :rank] @ torch.diag(s[:rank]) @ Q[:rank]) @ torch.linalg.inv(right)
    torch.testing.assert_close(found, best, rtol=1e-6, atol=1e-8)
    assert missed == pytest.approx(float(s[rank:].square().sum()), rel=1e-8)


def test_a_diagonal_of_outputs_weighs_rows() -> None:
    """FWSVD: rows times the root of their weight, plain SVD, and back."""
    rows_T, W = torch.tensor([4.0, 1.0, 0.25, 9.0], dtype=torch.float64), weight(4, 6)
    metric = TwoSided.of([Identity(6)], torch.diag(rows_T)[None])
    U, V, _ = truncate(metric.forth(W), metric.inputs[0], 2)
    P, s, Q = torch.linalg.svd(rows_T.sqrt()[:, None] * W, full_matrices=False)
    expected = (P[:, :2] * s[:2]) @ Q[:2] / rows_T.sqrt()[:, None]
    torch.testing.assert_close(metric.back(U) @ V, expected, rtol=1e-8, atol=1e-10)
