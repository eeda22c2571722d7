"""Partial Tucker factorisation of a kernel in a metric.

A kernel `W[t, c, q]` (outputs, channels, taps) is written `A G (B kron I)^T`: a basis `B` of the channels, a core `G`,
a basis `A` of the outputs. Given `B`, the best `(A, G)` jointly is a reduced-rank regression with a closed form; given
`(A, G)`, the best `B` is one symmetric linear system. In the weight metric the best `(B, G)` for a given `A` has a
closed form too, the other half of HOOI; there `B` jumps further along its way after a sweep, where that lowers the
error. In the metric of data a fit of more sweeps than usual goes on by Newton's steps (`tucker2_steps`). Every step
lowers `||(W - V) Sigma^(1/2)||_F`.

Special cases: all outputs kept (`R = T`) with the channels read as (channel, row) and the taps as columns is the pair
k x 1 -> 1 x k; all channels kept is the pair k x k -> 1 x 1.

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

# Sweeps and the relative decrease of the error at which they end; those in the weight metric cost little.
EFFORT, WEIGHT_EFFORT = (4, 1e-3), (30, 1e-5)
# A fit of more sweeps than that goes on by Newton's steps, until one lowers the error by less than this fraction.
NEWTON_TOLERANCE = 1e-6


class Tucker2(NamedTuple):
    """Factors of `W[t, c, q] = sum A[t, r] G[r, s, q] B[c, s]` and the squared error in the metric."""

    A_TR: Tensor
    G_RSQ: Tensor
    B_CS: Tensor
    error: float

    def dense(self) -> Tensor:
        """The kernel that the factors stand for, T x C x Q."""
        return torch.einsum("tr,rsq,cs->tcq", self.A_TR, self.G_RSQ, self.B_CS)


def channel_basis(W_TCQ: Tensor, metric: Metric) -> Tensor:
    """Whitened start for `B`: orthonormal, and its first s columns are the start for channel rank s.

    Sigma is replaced by the nearest product of a channel and a tap moment, for which the best `B` has a closed form.

    Args:
        W_TCQ: kernel.
        metric: Sigma on D = C * Q inputs.

    Returns:
        B_CC, C x C orthonormal.
    """
    W_TCQ = W_TCQ.double()
    Q = W_TCQ.shape[2]
    C = W_TCQ.shape[1]
    L_CC = cholesky(metric.marginal((C, Q), (0,)))
    taps_QQ = metric.marginal((C, Q), (1,))
    taps_QQ = taps_QQ / taps_QQ.diagonal().mean().clamp_min(torch.finfo(torch.float64).tiny)
    N_CC = torch.einsum("tcp,pq,tdq->cd", W_TCQ, taps_QQ, W_TCQ)
    # Of a large start single precision is enough: every step after it corrects what it starts from.
    single = len(L_CC) >= SINGLE_PRECISION
    _, U_CC = eigh(L_CC.mT @ N_CC @ L_CC, torch.float32 if single else torch.float64)
    B_CC = N_CC @ (L_CC @ U_CC)
    norms = torch.linalg.vector_norm(B_CC, dim=0)
    rank = int((norms > 1e-9 * norms.max()).sum())
    eye = torch.eye(len(B_CC), dtype=B_CC.dtype, device=B_CC.device)
    if rank == 0:  # a kernel of zeros
        return eye
    if rank == len(B_CC):
        return orthonormal(B_CC / norms)
    return orthonormal(torch.cat([B_CC[:, :rank] / norms[:rank], eye], dim=1))[:, : len(B_CC)]


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
    """Fit `A G (B kron I)^T` to `W` in the metric, one move of `B` and the best `A` and `G` for it after the other.

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
    if output_rank < T and rest.error > enough:  # the same start for the outputs that were the best with all channels
        kept_TR = eigh(metric.inner(moves.W_TD))[1][:, :output_rank]
        kept_TCQ = (kept_TR @ (kept_TR.mT @ moves.W_TD)).reshape(W_TCQ.shape)
        other_CS = channel_basis(kept_TCQ, metric)[:, :channel_rank]
        other = moves.rest(other_CS)
        if other.error < rest.error:
            B_CS, rest = other_CS, other
    closed = isinstance(metric, Identity)
    usual_sweeps, usual_tolerance = WEIGHT_EFFORT if closed else EFFORT
    sweeps = usual_sweeps if sweeps is None else sweeps
    first = sweeps if closed else min(sweeps, usual_sweeps)  # Newton's steps are right only near the optimum
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
    """Basis of the span that is further along the way of two; the first is turned to the second before."""
    U_SS, _, Vh_SS = torch.linalg.svd(last_CS.mT @ moved_CS)
    return orthonormal(moved_CS + jump * (moved_CS - last_CS @ (U_SS @ Vh_SS)))
