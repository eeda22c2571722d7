"""Symmetric decompositions: known spectra, scales far from one, singular matrices, and the fallbacks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.reads import Reads
from torch import Tensor

from rankwise.linalg.symmetric import cholesky, eigh, orthonormal, product, symmetric_part


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotated(values: list[float], seed: int = 0) -> Tensor:
    Q = torch.linalg.qr(normal(len(values), len(values), seed=seed)).Q
    return Q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ Q.mT


@settings(max_examples=25, deadline=None)
@given(
    values=st.lists(st.floats(0, 10, allow_subnormal=False), min_size=1, max_size=7),
    exponent=st.integers(-60, 60),
    seed=st.integers(0, 99),
)
def test_eigh_returns_the_known_spectrum_descending_at_any_scale(values: list[float], exponent: int, seed: int) -> None:
    scale = 10.0**exponent
    K_NN = rotated(values, seed) * scale
    found, vectors = eigh(K_NN)
    expected = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    torch.testing.assert_close(found / scale, expected, atol=1e-13 * max(1.0, max(values)), rtol=1e-12)
    assert bool((found >= 0).all())
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(len(values), dtype=torch.float64))
    torch.testing.assert_close((vectors * found) @ vectors.mT / scale, K_NN / scale, atol=1e-12, rtol=1e-10)


def test_eigh_of_zeros_is_zero_with_an_orthonormal_basis() -> None:
    values, vectors = eigh(torch.zeros(4, 4))
    assert values.tolist() == [0.0] * 4
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(4, dtype=torch.float64))


def test_eigh_reads_the_symmetric_part_and_returns_float64() -> None:
    K_NN = rotated([3.0, 1.0, 0.5])
    skew = normal(3, 3, seed=4)
    values, _ = eigh(K_NN + skew - skew.mT)
    torch.testing.assert_close(values, torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64))
    assert eigh(torch.eye(2, dtype=torch.bfloat16))[0].dtype == torch.float64


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_eigh_refuses_values_that_are_not_finite(value: float) -> None:
    K_NN = torch.eye(3)
    K_NN[1, 1] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        eigh(K_NN)


def test_eigh_falls_back_to_the_singular_value_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: Tensor) -> tuple[Tensor, Tensor]:
        raise torch.linalg.LinAlgError("did not converge")

    K_NN = rotated([4.0, 2.0, 1.0, 0.0])
    expected, basis = eigh(K_NN)
    monkeypatch.setattr(torch.linalg, "eigh", fails)
    values, vectors = eigh(K_NN)
    torch.testing.assert_close(values, expected, atol=1e-14, rtol=1e-12)
    projections = (vectors[:, :3] @ vectors[:, :3].mT, basis[:, :3] @ basis[:, :3].mT)
    torch.testing.assert_close(*projections)


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 8), exponent=st.integers(-60, 60), seed=st.integers(0, 99))
def test_cholesky_of_a_definite_matrix_is_its_factor(size: int, exponent: int, seed: int) -> None:
    root = normal(size, size + 3, seed=seed)
    S_NN = root @ root.mT * 10.0**exponent
    L_NN = cholesky(S_NN)
    assert bool((L_NN.triu(1) == 0).all())
    torch.testing.assert_close(L_NN @ L_NN.mT / 10.0**exponent, root @ root.mT, rtol=1e-9, atol=1e-9)


def test_cholesky_of_a_singular_matrix_changes_it_by_the_damping_alone() -> None:
    root = normal(6, 2)
    S_NN = root @ root.mT
    L_NN = cholesky(S_NN, damping=1e-6)
    torch.testing.assert_close(L_NN @ L_NN.mT - S_NN, 1e-6 * S_NN.diagonal().mean() * torch.eye(6, dtype=torch.float64))


def test_cholesky_raises_the_damping_until_it_succeeds() -> None:
    S_NN = rotated([1.0, 1.0, 1.0, -1e-7])
    L_NN = cholesky(S_NN)
    added = (L_NN @ L_NN.mT - S_NN).diagonal().mean()
    assert 1e-7 < float(added) < 1e-4


def test_cholesky_refuses_an_indefinite_matrix() -> None:
    with pytest.raises(ValueError, match="not positive semidefinite"):
        cholesky(torch.diag(torch.tensor([1.0, -3.0], dtype=torch.float64)))


def test_orthonormal_keeps_every_leading_span() -> None:
    B_NR = normal(7, 4)
    Q_NR = orthonormal(B_NR)
    torch.testing.assert_close(Q_NR.mT @ Q_NR, torch.eye(4, dtype=torch.float64))
    for rank in range(1, 5):
        outside = B_NR[:, :rank] - Q_NR[:, :rank] @ (Q_NR[:, :rank].mT @ B_NR[:, :rank])
        assert float(outside.abs().max()) < 1e-13


@pytest.mark.parametrize("N", [3, 1030, 1600])
def test_symmetric_products(N: int) -> None:
    root = torch.randn(N, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scaled = root * torch.linspace(1, 3, 40)
    torch.testing.assert_close(product(scaled, root), scaled @ root.mT)
    assert torch.equal(product(root, root)[-500:, :-1000], product(root, root)[:-1000, -500:].mT)


@pytest.mark.parametrize("N", [3, 600])
def test_symmetric_parts(N: int) -> None:
    K_NN = torch.randn(N, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(symmetric_part(K_NN), (K_NN + K_NN.mT) / 2)


def test_a_cholesky_factor_takes_one_read() -> None:
    S_NN = torch.eye(5, dtype=torch.float64)
    with Reads() as reads:
        cholesky(S_NN)
    assert reads.count == 1
