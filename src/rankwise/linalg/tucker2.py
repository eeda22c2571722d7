"""Partial Tucker factorisation of a kernel in a metric, and the error of all its ranks at once.

A kernel `W[t, c, q]` (outputs, channels, taps) is written `A G (B kron I)^T`: a basis `B` of the channels, a core `G`,
a basis `A` of the outputs. Given `B`, the best `(A, G)` jointly is a reduced-rank regression with a closed form; given
`(A, G)`, the best `B` is one symmetric linear system, solved by preconditioned conjugate gradients from there. In
the weight metric the best `(B, G)` for a given `A` has a closed form too, the other half of HOOI. After a sweep `B`
jumps further along its way, where that lowers the error. Every step lowers `||(W - V) Sigma^(1/2)||_F`.

Special cases: all outputs kept (`R = T`) with the channels read as (channel, row) and the taps as columns is the pair
k x 1 -> 1 x k; all channels kept is the pair k x k -> 1 x 1.

Letters: T outputs, C channels, Q taps, D = C * Q, P = S * Q projected inputs, R output rank, S channel rank.

Sources: Kalle, Rudkiewicz, Ouerfelli, Tamaazousti, "Distribution-Aware Tensor Decomposition for Compression of
Convolutional Neural Networks", 2025, arXiv 2511.04494 (the problem; the joint step, the start and the nested error
surface are ours); De Lathauwer, De Moor, Vandewalle, "On the Best Rank-1 and Rank-(R1, R2, ..., RN) Approximation of
Higher-Order Tensors", 2000 (HOOI).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .conjugate import SINGLE_PRECISION, conjugate_gradients
from .metric import Identity, Metric
from .symmetric import cholesky, eigenvalues, eigh, orthonormal

# Sweeps and the relative decrease of the error at which they end; those in the weight metric cost little.
EFFORT, WEIGHT_EFFORT = (4, 1e-3), (30, 1e-5)


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


def error_surface(W_TCQ: Tensor, metric: Metric, channel_ranks: list[int]) -> Tensor:
    """Squared error of the start for every output rank and the asked channel ranks, from one decomposition.

    With the channels turned into the start's basis, the regression on the first s channels is a leading block of one
    Cholesky factor, so each channel rank costs one T x T eigenvalue problem and each output rank nothing.

    Args:
        W_TCQ: kernel.
        metric: Sigma.
        channel_ranks: ascending, each between 1 and C.

    Returns:
        Squared errors, len(channel_ranks) x T; column r - 1 belongs to output rank r.
    """
    W_TCQ = W_TCQ.double()
    T, _, Q = W_TCQ.shape
    Y_KT, total = _explained(W_TCQ, metric)
    surface = torch.empty(len(channel_ranks), T, dtype=torch.float64)
    K_TT = torch.zeros(T, T, dtype=torch.float64, device=W_TCQ.device)
    done = 0
    for row, rank in enumerate(channel_ranks):
        block = Y_KT[done : rank * Q]
        K_TT += block.mT @ block
        done = rank * Q
        surface[row] = (total - eigenvalues(K_TT).cumsum(0)).clamp_min(0)
    return surface


def channel_errors(W_TCQ: Tensor, metric: Metric) -> Tensor:
    """The surface's last column for every channel rank: squared errors of the start with all outputs kept, C values."""
    Q = W_TCQ.shape[2]
    Y_KT, total = _explained(W_TCQ.double(), metric)
    explained = torch.zeros(W_TCQ.shape[1] * Q, dtype=torch.float64)
    explained[: len(Y_KT)] = Y_KT.square().sum(1).cpu()
    return (total - explained.view(-1, Q).sum(1).cumsum(0)).clamp_min(0)


