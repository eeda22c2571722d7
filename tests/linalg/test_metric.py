"""Every metric answers as dense algebra with its matrix does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rankwise.linalg.diagonal import Diagonal
from rankwise.linalg.metric import Dense, Identity, Metric, Sampled

KINDS = ("diagonal", "dense", "singular", "sampled", "ridge", "many rows", "identity")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(kind: str, dim: int, seed: int) -> tuple[Metric, Tensor]:
    """A metric and the matrix it stands for."""
    if kind == "diagonal":
        variance_D = normal(dim, seed=seed).square()
        return Diagonal(variance_D, 0.5), torch.diag(variance_D + 0.5 * variance_D.mean())
    if kind == "identity":
        return Identity(dim), torch.eye(dim, dtype=torch.float64)
    rows = max(1, dim // 2) if kind in ("singular", "sampled", "ridge") else dim + 3
    rows_ND = normal(rows, dim, seed=seed) @ normal(dim, dim, seed=seed + 1) / rows**0.5
    sigma = rows_ND.mT @ rows_ND
    if kind == "ridge":
        return Sampled(rows_ND, 0.5), sigma + 0.5 * torch.eye(dim, dtype=torch.float64)
    return (Dense(sigma) if kind in ("dense", "singular") else Sampled(rows_ND)), sigma


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    C=st.integers(1, 4),
    Q=st.integers(1, 4),
    T=st.integers(1, 5),
    R=st.integers(1, 4),
    seed=st.integers(0, 999),
)
def test_laws(kind: str, C: int, Q: int, T: int, R: int, seed: int) -> None:
    metric, sigma = made(kind, C * Q, seed)
    M_TD, B_CR = normal(T, C * Q, seed=seed + 2), normal(C, R, seed=seed + 3)
    P = torch.kron(B_CR.contiguous(), torch.eye(Q, dtype=torch.float64))
    close = torch.testing.assert_close
    assert metric.dim == C * Q
    close(metric.dense(), sigma)
    close(metric.times(M_TD), M_TD @ sigma)
    close(metric.inner(M_TD), M_TD @ sigma @ M_TD.mT)
    assert metric.energy(M_TD) == pytest.approx(float((M_TD @ sigma @ M_TD.mT).trace()), rel=1e-10)
    close(metric.fold(B_CR, Q).dense(), P.mT @ sigma @ P)
    close(metric.spread(B_CR, M_TD, Q), M_TD @ sigma @ P)
    blocks = sigma.view(C, Q, C, Q)
    close(metric.marginal((C, Q), (0,)), sum(blocks[:, q, :, q] for q in range(Q)) / Q)
    close(metric.marginal((C, Q), (1,)), sum(blocks[c, :, c, :] for c in range(C)) / C)
    close(metric.marginal((C, Q), ()), sigma.trace().view(1, 1) / (C * Q))
    close(metric.marginal((C, Q), (0, 1)), sigma)


def explained(target_TD: Tensor, sigma: Tensor, d: int) -> Tensor:
    """What a regression on the first d inputs explains of `target Sigma target^T`, by the pseudo-inverse."""
    cross = target_TD @ sigma[:, :d]
    return cross @ torch.linalg.pinv(sigma[:d, :d], rtol=1e-10, hermitian=True) @ cross.mT


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(KINDS), dim=st.integers(1, 9), T=st.integers(1, 4), seed=st.integers(0, 999))
def test_nested_projection_explains_what_each_leading_part_can(kind: str, dim: int, T: int, seed: int) -> None:
    metric, sigma = made(kind, dim, seed)
    target_TD = normal(T, dim, seed=seed + 5)
    Y_KT = metric.nested_projection(target_TD)
    scale = float((target_TD @ sigma @ target_TD.mT).abs().max())
    for d in range(1, dim + 1):
        found = Y_KT[:d].mT @ Y_KT[:d]
        torch.testing.assert_close(found, explained(target_TD, sigma, d), atol=1e-5 * scale, rtol=1e-5)


@pytest.mark.parametrize("form", [Sampled, lambda rows: Dense(rows.mT @ rows)])
@pytest.mark.parametrize("fault", ["dead inputs", "equal inputs", "only zeros", "tiny noise"])
def test_nested_projection_with_inputs_that_add_nothing(form: object, fault: str) -> None:
    """Padding that is always zero, or channels that repeat one another, must not seem to explain anything."""
    rows_ND = normal(8, 12)
    if fault == "dead inputs":
        rows_ND[:, [0, 1, 3, 4, 6, 7, 9]] = 0
    elif fault == "equal inputs":
        rows_ND[:, 1] = 2 * rows_ND[:, 0]
        rows_ND[:, 3] = rows_ND[:, 0] - rows_ND[:, 2]
    elif fault == "tiny noise":
        rows_ND[:, 2] = rows_ND[:, 0] + 1e-14 * rows_ND[:, 2]
    else:
        rows_ND[:] = 0
    sigma = rows_ND.mT @ rows_ND
    target_TD = normal(3, 12, seed=1)
    Y_KT = form(rows_ND).nested_projection(target_TD)  # type: ignore[operator]
    for d in range(1, 13):
        found = Y_KT[:d].mT @ Y_KT[:d]
        torch.testing.assert_close(found, explained(target_TD, sigma, d), atol=1e-4, rtol=1e-4)


def test_dense_damping_is_relative_and_leaves_the_argument_alone() -> None:
    sigma = torch.diag(torch.tensor([1.0, 3.0]))
    before = sigma.clone()
    for scale in (1e-8, 1.0, 1e8):
        damped = Dense(sigma * scale, damping=0.1).dense() / scale
        torch.testing.assert_close(damped, torch.diag(torch.tensor([1.2, 3.2], dtype=torch.float64)), rtol=1e-6, atol=0)
    Dense(before, damping=0.1)
    assert torch.equal(sigma, before)


def test_sampled_fold_has_the_smaller_form() -> None:
    rows_ND, B_CC = normal(5, 12), torch.linalg.qr(normal(4, 4)).Q
    assert isinstance(Sampled(rows_ND, 0.1).fold(B_CC[:, :3], 3), Sampled)
    assert isinstance(Sampled(rows_ND, 0.1).fold(B_CC[:, :1], 3), Dense)


@pytest.mark.parametrize("ridge", [1e-9, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("N, D", [(7, 40), (40, 7), (1, 5)])
def test_a_sampled_projection_in_blocks_is_the_dense_one(
    ridge: float, N: int, D: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows_ND, target_TD = normal(N, D), normal(3, D, seed=1)
    metric = Sampled(rows_ND, ridge)
    dense = Dense(metric.dense()).nested_projection(target_TD)
    for block in (1, 3, 1024):
        monkeypatch.setattr("rankwise.linalg.metric.PROJECTED", block)
        found = metric.nested_projection(target_TD)
        torch.testing.assert_close(found.abs(), dense.abs(), rtol=1e-4, atol=1e-4 * float(dense.abs().max()))
