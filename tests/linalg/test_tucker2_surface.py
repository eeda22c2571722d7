"""The error of all ranks of a partial Tucker factorisation at once, against regressions on the start's channels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tucker2_problems import FORMS, C, Q, T, normal, patches, problem
from torch import Tensor

from rankwise.linalg.metric import Dense, Metric, Sampled
from rankwise.linalg.tucker2 import channel_basis, fit
from rankwise.linalg.tucker2_surface import channel_errors, error_surface

pytestmark = pytest.mark.usefixtures("one_thread")


def start_error(W_TCQ: Tensor, metric: Metric, R: int, S: int) -> float:
    """Of the best regression on the first channels of the start, cut to the outputs that matter most in it."""
    taps = torch.eye(Q, dtype=torch.float64)
    P = torch.einsum("cs,qp->cqsp", channel_basis(W_TCQ, metric)[:, :S], taps).reshape(C * Q, S * Q)
    sigma, W_TD = metric.dense(), W_TCQ.flatten(1)
    V_TD = torch.linalg.lstsq(P.mT @ sigma @ P, P.mT @ sigma @ W_TD.mT, driver="gelsd").solution.mT @ P.mT
    explained = torch.linalg.eigvalsh(V_TD @ sigma @ V_TD.mT).flip(0)[:R]
    return metric.energy(W_TD) - float(explained.sum())


@settings(max_examples=8, deadline=None)
@given(form=st.sampled_from(FORMS), seed=st.integers(0, 999))
def test_error_surface_is_the_error_of_the_start_for_every_rank(form: str, seed: int) -> None:
    W_TCQ, metric = problem(form, seed)
    total = metric.energy(W_TCQ.flatten(1))
    asked = [1, 2, 4, C]
    surface = error_surface(W_TCQ, metric, asked)
    assert surface.shape == (4, T)
    for row, S in enumerate(asked):
        for R in (1, 3, T):
            assert float(surface[row, R - 1]) == pytest.approx(start_error(W_TCQ, metric, R, S), 1e-6, 1e-7 * total)
            assert fit(W_TCQ, metric, R, S, sweeps=0).error <= float(surface[row, R - 1]) + 1e-7 * total
    assert bool((surface.diff(dim=0) <= 1e-9 * total).all())
    assert bool((surface.diff(dim=1) <= 1e-9 * total).all())


@pytest.mark.parametrize("form", [Sampled, lambda rows: Dense(rows.mT @ rows)])
def test_error_surface_with_taps_that_are_always_padding(form: object) -> None:
    rows_ND = patches(12)
    rows_ND.view(12, C, Q)[:, :, 1:] = 0
    W_TCQ, metric = normal(T, C, Q), form(rows_ND)  # type: ignore[operator]
    surface = error_surface(W_TCQ, metric, list(range(1, C + 1)))
    for S in range(1, C + 1):
        for R in (1, 3, T):
            start = start_error(W_TCQ, metric, R, S)
            assert float(surface[S - 1, R - 1]) == pytest.approx(start, rel=1e-4, abs=1e-4 * float(surface[0, 0]))


@pytest.mark.parametrize("form", FORMS)
def test_with_all_outputs_kept_it_is_the_error_of_channels_alone(form: str) -> None:
    W_TCQ, metric = problem(form, 4)
    surface = error_surface(W_TCQ, metric, list(range(1, C + 1)))
    torch.testing.assert_close(
        channel_errors(W_TCQ, metric), surface[:, -1], rtol=1e-6, atol=1e-9 * float(surface.max())
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_kernel_of_zeros_has_none(form: str) -> None:
    assert bool((error_surface(torch.zeros(T, C, Q), problem(form)[1], [1, C]) == 0).all())
