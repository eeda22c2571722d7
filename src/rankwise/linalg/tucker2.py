"""Partial Tucker factorisation of a kernel in a metric.

A kernel `W[t, c, q]` (outputs, channels, taps) becomes `A G (B kron I)^T`: a basis `A` of the outputs, a core `G`, a
basis `B` of the channels. Given `B`, the best `(A, G)` is a reduced-rank regression with a closed form; given `(A, G)`,
the best `B` is one symmetric linear system. In the weight metric the best `(B, G)` for a given `A` has a closed form
too, the other half of HOOI; there `B` also jumps further along its way after a sweep, if that lowers the error. In a
metric of data, sweeps beyond the usual number are Newton steps (`tucker2_steps`). Every step lowers
`||(W - V) Sigma^(1/2)||_F`.

Special cases: with all outputs kept (`R = T`), channels read as (channel, row) and taps as columns, it is the pair
k x 1 -> 1 x k; with all channels kept, the pair k x k -> 1 x 1.

Letters: T outputs, C channels, Q taps, D = C * Q, R output rank, S channel rank.

Sources: Kalle, Rudkiewicz, Ouerfelli, Tamaazousti, "Distribution-Aware Tensor Decomposition for Compression of
Convolutional Neural Networks", 2025, arXiv 2511.04494 (the problem; the joint step, Newton's and the start are ours);
De Lathauwer, De Moor, Vandewalle, "On the Best Rank-1 and Rank-(R1, R2, ..., RN) Approximation of Higher-Order
Tensors", 2000 (HOOI).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .conjugate import SINGLE_PRECISION
from .metric import Identity, Metric
from .symmetric import cholesky, eigh, orthonormal
from .tucker2_steps import Steps

# Sweeps, and the relative decrease of the error at which they end. Sweeps in the weight metric are cheap.
EFFORT, WEIGHT_EFFORT = (4, 1e-3), (30, 1e-5)
# Further sweeps are Newton steps, until one lowers the error by less than this fraction.
NEWTON_TOLERANCE = 1e-6


class Tucker2(NamedTuple):
    """Factors of `W[t, c, q] = sum A[t, r] G[r, s, q] B[c, s]` and the squared error in the metric."""

    A_TR: Tensor
    G_RSQ: Tensor
    B_CS: Tensor
    error: float

    def dense(self) -> Tensor:
        """The kernel that the factors multiply to, T x C x Q."""
        return torch.einsum("tr,rsq,cs->tcq", self.A_TR, self.G_RSQ, self.B_CS)


def channel_basis(W_TCQ: Tensor, metric: Metric) -> Tensor:
    """Start for `B`, C x C orthonormal; its first s columns are the start for channel rank s.

    Sigma is replaced by `channel moment kron tap moment`, for which the best `B` has a closed form: with the channel
    moment `L L^T` and `N = sum over t of W_t Sigma_Q W_t^T`, it spans the leading columns of `N L U`, where U are the
    eigenvectors of `L^T N L`.
    """
    W_TCQ = W_TCQ.double()
    _, C, Q = W_TCQ.shape
    L_CC = cholesky(metric.marginal((C, Q), (0,)))
    taps_QQ = metric.marginal((C, Q), (1,))
    taps_QQ = taps_QQ / taps_QQ.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    N_CC = torch.einsum("tcp,pq,tdq->cd", W_TCQ, taps_QQ, W_TCQ)
    # For a large start single precision is enough: later steps correct it.
    _, U_CC = eigh(L_CC.mT @ N_CC @ L_CC, torch.float32 if C >= SINGLE_PRECISION else torch.float64)
    B_CC = N_CC @ (L_CC @ U_CC)
    norms = torch.linalg.vector_norm(B_CC, dim=0)
    rank = int((norms > 1e-9 * norms.max()).sum())
    eye = torch.eye(C, dtype=B_CC.dtype, device=B_CC.device)
    if rank == 0:  # a kernel of zeros
        return eye
    if rank == C:
        return orthonormal(B_CC / norms)
    return orthonormal(torch.cat([B_CC[:, :rank] / norms[:rank], eye], dim=1))[:, :C]  # filled up to a basis


def fit(
    W_TCQ: Tensor,
    metric: Metric,
    output_rank: int,
    channel_rank: int,
    sweeps: int | None = None,
    tolerance: float | None = None,
    steps: int = 6,
    enough: float = 0.0,
) -> Tucker2:
    """Fit `A G (B kron I)^T` to `W` in the metric: move `B`, take the best `A` and `G` for it, and repeat.

    Args:
        W_TCQ: kernel, T x C x Q.
        metric: Sigma on C * Q inputs.
        output_rank: R, at most T.
        channel_rank: S, at most C.
        sweeps: at most this many moves of `B`; see `EFFORT`.
        tolerance: stop when a sweep lowers the squared error by less than this fraction; see `EFFORT` and
            `NEWTON_TOLERANCE`.
        steps: conjugate gradient steps per alternating move of `B`.
        enough: stop at this squared error.

    Returns:
        Factors with orthonormal `A` and `B`, and the squared error.
    """
    W_TCQ = W_TCQ.double()
    T, C, _ = W_TCQ.shape
    moves = Steps(W_TCQ, metric, output_rank, steps)
    enough = max(enough, 1e-14 * moves.total)
    B_CS = channel_basis(W_TCQ, metric)[:, :channel_rank]
    rest = moves.rest(B_CS)
    if channel_rank == C:
        return Tucker2(rest.A_TR, rest.G_RSQ, B_CS, rest.error)
    if output_rank < T and rest.error > enough:
        # Second start: the same for the kernel on the outputs that are best with all channels kept.
        kept_TR = eigh(metric.inner(moves.W_TD))[1][:, :output_rank]
        kept_TCQ = (kept_TR @ (kept_TR.mT @ moves.W_TD)).reshape(W_TCQ.shape)
        other_CS = channel_basis(kept_TCQ, metric)[:, :channel_rank]
        other = moves.rest(other_CS)
        if other.error < rest.error:
            B_CS, rest = other_CS, other
    closed = isinstance(metric, Identity)
    usual_sweeps, usual_tolerance = WEIGHT_EFFORT if closed else EFFORT
    sweeps = usual_sweeps if sweeps is None else sweeps
    first = sweeps if closed else min(sweeps, usual_sweeps)  # Newton steps are right only near the optimum
    if tolerance is None:
        tolerance = NEWTON_TOLERANCE if sweeps > first else usual_tolerance
    jump, swept_CS = 1.0, B_CS
    for sweep in range(sweeps if rest.error > enough else 0):
        found = None if sweep < first else moves.newton(B_CS, rest)
        if found is None:
            moved_CS = moves.leading(rest, channel_rank) if closed else moves.alternating(B_CS, rest)
            found = moved_CS, moves.rest(moved_CS)
            last_CS, swept_CS = swept_CS, moved_CS
            if closed and found[1].error > enough:
                ahead_CS = _ahead(last_CS, moved_CS, jump)
                ahead = moves.rest(ahead_CS)
                jump *= 2 if ahead.error < found[1].error else 0.5
                found = (ahead_CS, ahead) if ahead.error < found[1].error else found
        if found[1].error >= rest.error:  # converged up to rounding
            break
        before, (B_CS, rest) = rest.error, found
        if before - rest.error <= tolerance * before or rest.error <= enough:
            break
    return Tucker2(rest.A_TR, rest.G_RSQ, B_CS, rest.error)


def _ahead(last_CS: Tensor, moved_CS: Tensor, jump: float) -> Tensor:
    """Basis of a span further along the way from one span to another.

    A basis of a span is free up to a rotation. So the last one is first turned as near as possible to the moved one
    (orthogonal Procrustes); the difference is then a move of the span alone.
    """
    U_SS, _, Vh_SS = torch.linalg.svd(last_CS.mT @ moved_CS)
    return orthonormal(moved_CS + jump * (moved_CS - last_CS @ (U_SS @ Vh_SS)))