def _explained(W_TCQ: Tensor, metric: Metric) -> tuple[Tensor, float]:
    """Rows that add up to the explained energy, tap by tap of one channel of the start after the other; all energy."""
    T, _, Q = W_TCQ.shape
    B_CC = channel_basis(W_TCQ, metric)
    W_TD = torch.einsum("tcq,cs->tsq", W_TCQ, B_CC).reshape(T, -1)
    return metric.fold(B_CC, Q).nested_projection(W_TD), metric.energy(W_TCQ.reshape(T, -1))


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
    """Fit `A G (B kron I)^T` to `W` in the metric by two-block alternating least squares.

    Args:
        W_TCQ: kernel, T x C x Q.
        metric: Sigma on C * Q inputs.
        output_rank: R, at most T.
        channel_rank: S, at most C.
        sweeps: at most this many updates of `B`; see `EFFORT`.
        tolerance: stop when a sweep lowers the squared error by less than this fraction; see `EFFORT`.
        steps: conjugate gradient steps per update of `B`.
        enough: stop at this squared error.

    Returns:
        Factors with orthonormal `A` and `B`, and the squared error.
    """
    W_TCQ = W_TCQ.double()
    T, C, Q = W_TCQ.shape
    W_TD = W_TCQ.reshape(T, -1)
    total = metric.energy(W_TD)
    enough = max(enough, 1e-14 * total)
    B_CS = channel_basis(W_TCQ, metric)[:, :channel_rank]
    A_TR, G_RSQ, error = _outputs_and_core(W_TD, metric, B_CS, output_rank, Q, total)
    if channel_rank == C:
        return Tucker2(A_TR, G_RSQ, B_CS, error)
    if output_rank < T and error > enough:  # the same start for the outputs that were the best with all channels kept
        kept_TR = eigh(metric.inner(W_TD))[1][:, :output_rank]
        kept_TCQ = (kept_TR @ (kept_TR.mT @ W_TD)).reshape(W_TCQ.shape)
        other_CS = channel_basis(kept_TCQ, metric)[:, :channel_rank]
        other = _outputs_and_core(W_TD, metric, other_CS, output_rank, Q, total)
        if other[2] < error:
            B_CS, (A_TR, G_RSQ, error) = other_CS, other
    closed = isinstance(metric, Identity)
    usual_sweeps, usual_tolerance = WEIGHT_EFFORT if closed else EFFORT
    sweeps = usual_sweeps if sweeps is None else sweeps
    tolerance = usual_tolerance if tolerance is None else tolerance
    L_CC = None if closed else cholesky(metric.marginal((C, Q), (0,)), damping=1e-6)
    jumps = closed or sweeps > EFFORT[0]  # each costs half a sweep, which few sweeps do not earn back
    jump, swept_CS = 1.0, B_CS
    for _ in range(sweeps if error > enough else 0):
        if L_CC is None:
            moved_CS = _leading_channels(W_TCQ, A_TR, channel_rank)
        else:
            moved_CS = _update_channels(W_TD, metric, A_TR, G_RSQ, B_CS, L_CC, steps)
        moved = _outputs_and_core(W_TD, metric, moved_CS, output_rank, Q, total)
        last_CS, swept_CS = swept_CS, moved_CS
        if jumps and moved[2] > enough:  # further along the way since the last sweep
            ahead_CS = _ahead(last_CS, moved_CS, jump)
            ahead = _outputs_and_core(W_TD, metric, ahead_CS, output_rank, Q, total)
            jump *= 2 if ahead[2] < moved[2] else 0.5
            if ahead[2] < moved[2]:
                moved_CS, moved = ahead_CS, ahead
        if moved[2] >= error:  # converged up to rounding
            break
        before, B_CS, (A_TR, G_RSQ, error) = error, moved_CS, moved
        if before - error <= tolerance * before or error <= enough:
            break
    return Tucker2(A_TR, G_RSQ, B_CS, error)


