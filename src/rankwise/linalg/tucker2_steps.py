"""Moves of the channel basis of a partial Tucker factorisation in a metric; outputs and core follow.

For a given basis `B` of the channels, the best output basis `A` and core `G` have a closed form, a reduced-rank
regression. This leaves a function of the span of `B` alone,

    f(B) = min over A, G of ||(W - A G (B kron I)^T) Sigma^(1/2)||_F^2,

which three moves lower. `alternating` solves for `B` with `A` and `G` held. `leading` does the same in the weight
metric, in closed form and together with `G`. `newton` minimises the second order of `f` itself. Alternating moves cost
little and work far from the optimum. Newton steps cost a handful of gradients each, and reach the optimum in a few
where alternating moves take tens.

Letters: T outputs, C channels, Q taps, D = C * Q, P = S * Q projected inputs, R output rank, S channel rank.

Sources: Golub, Pereyra, "The Differentiation of Pseudo-Inverses and Nonlinear Least Squares Problems Whose Variables
Separate", 1973 (elimination); Edelman, Arias, Smith, "The Geometry of Algorithms with Orthogonality Constraints", 1998,
arXiv physics/9806030 (Newton's method for spans); Dembo, Steihaug, "Truncated-Newton Algorithms for Large-Scale
Unconstrained Optimization", 1983.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .conjugate import SINGLE_PRECISION, Operator, conjugate_gradients
from .metric import Identity, Metric
from .symmetric import cholesky, eigh, orthonormal

# Conjugate gradient steps of a Newton step; each costs one gradient.
NEWTON_STEPS = 4
# A Newton step that does not lower the error is halved at most this often.
HALVINGS = 4
# Norm of the change of the basis between two gradients that are subtracted. Half of the digits of float64 balance
# truncation against rounding.
DIFFERENCE = 1e-7


class Rest(NamedTuple):
    """The best outputs and core for a basis of the channels, and the squared error."""

    A_TR: Tensor
    G_RSQ: Tensor
    error: float


class Steps:
    """Moves for one kernel, metric and output rank.

    Args:
        W_TCQ: kernel, float64.
        metric: Sigma on C * Q inputs.
        output_rank: R, at most T.
        steps: conjugate gradient steps of an alternating move.
    """

    def __init__(self, W_TCQ: Tensor, metric: Metric, output_rank: int, steps: int) -> None:
        self.W_TCQ, self.metric, self.output_rank, self.steps = W_TCQ, metric, output_rank, steps
        self.W_TD, self.taps = W_TCQ.flatten(1), W_TCQ.shape[2]
        self.total = metric.energy(self.W_TD)

    @cached_property
    def root(self) -> Tensor:
        """Cholesky factor of the moment of the channels, C x C, for preconditioners."""
        return cholesky(self.metric.marginal(self.W_TCQ.shape[1:], (0,)), damping=1e-6)

    def rest(self, B_CS: Tensor) -> Rest:
        """The best `A` and `G` together for a given `B`: regression on the projected inputs, then its leading outputs.

        With `P = B kron I` the regression is `Z = W Sigma P (P^T Sigma P)^-1`, and the energy that it explains is
        `E = Z (P^T Sigma P) Z^T`. The best `A` are the leading eigenvectors of `E`, and `G = A^T Z`.
        """
        T, S, Q = len(self.W_TD), B_CS.shape[1], self.taps
        W_TSQ = torch.einsum("tcq,cs->tsq", self.W_TCQ, B_CS)
        Z_TP = W_TSQ.flatten(1)
        if isinstance(self.metric, Identity):  # `B` is orthonormal, so the projection is the regression
            explained_TT = Z_TP @ Z_TP.mT
        else:
            # Solve for the correction of the projection `W P`, not for `Z` from nothing: along directions that no
            # input ever took, where the damped system decides, the weight then keeps its values.
            folded = self.metric.fold(B_CS, Q)
            rest_TD = self.W_TD - torch.einsum("tsq,cs->tcq", W_TSQ, B_CS).reshape(self.W_TD.shape)
            cross_TP = self.metric.spread(B_CS, rest_TD, Q)
            moved_TP = torch.cholesky_solve(cross_TP.mT, cholesky(folded.dense())).mT
            Z_TP = Z_TP + moved_TP
            # Because of damping the remainder `left = (W - Z P^T) Sigma P` is not zero. The error of the damped `Z` is
            # `total - trace(Z H Z^T + 2 left Z^T)` with `H = P^T Sigma P`; without the remainder the reported error
            # would be that of an exact regression, not of these factors.
            left_TT = (cross_TP - folded.times(moved_TP)) @ Z_TP.mT
            explained_TT = folded.inner(Z_TP) + left_TT + left_TT.mT
        if self.output_rank == T:  # all outputs are kept, so there is no basis to choose
            identity = torch.eye(T, dtype=Z_TP.dtype, device=Z_TP.device)
            return Rest(identity, Z_TP.reshape(T, S, Q), max(self.total - float(explained_TT.trace()), 0.0))
        values, vectors = eigh(explained_TT)
        A_TR = vectors[:, : self.output_rank]
        G_RSQ = (A_TR.mT @ Z_TP).reshape(self.output_rank, S, Q)
        return Rest(A_TR, G_RSQ, max(self.total - float(values[: self.output_rank].sum()), 0.0))

    def leading(self, rest: Rest, rank: int) -> Tensor:
        """The best `B` and `G` together for a given orthonormal `A` in the weight metric: a step of HOOI."""
        V_CRQ = torch.einsum("tcq,tr->crq", self.W_TCQ, rest.A_TR)
        return eigh(V_CRQ.flatten(1) @ V_CRQ.flatten(1).mT)[1][:, :rank]

    def alternating(self, B_CS: Tensor, rest: Rest) -> Tensor:
        """Conjugate gradients on the normal equations of `B`, from the current `B`; any number lowers the error."""
        precision = torch.float32 if self.metric.dim >= SINGLE_PRECISION else torch.float64
        metric = self.metric.to(precision)
        W_TD, A_TR, G_RSQ, B_CS, L_CC = (
            tensor.to(precision) for tensor in (self.W_TD, rest.A_TR, rest.G_RSQ, B_CS, self.root)
        )

        def apply(X_CS: Tensor) -> Tensor:  # expand to an R x D weight, multiply by Sigma, contract with the core
            return _contracted(metric.times(_expanded(G_RSQ, X_CS)), G_RSQ)

        right_CS = _contracted(metric.times(A_TR.mT @ W_TD), G_RSQ)
        precondition = _preconditioner(G_RSQ, L_CC)
        moved_CS = conjugate_gradients(apply, precondition, B_CS, right_CS - apply(B_CS), self.steps)
        return orthonormal(moved_CS.double())

    def newton(self, B_CS: Tensor, rest: Rest) -> tuple[Tensor, Rest] | None:
        """A truncated Newton step on `f`, and the best outputs and core after it; None if no length lowers the error.

        `A` and `G` are the best for `B`, so the gradient of `f` is the gradient of the error with `A` and `G` held.
        Products with the second derivative are differences of two gradients, each with its own `A` and `G`.
        """
        plain = _preconditioner(rest.G_RSQ, self.root)
        slope_CS = self._slope(B_CS, rest)

        # `f` depends on the span of `B` alone, so only changes orthogonal to `B` count: tangents of the set of spans.
        # Adding one to `B` and making it orthonormal again (a QR retraction) follows the curved set to second order.
        def tangent(X_CS: Tensor) -> Tensor:
            return X_CS - B_CS @ (B_CS.mT @ X_CS)

        def apply(X_CS: Tensor) -> Tensor:
            step = DIFFERENCE / float(torch.linalg.vector_norm(X_CS).clamp_min(torch.finfo(torch.float64).tiny))
            ahead_CS = B_CS + step * X_CS
            return tangent(slope_CS - self._slope(ahead_CS, self.rest(ahead_CS))) / step

        def precondition(X_CS: Tensor) -> Tensor:
            return tangent(plain(X_CS))

        # Truncated: conjugate gradients stop after a few steps, or where the curvature is negative. If that is at the
        # first step, the preconditioned gradient is the direction.
        start_CS, right_CS = torch.zeros_like(B_CS), tangent(slope_CS)
        change_CS = conjugate_gradients(apply, precondition, start_CS, right_CS, NEWTON_STEPS)
        if not change_CS.any():
            change_CS = precondition(right_CS)
        for halvings in range(HALVINGS + 1):
            moved_CS = orthonormal(B_CS + change_CS / 2**halvings)
            moved = self.rest(moved_CS)
            if moved.error < rest.error:
                return moved_CS, moved
        return None

    def _slope(self, B_CS: Tensor, rest: Rest) -> Tensor:
        """Half of the negative gradient of `f`: `A^T (W - V) Sigma`, contracted with the core."""
        missed_RD = rest.A_TR.mT @ self.W_TD - _expanded(rest.G_RSQ, B_CS)
        return _contracted(self.metric.times(missed_RD), rest.G_RSQ)


def _expanded(G_RSQ: Tensor, B_CS: Tensor) -> Tensor:
    """`G (B kron I)^T`, R x D."""
    return torch.einsum("rsq,cs->rcq", G_RSQ, B_CS).flatten(1)


def _contracted(M_RD: Tensor, G_RSQ: Tensor) -> Tensor:
    """Contraction of a kernel on the kept outputs with the core, C x S: the adjoint of `_expanded` in `B`."""
    M_RCQ = M_RD.reshape(len(M_RD), -1, G_RSQ.shape[2])
    return torch.einsum("rcq,rsq->cs", M_RCQ, G_RSQ)


def _preconditioner(G_RSQ: Tensor, L_CC: Tensor) -> Operator:
    """The inverse of the second order in `B`, as if all taps had the same moment and were independent."""
    # Singular if the core uses fewer than S channels (always if S > R Q): more damping keeps rounding small there.
    M_SS = cholesky(torch.einsum("rsq,rtq->st", G_RSQ, G_RSQ), damping=1e-6)
    return lambda X_CS: torch.cholesky_solve(torch.cholesky_solve(X_CS, L_CC).mT, M_SS).mT
