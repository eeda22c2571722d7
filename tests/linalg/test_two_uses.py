"""Factors for a matrix that multiplies and is looked up: against direct search, in every entry's own weight."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rankwise.linalg.diagonal import Diagonal
from rankwise.linalg.metric import Dense, Identity, Metric
from rankwise.linalg.two_uses import TwoUses

pytestmark = pytest.mark.usefixtures("one_thread")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(T: int = 20, D: int = 6, seed: int = 0) -> tuple[Tensor, Metric, Metric]:
    """Correlated inputs of unequal strength, and rows of which few are frequent and some never come."""
    rows_ND = normal(40, D, seed=seed + 1) @ torch.diag(torch.logspace(0, -1.5, D, dtype=torch.float64))
    rows_ND = rows_ND @ normal(D, D, seed=seed + 2) + 0.3
    often_T = 1 / torch.arange(1, T + 1, dtype=torch.float64)
    often_T[-T // 4 :] = 0
    return normal(T, D, seed=seed), Dense(rows_ND.mT @ rows_ND / 40), Diagonal(often_T / often_T.sum(), 1e-3)


def direct(W_TD: Tensor, M_TD: Tensor, inputs: Metric, rows: Metric) -> float:
    """The sum of both relative errors, from the whole matrices."""
    missed = W_TD - M_TD
    uses = [(missed @ inputs.dense() @ missed.mT).trace() / (W_TD @ inputs.dense() @ W_TD.mT).trace()]
    uses.append((missed.mT @ rows.dense() @ missed).trace() / (W_TD.mT @ rows.dense() @ W_TD).trace())
    return float(sum(uses))


def searched(W_TD: Tensor, inputs: Metric, rows: Metric, rank: int) -> float:
    """The least error that quasi-Newton steps on both factors find, from several random places."""
    sigma, often = inputs.dense(), rows.dense()
    scales = [(W_TD @ sigma @ W_TD.mT).trace(), (W_TD.mT @ often @ W_TD).trace()]
    found = []
    for seed in range(3):
        A = normal(len(W_TD), rank, seed=seed).requires_grad_()
        B = normal(rank, W_TD.shape[1], seed=seed + 9).requires_grad_()
        search = torch.optim.LBFGS([A, B], max_iter=400, history_size=30, line_search_fn="strong_wolfe")

        def loss(A: Tensor = A, B: Tensor = B, search: torch.optim.Optimizer = search) -> Tensor:
            search.zero_grad()
            missed = W_TD - A @ B
            value = (missed @ sigma * missed).sum() / scales[0] + (often @ missed * missed).sum() / scales[1]
            value.backward()
            return value

        search.step(loss)
        found.append(loss().item())
    return min(found)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_close_to_the_least_error_that_a_search_finds(rank: int, seed: int) -> None:
    W_TD, inputs, rows = problem(seed=10 * seed)
    A_TR, B_RD, error = TwoUses(W_TD, inputs, rows).fit(rank)
    assert error == pytest.approx(direct(W_TD, A_TR @ B_RD, inputs, rows), rel=1e-9)
    least = searched(W_TD, inputs, rows, rank)
    assert least * (1 - 1e-6) <= error <= 1.01 * least


@given(seed=st.integers(0, 1000), T=st.integers(2, 15), D=st.integers(2, 7), scale=st.sampled_from([1e-6, 1.0, 1e6]))
@settings(max_examples=20, deadline=None)
def test_start_and_fit(seed: int, T: int, D: int, scale: float) -> None:
    """The errors of the start are those of its factors, never grow with the rank, and the fit is no worse."""
    W_TD, inputs, rows = problem(T, D, seed)
    uses = TwoUses(scale * W_TD, inputs, rows)
    A_TK, B_KD = uses.start()
    errors_K = uses.start_errors()
    assert uses.total == pytest.approx(2)
    started = [uses.error(A_TK[:, :rank] @ B_KD[:rank]) for rank in range(1, min(T, D) + 1)]
    expected = torch.tensor(started).cummin(0).values
    torch.testing.assert_close(errors_K, expected.double(), rtol=1e-6, atol=1e-10)
    for rank, error in enumerate(started, 1):
        assert uses.fit(rank)[2] <= error * (1 + 1e-9) + 1e-12
    assert errors_K[-1] == 0


def test_a_weight_of_that_rank_is_recovered() -> None:
    _, inputs, rows = problem()
    W_TD = normal(20, 3) @ normal(3, 6)
    A_TR, B_RD, error = TwoUses(W_TD, inputs, rows).fit(3)
    torch.testing.assert_close(A_TR @ B_RD, W_TD, rtol=1e-8, atol=1e-8)
    assert error < 1e-15


def test_in_the_weight_metric_it_is_the_singular_value_decomposition() -> None:
    W_TD = normal(20, 6)
    uses = TwoUses(W_TD, Identity(6), Identity(20))
    tails = torch.linalg.svdvals(W_TD).square().flip(0).cumsum(0).flip(0)
    torch.testing.assert_close(uses.start_errors()[:-1], 2 * tails[1:] / tails[0], rtol=1e-9, atol=1e-12)
    assert uses.fit(2)[2] == pytest.approx(2 * float(tails[2] / tails[0]), rel=1e-9)


def test_rows_of_zeros_stay_zero_and_uses_without_outputs_do_not_count() -> None:
    W_TD, inputs, rows = problem()
    W_TD[4] = 0
    A_TR, B_RD, _ = TwoUses(W_TD, inputs, rows).fit(2)
    assert float((A_TR @ B_RD)[4].abs().max()) == 0
    never = TwoUses(W_TD, inputs, Diagonal(torch.zeros(20)))
    assert never.total == pytest.approx(1)
    values = torch.linalg.eigvalsh(W_TD @ inputs.dense() @ W_TD.mT).flip(0)
    assert never.fit(2)[2] == pytest.approx(float(values[2:].sum() / values.sum()), rel=1e-2)
    nothing = TwoUses(torch.zeros(5, 3), Identity(3), Identity(5))
    assert nothing.total == nothing.fit(1)[2] == 0