def _outputs_and_core(
    W_TD: Tensor, metric: Metric, B_CS: Tensor, output_rank: int, Q: int, total: float
) -> tuple[Tensor, Tensor, float]:
    """The best `A` and `G` for a given `B`, jointly: regression on the projected inputs, then its leading outputs.

    The regression corrects the projection `W B B^T`: where no input was ever seen the weight stays as it is.
    """
    S = B_CS.shape[1]
    W_TSQ = torch.einsum("tcq,cs->tsq", W_TD.reshape(len(W_TD), -1, Q), B_CS)
    Z_TP = W_TSQ.flatten(1)
    if isinstance(metric, Identity):  # `B` is orthonormal: the projection is the regression
        explained_TT = Z_TP @ Z_TP.mT
    else:
        folded = metric.fold(B_CS, Q)
        rest_TD = W_TD - torch.einsum("tsq,cs->tcq", W_TSQ, B_CS).reshape(W_TD.shape)
        cross_TP = metric.spread(B_CS, rest_TD, Q)
        moved_TP = torch.cholesky_solve(cross_TP.mT, cholesky(folded.dense())).mT
        Z_TP = Z_TP + moved_TP
        # Of a damped solution something is left over, which counts twice in the error that is reported.
        left_TT = (cross_TP - folded.times(moved_TP)) @ Z_TP.mT
        explained_TT = folded.inner(Z_TP) + left_TT + left_TT.mT
    if output_rank == len(W_TD):  # all outputs are kept: no basis to choose
        identity = torch.eye(output_rank, dtype=Z_TP.dtype, device=Z_TP.device)
        return identity, Z_TP.reshape(output_rank, S, Q), max(total - float(explained_TT.trace()), 0.0)
    values, vectors = eigh(explained_TT)
    A_TR = vectors[:, :output_rank]
    G_RSQ = (A_TR.mT @ Z_TP).reshape(output_rank, S, Q)
    return A_TR, G_RSQ, max(total - float(values[:output_rank].sum()), 0.0)


def _ahead(last_CS: Tensor, moved_CS: Tensor, jump: float) -> Tensor:
    """Basis of the span that is further along the way of two; the first is turned to the second before."""
    U_SS, _, Vh_SS = torch.linalg.svd(last_CS.mT @ moved_CS)
    return orthonormal(moved_CS + jump * (moved_CS - last_CS @ (U_SS @ Vh_SS)))


def _leading_channels(W_TCQ: Tensor, A_TR: Tensor, rank: int) -> Tensor:
    """The best `B` and `G` for a given orthonormal `A` in the weight metric, jointly: a step of HOOI."""
    V_CRQ = torch.einsum("tcq,tr->crq", W_TCQ, A_TR)
    return eigh(V_CRQ.flatten(1) @ V_CRQ.flatten(1).mT)[1][:, :rank]


def _update_channels(
    W_TD: Tensor, metric: Metric, A_TR: Tensor, G_RSQ: Tensor, B_CS: Tensor, L_CC: Tensor, steps: int
) -> Tensor:
    """A few conjugate gradient steps on `H vec(B) = b` from the current `B`; any number of steps lowers the error."""
    R, _, Q = G_RSQ.shape
    C = len(B_CS)
    precision = torch.float32 if metric.dim >= SINGLE_PRECISION else torch.float64
    metric = metric.to(precision)
    W_TD, A_TR, G_RSQ, B_CS, L_CC = (tensor.to(precision) for tensor in (W_TD, A_TR, G_RSQ, B_CS, L_CC))

    def apply(X_CS: Tensor) -> Tensor:  # expand to an R x D weight, multiply by Sigma, contract with the core
        V_RD = torch.einsum("rsq,cs->rcq", G_RSQ, X_CS).reshape(R, -1)
        return torch.einsum("rcq,rsq->cs", metric.times(V_RD).reshape(R, C, Q), G_RSQ)

    right_CS = torch.einsum("rcq,rsq->cs", metric.times(A_TR.mT @ W_TD).reshape(R, C, Q), G_RSQ)
    # Singular where the core uses fewer than S channels (always if S > R Q): more damping keeps rounding small there.
    M_SS = cholesky(torch.einsum("rsq,rtq->st", G_RSQ, G_RSQ), damping=1e-6)

    def precondition(X_CS: Tensor) -> Tensor:
        return torch.cholesky_solve(torch.cholesky_solve(X_CS, L_CC).mT, M_SS).mT

    moved_CS = conjugate_gradients(apply, precondition, B_CS, right_CS - apply(B_CS), steps)
    return orthonormal(moved_CS.double())
