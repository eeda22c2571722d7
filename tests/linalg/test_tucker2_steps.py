"""Moves of the channel basis, against derivatives of the error itself and optima of known place."""

from __future__ import annotations

import pytest
import torch
from support.tucker2_problems import C, Q, T, direct, normal, problem
from torch import Tensor

from rankwise.linalg.metric import Dense
from rankwise.linalg.tucker2 import channel_basis, fit
from rankwise.linalg.tucker2_steps import Rest, Steps

R, S = 3, 2

pytestmark = pytest.mark.usefixtures("one_thread")


def begin(form: str, seed: int = 3) -> tuple[Steps, Tensor, Rest]:
    W_TCQ, metric = problem(form, seed)
    moves = Steps(W_TCQ, metric, R, 6)
    B_CS = channel_basis(W_TCQ, metric)[:, :S]
    return moves, B_CS, moves.rest(B_CS)


def eliminated(moves: Steps, B_CS: Tensor) -> Tensor:
    """The error of the best outputs and core, by normal equations that autograd can follow."""
    sigma = moves.metric.dense()
    P = torch.einsum("cs,qp->cqsp", B_CS, torch.eye(Q, dtype=torch.float64)).reshape(C * Q, -1)
    cross = moves.W_TD @ sigma @ P
    explained = cross @ torch.linalg.solve(P.mT @ sigma @ P, cross.mT)
    return moves.total - torch.linalg.eigvalsh(explained)[-R:].sum()


def test_the_slope_is_half_of_the_negative_gradient() -> None:
    moves, B_CS, rest = begin("dense")
    with torch.enable_grad():
        leaf = B_CS.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(eliminated(moves, leaf), leaf)
    slope = moves._slope(B_CS, rest)
    torch.testing.assert_close(slope, -gradient / 2, rtol=1e-6, atol=1e-7 * float(gradient.abs().max()))
    assert float((B_CS.mT @ slope).abs().max()) < 1e-8 * float(slope.abs().max())


def test_newton_steps_converge_faster_than_linearly() -> None:
    moves, B_CS, rest = begin("dense")
    B_CS = moves.alternating(B_CS, rest)
    rest, slopes = moves.rest(B_CS), list[float]()
    for _ in range(6):
        slope = moves._slope(B_CS, rest)
        slopes.append(float(torch.linalg.vector_norm(slope - B_CS @ (B_CS.mT @ slope))))
        if slopes[-1] < 1e-7 * slopes[0]:
            break
        found = moves.newton(B_CS, rest)
        assert found is not None
        assert found[1].error < rest.error
        B_CS, rest = found
    assert slopes[-1] < 1e-6 * slopes[0]


@pytest.mark.parametrize("form", ["dense", "sampled"])
def test_newton_steps_lower_the_error(form: str) -> None:
    moves, B_CS, rest = begin(form)
    for _ in range(4):
        found = moves.newton(B_CS, rest)
        assert found is not None
        assert found[1].error < rest.error
        B_CS, rest = found
        torch.testing.assert_close(B_CS.mT @ B_CS, torch.eye(S, dtype=torch.float64))
        assert rest.error == pytest.approx(moves.rest(B_CS).error)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_newton_steps_do_not_depend_on_units(scale: float) -> None:
    W_TCQ, metric = problem("dense", 8)
    spans = []
    for factor in (1.0, scale):
        moves = Steps(W_TCQ * factor, metric, R, 6)
        B_CS = channel_basis(W_TCQ, metric)[:, :S]
        B_CS = moves.alternating(B_CS, moves.rest(B_CS))
        found = moves.newton(B_CS, moves.rest(B_CS))
        assert found is not None
        spans.append(found[0] @ found[0].mT)
    torch.testing.assert_close(spans[0], spans[1], atol=1e-5, rtol=1e-5)


def test_at_the_optimum_the_span_stays() -> None:
    W_TCQ, metric = problem("dense", 3)
    moves = Steps(W_TCQ, metric, R, 6)
    B_CS = fit(W_TCQ, metric, R, S, sweeps=30, tolerance=0).B_CS
    found = moves.newton(B_CS, moves.rest(B_CS))
    moved_CS = B_CS if found is None else found[0]
    torch.testing.assert_close(moved_CS @ moved_CS.mT, B_CS @ B_CS.mT, atol=1e-5, rtol=0)


def test_all_outputs_kept() -> None:
    W_TCQ, metric = problem("dense", 5)
    moves = Steps(W_TCQ, metric, T, 6)
    B_CS = channel_basis(W_TCQ, metric)[:, :S]
    rest = moves.rest(B_CS)
    errors = [rest.error]
    for _ in range(5):
        found = moves.newton(B_CS, rest)
        if found is None:
            break
        B_CS, rest = found
        errors.append(rest.error)
    assert len(errors) > 2
    assert errors == sorted(errors, reverse=True)


def test_the_error_is_exact_where_the_solution_is_damped() -> None:
    """Inputs of sizes that no number of digits holds together: what damping leaves over is part of the error."""
    sizes_D = torch.logspace(0, -5, C * Q, dtype=torch.float64)
    rows_ND = normal(60, C * Q, seed=5) * sizes_D
    W_TCQ, metric = normal(T, C, Q), Dense(rows_ND.mT @ rows_ND / len(rows_ND), 1e-6)
    B_CS = channel_basis(W_TCQ, metric)[:, :S]
    rest = Steps(W_TCQ, metric, T, 6).rest(B_CS)
    V_TCQ = torch.einsum("tr,rsq,cs->tcq", rest.A_TR, rest.G_RSQ, B_CS)
    assert rest.error == pytest.approx(direct(W_TCQ, V_TCQ, metric), rel=2e-11, abs=0)
