"""Axes of heads against the best projection of each head, and matrices in these axes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rankwise.linalg.heads import head_axes, turned, turned_metric
from rankwise.linalg.metric import Dense, Metric

G, S, H = 2, 3, 4


def problem(shared: int, seed: int = 0) -> tuple[Tensor, Metric]:
    generator = torch.Generator().manual_seed(seed)
    D = G * shared * H
    mix = torch.randn(D, D, generator=generator, dtype=torch.float64)
    return torch.randn(7, D, generator=generator, dtype=torch.float64), Dense(mix @ mix.mT / D)


def parts(metric: Metric, shared: int) -> Tensor:
    """The moments of all query heads, each by itself."""
    sigma = metric.dense()
    return torch.stack([sigma[at : at + H, at : at + H] for at in range(0, G * shared * H, H)])


def lost(W_TD: Tensor, metric: Metric, shared: int, projections_GHH: Tensor) -> Tensor:
    """For each key/value head, the error of projecting its values, with heads taken as independent."""
    W_JTH, C_JHH = W_TD.unflatten(1, (-1, H)).movedim(1, 0), parts(metric, shared)
    left = torch.eye(H, dtype=torch.float64) - projections_GHH.repeat_interleave(shared, 0)
    errors_J = torch.einsum("jth,jhk,jkl,jml,jtm->j", W_JTH, left, C_JHH, left, W_JTH)
    return errors_J.reshape(G, shared).sum(1)


def test_axes_are_orthonormal_and_turn_back() -> None:
    W, metric = problem(S)
    axes = head_axes(W, metric, H, S)
    torch.testing.assert_close(axes.mT @ axes, torch.eye(H, dtype=torch.float64).expand(G, H, H))
    there = turned(W, axes)
    torch.testing.assert_close(turned(there, axes.mT), W)
    assert turned_metric(metric, axes).energy(there) == pytest.approx(metric.energy(W))


def test_the_span_of_the_first_axes_is_the_best_of_one_query_head() -> None:
    """The least error is the singular values that are left out of `W_j C_j^(1/2)`, an oracle without these axes."""
    W, metric = problem(1, seed=1)
    axes = head_axes(W, metric, H, 1)
    for rank in range(1, H):
        for head in range(G):
            own = slice(head * H, (head + 1) * H)
            C = metric.dense()[own, own]
            root = torch.linalg.cholesky(C)
            values = torch.linalg.svdvals(W[:, own] @ root)
            best = float(values[rank:].square().sum())
            # The best linear prediction of the head's output from its first values in the axes.
            B = axes[head, :, :rank]
            U = W[:, own] @ C @ B @ torch.linalg.inv(B.mT @ C @ B)
            left = W[:, own] - U @ B.mT
            assert float((left @ C * left).sum()) == pytest.approx(best, rel=1e-6)


def test_axes_of_shared_heads_beat_random_ones() -> None:
    W, metric = problem(S, seed=2)
    axes = head_axes(W, metric, H, S)[:, :, :2]
    errors = lost(W, metric, S, axes @ axes.mT)
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        other = torch.linalg.qr(torch.randn(G, H, 2, generator=generator, dtype=torch.float64)).Q
        assert (errors < lost(W, metric, S, other @ other.mT)).all()


def test_values_that_no_output_reads_come_last() -> None:
    """A planted answer: each head's outputs depend on one direction of its values."""
    generator = torch.Generator().manual_seed(4)
    _, metric = problem(S, seed=4)
    planted = torch.nn.functional.normalize(torch.randn(G, H, generator=generator, dtype=torch.float64), dim=1)
    scales = torch.randn(7, G, S, generator=generator, dtype=torch.float64)
    W = torch.einsum("tgs,gh->tgsh", scales, planted).flatten(1)
    axes = head_axes(W, metric, H, S)
    assert torch.einsum("gh,gh->g", axes[:, :, 0], planted).abs().min() > 1 - 1e-6
    assert turned(W, axes).unflatten(1, (-1, H))[..., 1:].abs().max() < 1e-4
