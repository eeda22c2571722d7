"""Partial Tucker factorisation in a metric, against HOOI, block ALS, the SVD and kernels of known form."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tucker2_problems import FORMS, C, Q, T, direct, normal, patches, planted, problem
from torch import Tensor

from rankwise.linalg import tucker2
from rankwise.linalg.metric import Dense, Identity, Sampled
from rankwise.linalg.reduced_rank import truncate
from rankwise.linalg.tucker2 import Tucker2, channel_basis, fit

pytestmark = pytest.mark.usefixtures("one_thread")


def hooi(W_TCQ: Tensor, R: int, S: int, sweeps: int = 60) -> Tensor:
    """Higher-order orthogonal iteration on the output and channel modes, from the truncated HOSVD."""

    def leading(M: Tensor, rank: int) -> Tensor:
        return torch.linalg.svd(M, full_matrices=False)[0][:, :rank]

    A = leading(W_TCQ.flatten(1), R)
    B = leading(W_TCQ.transpose(0, 1).flatten(1), S)
    for _ in range(sweeps):
        A = leading(torch.einsum("tcq,cs->tsq", W_TCQ, B).flatten(1), R)
        B = leading(torch.einsum("tcq,tr->crq", W_TCQ, A).flatten(1), S)
    return torch.einsum("tcq,tr,ur,cs,ds->udq", W_TCQ, A, A, B, B)


def block_als(W_TCQ: Tensor, sigma: Tensor, R: int, S: int, sweeps: int = 100) -> Tensor:
    """Separate exact least-squares updates of A, G and B, from the truncated HOSVD."""
    W_TD = W_TCQ.flatten(1)
    A = torch.linalg.svd(W_TD, full_matrices=False)[0][:, :R]
    B = torch.linalg.svd(W_TCQ.transpose(0, 1).flatten(1), full_matrices=False)[0][:, :S]
    G = torch.einsum("tcq,tr,cs->rsq", W_TCQ, A, B)
    sigma4 = sigma.view(C, Q, C, Q)
    for _ in range(sweeps):
        P = torch.kron(B.contiguous(), torch.eye(Q, dtype=torch.float64))
        left = torch.linalg.solve(A.mT @ A, A.mT @ W_TD @ sigma @ P)
        G = torch.linalg.solve(P.mT @ sigma @ P, left.mT).mT.reshape(R, S, Q)
        M = G.flatten(1) @ P.mT
        A = torch.linalg.solve(M @ sigma @ M.mT, M @ sigma @ W_TD.mT).mT
        gamma = torch.einsum("tr,tu,rsq,uvp->sqvp", A, A, G, G)
        H = torch.einsum("cqdp,sqvp->csdv", sigma4, gamma).reshape(C * S, C * S)
        b = torch.einsum("rcq,rsq->cs", (A.mT @ W_TD @ sigma).reshape(R, C, Q), G).reshape(-1)
        B = torch.linalg.solve(H, b).reshape(C, S)
    return torch.einsum("tr,rsq,cs->tcq", A, G, B)


@settings(max_examples=20, deadline=None)
@given(form=st.sampled_from(FORMS), R=st.integers(1, T), S=st.integers(1, C), seed=st.integers(0, 999))
def test_reported_error_is_the_direct_one_and_bases_are_orthonormal(form: str, R: int, S: int, seed: int) -> None:
    W_TCQ, metric = problem(form, seed)
    found = fit(W_TCQ, metric, R, S)
    assert isinstance(found, Tucker2)
    assert (found.A_TR.shape, found.G_RSQ.shape, found.B_CS.shape) == ((T, R), (R, S, Q), (C, S))
    total = metric.energy(W_TCQ.flatten(1))
    assert found.error == pytest.approx(direct(W_TCQ, found.dense(), metric), rel=1e-8, abs=1e-9 * total)
    for basis in (found.A_TR, found.B_CS):
        torch.testing.assert_close(basis.mT @ basis, torch.eye(basis.shape[1], dtype=torch.float64))


@settings(max_examples=8, deadline=None)
@given(form=st.sampled_from(FORMS), R=st.integers(1, T - 1), S=st.integers(1, C - 1), seed=st.integers(0, 999))
def test_error_never_grows_from_sweep_to_sweep(form: str, R: int, S: int, seed: int) -> None:
    W_TCQ, metric = problem(form, seed)
    total = metric.energy(W_TCQ.flatten(1))
    errors = [fit(W_TCQ, metric, R, S, sweeps=sweeps, tolerance=0).error for sweeps in (0, 1, 2, 4, 5, 7, 12)]
    for before, after in itertools.pairwise(errors):
        assert after <= before + 1e-9 * total


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_any_number_of_conjugate_gradient_steps_lowers_the_error(steps: int) -> None:
    W_TCQ, metric = problem("dense", 3)
    errors = [fit(W_TCQ, metric, 3, 3, sweeps=sweeps, tolerance=0, steps=steps).error for sweeps in range(5)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_full_ranks_are_exact_also_where_no_input_was_seen(form: str, scale: float) -> None:
    W_TCQ, metric = problem(form)
    found = fit(W_TCQ * scale, metric, T, C)
    torch.testing.assert_close(found.dense() / scale, W_TCQ, atol=1e-9, rtol=0)
    assert found.error <= 1e-10 * metric.energy(W_TCQ.flatten(1) * scale)


def test_full_ranks_are_exact_where_taps_are_always_padding() -> None:
    rows_ND = patches(100)
    rows_ND.view(100, C, Q)[:, :, 1:] = 0
    W_TCQ = normal(T, C, Q)
    for metric in (Dense(rows_ND.mT @ rows_ND), Sampled(rows_ND[:5])):
        torch.testing.assert_close(fit(W_TCQ, metric, T, C).dense(), W_TCQ, atol=1e-9, rtol=0)


@pytest.mark.parametrize("R, S", [(1, 1), (2, 3), (3, C), (T, 2)])
@pytest.mark.parametrize("form", ["dense", "identity"])
def test_a_kernel_of_the_form_is_recovered(R: int, S: int, form: str) -> None:
    W_TCQ, (_, metric) = planted(R, S), problem(form)
    found = fit(W_TCQ, metric, R, S)
    torch.testing.assert_close(found.dense(), W_TCQ, atol=1e-8, rtol=1e-8)
    assert found.error <= 1e-11 * metric.energy(W_TCQ.flatten(1))


def test_in_the_weight_metric_it_is_as_good_as_hooi() -> None:
    """Both find a local optimum, so single kernels may differ a little either way."""
    metric, ratios = Identity(C * Q), []
    for seed in range(8):
        W_TCQ = normal(T, C, Q, seed=seed)
        for R, S in ((3, 2), (2, 4), (5, 3)):
            reference = direct(W_TCQ, hooi(W_TCQ, R, S), metric)
            ratios.append(fit(W_TCQ, metric, R, S, sweeps=30, tolerance=0).error / reference)
    assert sum(ratios) / len(ratios) <= 1.001
    assert max(ratios) <= 1.02


@settings(max_examples=12, deadline=None)
@given(form=st.sampled_from(["dense", "sampled"]), R=st.integers(1, T), S=st.integers(1, C), seed=st.integers(0, 999))
def test_in_the_metric_it_beats_hooi(form: str, R: int, S: int, seed: int) -> None:
    W_TCQ, metric = problem(form, seed)
    total = metric.energy(W_TCQ.flatten(1))
    assert fit(W_TCQ, metric, R, S).error <= direct(W_TCQ, hooi(W_TCQ, R, S), metric) + 1e-9 * total


@settings(max_examples=15, deadline=None)
@given(form=st.sampled_from(FORMS), R=st.integers(1, T), seed=st.integers(0, 999))
def test_all_channels_kept_is_the_optimum_of_the_matrix(form: str, R: int, seed: int) -> None:
    W_TCQ, metric = problem(form, seed)
    total = metric.energy(W_TCQ.flatten(1))
    assert fit(W_TCQ, metric, R, C).error == pytest.approx(
        truncate(W_TCQ.flatten(1), metric, R)[2], rel=1e-8, abs=1e-9 * total
    )


@pytest.mark.parametrize("rank", [1, 2, 5, 9])
def test_all_outputs_kept_is_the_svd_of_the_rearranged_kernel(rank: int) -> None:
    """(channel, row) as one merged channel, columns as taps, in the weight metric: the pair k x 1 -> 1 x k."""
    W_TCHW = normal(5, 4, 3, 3)
    merged = W_TCHW.reshape(5, 12, 3)
    found = fit(merged, Identity(36), output_rank=5, channel_rank=rank)
    rearranged = W_TCHW.permute(1, 2, 0, 3).reshape(12, 15)
    U, s, Vh = torch.linalg.svd(rearranged, full_matrices=False)
    assert found.error == pytest.approx(float(s[rank:].square().sum()), rel=1e-9)
    best = ((U[:, :rank] * s[:rank]) @ Vh[:rank]).reshape(4, 3, 5, 3).permute(2, 0, 1, 3)
    torch.testing.assert_close(found.dense().reshape(5, 4, 3, 3), best, atol=1e-6, rtol=1e-6)


def test_ten_sweeps_come_near_to_three_hundred_alternating_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    W_TCQ, metric = problem("dense", 50)  # where alternating ones are slow
    ten = fit(W_TCQ, metric, 3, 2, sweeps=10, tolerance=1e-12).error
    monkeypatch.setattr(tucker2, "EFFORT", (300, 1e-3))
    slow = [fit(W_TCQ, metric, 3, 2, sweeps=sweeps, tolerance=1e-12).error for sweeps in (10, 300)]
    assert ten < (1 + 1e-4) * slow[1] < (1 + 5e-4) * slow[1] < slow[0]


@pytest.mark.parametrize("seed", range(6))
def test_of_more_sweeps_the_usual_tolerance_is_that_of_newton(seed: int) -> None:
    W_TCQ, metric = problem("dense", seed)
    usual, long = (fit(W_TCQ, metric, 3, 2, sweeps=sweeps).error for sweeps in (4, 20))
    assert long <= usual
    assert long == pytest.approx(fit(W_TCQ, metric, 3, 2, sweeps=20, tolerance=1e-12).error, rel=1e-4)


def test_close_to_a_hundred_sweeps_of_block_als() -> None:
    quick, long = [], []
    for seed in range(8):
        W_TCQ, metric = problem("dense", 50 + seed)
        for R, S in ((3, 2), (2, 4), (5, 3)):
            reference = direct(W_TCQ, block_als(W_TCQ, metric.dense(), R, S), metric)
            quick.append(fit(W_TCQ, metric, R, S).error / reference)
            long.append(fit(W_TCQ, metric, R, S, sweeps=25, tolerance=0).error / reference)
    assert max(long) <= 1.001
    assert sum(quick) / len(quick) <= 1.001
    assert max(quick) <= 1.02


@pytest.mark.parametrize("form", FORMS)
def test_scales_do_not_matter(form: str) -> None:
    W_TCQ, metric = problem(form, 5)
    plain = fit(W_TCQ, metric, 3, 3)
    for scale in (1e-6, 1e6):
        scaled = fit(W_TCQ * scale, metric, 3, 3)
        torch.testing.assert_close(scaled.dense() / scale, plain.dense(), atol=1e-7, rtol=1e-6)
        assert scaled.error / scale**2 == pytest.approx(plain.error, rel=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_a_kernel_of_zeros(form: str) -> None:
    _, metric = problem(form)
    found = fit(torch.zeros(T, C, Q), metric, 2, 2)
    assert found.error == 0
    assert bool((found.dense().abs() < 1e-12).all())


def test_data_that_never_fires() -> None:
    W_TCQ = normal(T, C, Q)
    for metric in (Dense(torch.zeros(C * Q, C * Q)), Sampled(torch.zeros(3, C * Q))):
        found = fit(W_TCQ, metric, 2, 2)
        assert found.error == 0
        assert bool(torch.isfinite(found.dense()).all())


@pytest.mark.parametrize("form", FORMS)
def test_the_start_is_orthonormal_and_spans_the_channels_of_a_planted_kernel(form: str) -> None:
    _, metric = problem(form)
    W_TCQ = planted(4, 2, seed=7)
    B_CC = channel_basis(W_TCQ, metric)
    torch.testing.assert_close(B_CC.mT @ B_CC, torch.eye(C, dtype=torch.float64))
    outside = torch.einsum("tcq,cs->tsq", W_TCQ, B_CC[:, 2:])
    assert float(outside.abs().max()) < 1e-6 * float(W_TCQ.abs().max())


def test_deterministic() -> None:
    W_TCQ, metric = problem("dense")
    first, second = fit(W_TCQ, metric, 3, 2), fit(W_TCQ, metric, 3, 2)
    assert torch.equal(first.dense(), second.dense())
