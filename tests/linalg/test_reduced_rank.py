"""The closed form of a low-rank factorisation in a metric, against other forms of the same optimum."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rankwise.linalg.metric import Dense, Identity, Metric, Sampled
from rankwise.linalg.reduced_rank import balance, spectrum, truncate


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def definite(dim: int, seed: int = 0) -> Tensor:
    root = normal(dim, 2 * dim, seed=seed) * torch.linspace(0.1, 3, dim, dtype=torch.float64)[:, None]
    return root @ root.mT / (2 * dim)


def direct(W_TD: Tensor, V_TD: Tensor, metric: Metric) -> float:
    missed = W_TD - V_TD
    return float((missed @ metric.dense() @ missed.mT).trace())


def whitened(W_TD: Tensor, sigma: Tensor, rank: int) -> tuple[Tensor, float]:
    """SVD of `W L`, truncated, times the inverse of `L`: the form that other methods use."""
    L_DD = torch.linalg.cholesky(sigma)
    U, s, Vh = torch.linalg.svd(W_TD @ L_DD, full_matrices=False)
    V_TD = torch.linalg.solve_triangular(L_DD, (U[:, :rank] * s[:rank]) @ Vh[:rank], upper=False, left=False)
    return V_TD, float(s[rank:].square().sum())


@settings(max_examples=40, deadline=None)
@given(T=st.integers(1, 9), D=st.integers(1, 9), data=st.data(), seed=st.integers(0, 999))
def test_equals_the_whitened_form_on_an_invertible_metric(T: int, D: int, data: st.DataObject, seed: int) -> None:
    rank = data.draw(st.integers(1, min(T, D)))
    W_TD, sigma = normal(T, D, seed=seed), definite(D, seed + 1)
    expected, loss = whitened(W_TD, sigma, rank)
    U_TR, V_RD, error = truncate(W_TD, Dense(sigma), rank)
    total = float((W_TD @ sigma @ W_TD.mT).trace())
    assert error == pytest.approx(loss, rel=1e-10, abs=1e-12 * total)
    assert error == pytest.approx(direct(W_TD, U_TR @ V_RD, Dense(sigma)), rel=1e-9, abs=1e-12 * total)
    values, _ = spectrum(W_TD, Dense(sigma))
    gap = float(values[rank - 1] - values[rank]) / float(values[0]) if rank < len(values) else 1.0
    if gap > 1e-2:  # the optimum is unique, and well determined
        torch.testing.assert_close(U_TR @ V_RD, expected, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("T, D", [(6, 10), (10, 6), (8, 8)])
def test_whitened_form_to_twelve_digits(T: int, D: int) -> None:
    W_TD, sigma = normal(T, D), definite(D, 1)
    for rank in range(1, min(T, D) + 1):
        U_TR, V_RD, _ = truncate(W_TD, Dense(sigma), rank)
        torch.testing.assert_close(U_TR @ V_RD, whitened(W_TD, sigma, rank)[0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("T, D", [(5, 9), (9, 5)])
def test_identity_is_the_plain_svd(T: int, D: int) -> None:
    W_TD = normal(T, D)
    U, s, Vh = torch.linalg.svd(W_TD, full_matrices=False)
    for rank in range(1, 6):
        U_TR, V_RD, error = truncate(W_TD, Identity(D), rank)
        torch.testing.assert_close(U_TR @ V_RD, (U[:, :rank] * s[:rank]) @ Vh[:rank])
        assert error == pytest.approx(float(s[rank:].square().sum()), abs=1e-12)


@pytest.mark.parametrize("T, D, N", [(6, 10, 4), (10, 6, 3), (4, 10, 6), (10, 6, 20), (7, 7, 7), (6, 10, 1)])
@pytest.mark.parametrize("form", ["dense", "sampled"])
def test_singular_metric_needs_no_damping(T: int, D: int, N: int, form: str) -> None:
    W_TD, rows_ND = normal(T, D), normal(N, D, seed=1)
    sigma = rows_ND.mT @ rows_ND
    metric = Sampled(rows_ND) if form == "sampled" else Dense(sigma)
    tail = torch.linalg.svdvals(W_TD @ rows_ND.mT).square()  # of the outputs that were seen
    values, U_TK = spectrum(W_TD, metric)
    K = min(T, D)
    assert values.shape == (K,)
    torch.testing.assert_close(U_TK.mT @ U_TK, torch.eye(K, dtype=torch.float64))
    for rank in range(1, K + 1):
        U_TR, V_RD, error = truncate(W_TD, metric, rank)
        expected = float(tail[rank:].sum())
        assert error == pytest.approx(expected, rel=1e-9, abs=1e-11)
        assert direct(W_TD, U_TR @ V_RD, metric) == pytest.approx(expected, rel=1e-9, abs=1e-11)
    torch.testing.assert_close(U_TR @ V_RD, W_TD)  # full rank: also where no input was seen


def test_the_dual_form_equals_the_primal_one() -> None:
    W_TD, rows_ND = normal(12, 15), normal(5, 15, seed=1)
    for rank in range(1, 6):
        few = truncate(W_TD, Sampled(rows_ND), rank)
        all_of_it = truncate(W_TD, Dense(rows_ND.mT @ rows_ND), rank)
        torch.testing.assert_close(few[0] @ few[1], all_of_it[0] @ all_of_it[1], atol=1e-10, rtol=0)


def test_beyond_the_seen_outputs_the_weight_metric_decides() -> None:
    """With N seen outputs and rank N + 1, a little ridge makes the last direction the best of what is left."""
    W_TD, rows_ND = normal(8, 10), normal(3, 10, seed=1)
    U_TR, V_RD, error = truncate(W_TD, Sampled(rows_ND, 1e-7), 4)
    seen = torch.linalg.qr(W_TD @ rows_ND.mT).Q
    rest = W_TD - seen @ (seen.mT @ W_TD)
    tail = float(torch.linalg.svdvals(rest)[1:].square().sum())
    assert error == pytest.approx(1e-7 * tail, rel=1e-4)
    assert direct(W_TD, U_TR @ V_RD, Identity(10)) == pytest.approx(tail, rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    weight=st.sampled_from([1e-12, 1e-6, 1.0, 1e6, 1e12]),
    data=st.sampled_from([1e-6, 1.0, 1e6]),
    form=st.sampled_from(["dense", "sampled", "identity"]),
    rank=st.integers(1, 5),
)
def test_scales_of_weight_and_data_do_not_matter(weight: float, data: float, form: str, rank: int) -> None:
    W_TD, rows_ND = normal(6, 8), normal(4 if form == "sampled" else 20, 8, seed=1)

    def solve(a: float, b: float) -> tuple[Tensor, float]:
        rows = rows_ND * b
        metric = {"dense": Dense(rows.mT @ rows), "sampled": Sampled(rows, 0.1 * b**2), "identity": Identity(8)}[form]
        U_TR, V_RD, error = truncate(W_TD * a, metric, rank)
        return U_TR @ V_RD / a, error / metric.energy(W_TD * a)

    plain, error = solve(1.0, 1.0)
    scaled, scaled_error = solve(weight, data)
    torch.testing.assert_close(scaled, plain, atol=1e-10, rtol=0)
    assert scaled_error == pytest.approx(error, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("true_rank", [1, 3])
@pytest.mark.parametrize("T, D", [(6, 9), (9, 6)])
def test_a_rank_deficient_weight_is_recovered(T: int, D: int, true_rank: int) -> None:
    W_TD = normal(T, true_rank) @ normal(true_rank, D, seed=1)
    for metric in (Identity(D), Dense(definite(D, 2)), Sampled(normal(4, D, seed=3))):
        for rank in range(true_rank, min(T, D) + 1):
            U_TR, V_RD, error = truncate(W_TD, metric, rank)
            torch.testing.assert_close(U_TR @ V_RD, W_TD, atol=1e-10, rtol=0)
            assert error < 1e-12 * metric.energy(W_TD)
            torch.testing.assert_close(U_TR.mT @ U_TR, torch.eye(rank, dtype=torch.float64))


@pytest.mark.parametrize("which", ["weight", "data"])
def test_zeros(which: str) -> None:
    W_TD, rows_ND = normal(4, 6), normal(3, 6, seed=1)
    (W_TD if which == "weight" else rows_ND).zero_()
    for metric in (Dense(rows_ND.mT @ rows_ND), Sampled(rows_ND), Sampled(rows_ND[:1])):
        for rank in (1, 4):
            U_TR, V_RD, error = truncate(W_TD, metric, rank)
            assert error == 0
            assert bool(torch.isfinite(U_TR).all())
            assert bool(torch.isfinite(V_RD).all())
        torch.testing.assert_close(U_TR @ V_RD, W_TD, atol=1e-12, rtol=0)


def test_low_precision_weights_are_solved_in_float64() -> None:
    W_TD = normal(5, 7).bfloat16()
    U_TR, V_RD, error = truncate(W_TD, Identity(7), 5)
    assert U_TR.dtype == V_RD.dtype == torch.float64
    torch.testing.assert_close(U_TR @ V_RD, W_TD.double())
    assert error < 1e-20


def test_the_optimum_beats_other_factorisations_of_its_rank() -> None:
    W_TD, sigma = normal(8, 10), definite(10, 1)
    metric = Dense(sigma)
    for rank in (2, 5):
        error = truncate(W_TD, metric, rank)[2]
        U, s, Vh = torch.linalg.svd(W_TD, full_matrices=False)
        plain = direct(W_TD, (U[:, :rank] * s[:rank]) @ Vh[:rank], metric)
        scale = sigma.diagonal().sqrt()
        U, s, Vh = torch.linalg.svd(W_TD * scale, full_matrices=False)
        scaled = direct(W_TD, (U[:, :rank] * s[:rank]) @ Vh[:rank] / scale, metric)
        assert error < 0.999 * min(plain, scaled)


def test_balance_keeps_the_product_and_evens_the_norms() -> None:
    U_TR, V_RD, _ = truncate(normal(6, 9) * 1e4, Identity(9), 4)
    even_U, even_V = balance(U_TR, V_RD)
    torch.testing.assert_close(even_U @ even_V, U_TR @ V_RD)
    torch.testing.assert_close(torch.linalg.vector_norm(even_U, dim=0), torch.linalg.vector_norm(even_V, dim=1))


def test_balance_of_a_zero_component_stays_finite() -> None:
    even_U, even_V = balance(torch.eye(3, 2, dtype=torch.float64), torch.tensor([[1.0, 2.0], [0.0, 0.0]]).double())
    assert bool(torch.isfinite(even_U).all())
    assert even_V[1].tolist() == [0.0, 0.0]
