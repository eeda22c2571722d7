"""Starts by singular value decompositions: exact at full ranks, the best of a rank for matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rankwise.linalg.splitting import paired, ring, split, terms, train


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("M, N", [(5, 9), (9, 5), (6, 6)])
def test_the_best_of_a_rank(M: int, N: int) -> None:
    X = normal(M, N)
    singular = torch.linalg.svdvals(X)
    for rank in range(1, min(M, N) + 1):
        U, V = split(X, rank)
        torch.testing.assert_close(U.mT @ U, torch.eye(rank, dtype=torch.float64))
        missed = float((X - U @ V).square().sum())
        assert missed == pytest.approx(float(singular[rank:].square().sum()), abs=1e-10)


def test_zeros_beyond_the_full_rank() -> None:
    X = normal(3, 8)
    U, V = split(X, 5)
    assert (U.shape, V.shape) == ((3, 5), (5, 8))
    torch.testing.assert_close(U @ V, X)
    assert float(U[:, 3:].abs().max() + V[3:].abs().max()) == 0


def test_train() -> None:
    X = normal(5, 4, 3, 6)
    A, B, C, D = train(X, [5, 18, 6])
    torch.testing.assert_close(torch.einsum("ia,ajb,bkc,cl->ijkl", A, B, C, D), X)
    A, B, C, D = train(X, [3, 7, 4])
    assert [tuple(part.shape) for part in (A, B, C, D)] == [(5, 3), (3, 4, 7), (7, 3, 4), (4, 6)]
    planted = torch.einsum("ia,ajb,bkc,cl->ijkl", A, B, C, D)
    torch.testing.assert_close(torch.einsum("ia,ajb,bkc,cl->ijkl", *train(planted, [3, 7, 4])), planted)


def test_ring() -> None:
    X = normal(6, 4, 3, 5)
    parts = ring(X, 2, [3, 12, 10])
    assert [tuple(part.shape) for part in parts] == [(2, 6, 3), (3, 4, 12), (12, 3, 10), (10, 5, 2)]
    torch.testing.assert_close(torch.einsum("xia,ajb,bkc,clx->ijkl", *parts), X)


def test_terms() -> None:
    X = normal(5, 4, 3, 2)
    for rank in (24, 30):  # all terms, and more than there are
        torch.testing.assert_close(torch.einsum("ir,jr,kr,lr->ijkl", *terms(X, rank)), X)
    errors = [float((X - torch.einsum("ir,jr,kr,lr->ijkl", *terms(X, rank))).square().sum()) for rank in range(1, 25)]
    assert errors == sorted(errors, reverse=True)  # the terms are orthogonal
    assert errors[0] < float(X.square().sum())


@pytest.mark.parametrize("taps", [(4,), (3, 2), (2, 3, 2)])
def test_paired_terms_are_found_where_outputs_and_channels_are_orthogonal(taps: tuple[int, ...]) -> None:
    bases = [torch.linalg.qr(normal(size, 3, seed=size)).Q for size in (6, 5)]
    others = [normal(size, 3, seed=seed) for seed, size in enumerate(taps)]
    weights = torch.tensor([9.0, 3.0, 1.0], dtype=torch.float64) / torch.stack([x.norm(dim=0) for x in others]).prod(0)
    equation = ",".join(f"{letter}r" for letter in "tcabd"[: 2 + len(taps)]) + f",r->{'tcabd'[: 2 + len(taps)]}"
    X = torch.einsum(equation, *bases, *others, weights)
    ones = torch.ones(3, dtype=torch.float64)
    torch.testing.assert_close(torch.einsum(equation, *paired(X, 3), ones), X)
    largest = torch.einsum(equation, *(factor[:, :1] for factor in (*bases, *others)), weights[:1])
    torch.testing.assert_close(torch.einsum(equation, *paired(X, 1), ones[:1]), largest)
