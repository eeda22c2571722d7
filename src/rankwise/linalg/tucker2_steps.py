"""Moves of the channel basis of a partial Tucker factorisation in a metric; the outputs and the core follow.

For a given basis `B` of the channels the best output basis `A` and core `G` have a closed form, a reduced-rank
regression. What is left is a function of the span of `B` alone,

    f(B) = min over A, G of ||(W - A G (B kron I)^T) Sigma^(1/2)||_F^2,

and it is lowered in three ways: `alternating` solves for `B` with `A` and `G` held; `leading` is the closed form of
that in the weight metric, together with `G`; `newton` minimises the second order of `f` itself. Alternating moves cost
little and are right far from the optimum. Newton's steps cost a handful of gradients each, and come to the optimum in a
few where alternating moves take tens.

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

# Conjugate gradient steps for the second order, each one gradient.
NEWTON_STEPS = 4
# A Newton step that does not lower the error is halved this often.
HALVINGS = 4
# Of the basis between two gradients that are subtracted; half of the digits of float64.
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
        """Cholesky factor of the channels' moment, C x C, for preconditioners."""
        return cholesky(self.metric.marginal(self.W_TCQ.shape[1:], (0,)), damping=1e-6)

    def rest(self, B_CS: Tensor) -> Rest:
        """The best `A` and `G` for a given `B`, jointly: regression on the projected inputs, then its leading outputs.

        The regression corrects the projection `W B B^T`: where no input was ever seen the weight stays as it is.
        """
        T, S, Q = len(self.W_TD), B_CS.shape[1], self.taps
        W_TSQ = torch.einsum("tcq,cs->tsq", self.W_TCQ, B_CS)
        Z_TP = W_TSQ.flatten(1)
        if isinstance(self.metric, Identity):  # `B` is orthonormal: the projection is the regression
            explained_TT = Z_TP @ Z_TP.mT
        else:
            folded = self.metric.fold(B_CS, Q)
            rest_TD = self.W_TD - torch.einsum("tsq,cs->tcq", W_TSQ, B_CS).reshape(self.W_TD.shape)
            cross_TP = self.metric.spread(B_CS, rest_TD, Q)
            moved_TP = torch.cholesky_solve(cross_TP.mT, cholesky(folded.dense())).mT
            Z_TP = Z_TP + moved_TP
            # Of a damped solution something is left over, which counts twice in the error that is reported.
            left_TT = (cross_TP - folded.times(moved_TP)) @ Z_TP.mT
            explained_TT = folded.inner(Z_TP) + left_TT + left_TT.mT
        if self.output_rank == T:  # all outputs are kept: no basis to choose
            identity = torch.eye(T, dtype=Z_TP.dtype, device=Z_TP.device)
            return Rest(identity, Z_TP.reshape(T, S, Q), max(self.total - float(explained_TT.trace()), 0.0))
        values, vectors = eigh(explained_TT)
        A_TR = vectors[:, : self.output_rank]
        G_RSQ = (A_TR.mT @ Z_TP).reshape(self.output_rank, S, Q)
        return Rest(A_TR, G_RSQ, max(self.total - float(values[: self.output_rank].sum()), 0.0))

    def leading(self, rest: Rest, rank: int) -> Tensor:
        """The best `B` and `G` for a given orthonormal `A` in the weight metric, jointly: a step of HOOI."""
        V_CRQ = torch.einsum("tcq,tr->crq", self.W_TCQ, rest.A_TR)
        return eigh(V_CRQ.flatten(1) @ V_CRQ.flatten(1).mT)[1][:, :rank]

    def alternating(self, B_CS: Tensor, rest: Rest) -> Tensor:
        """Conjugate gradients on `H vec(B) = b` from the current `B`; any number of steps lowers the error."""
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
        """A truncated Newton step on `f`, and what follows it; None where no length of it lowers the error.

        Gradients need no derivative of `A` and `G`, which are at their best; products with the second derivative are
        differences of gradients. At the optimum of `G` a gradient has no part in the span of `B`, so that directions
        are tangents to the spans, and moving along one and making it orthonormal follows them to second order.
        """
        plain = _preconditioner(rest.G_RSQ, self.root)
        slope_CS = self._slope(B_CS, rest)

        def tangent(X_CS: Tensor) -> Tensor:
            return X_CS - B_CS @ (B_CS.mT @ X_CS)

        def apply(X_CS: Tensor) -> Tensor:
            step = DIFFERENCE / float(torch.linalg.vector_norm(X_CS).clamp_min(torch.finfo(torch.float64).tiny))
            ahead_CS = B_CS + step * X_CS
            return tangent(slope_CS - self._slope(ahead_CS, self.rest(ahead_CS))) / step

        def precondition(X_CS: Tensor) -> Tensor:
            return tangent(plain(X_CS))

        start_CS, right_CS = torch.zeros_like(B_CS), tangent(slope_CS)
        change_CS = conjugate_gradients(apply, precondition, start_CS, right_CS, NEWTON_STEPS)
        if not change_CS.any():  # no slope, or curved the other way from the start
            change_CS = precondition(right_CS)
        for halvings in range(HALVINGS + 1):
            moved_CS = orthonormal(B_CS + change_CS / 2**halvings)
            moved = self.rest(moved_CS)
            if moved.error < rest.error:
                return moved_CS, moved
        return None

    def _slope(self, B_CS: Tensor, rest: Rest) -> Tensor:
        """Half of the negative gradient of `f`."""
        missed_RD = rest.A_TR.mT @ self.W_TD - _expanded(rest.G_RSQ, B_CS)
        return _contracted(self.metric.times(missed_RD), rest.G_RSQ)


def _expanded(G_RSQ: Tensor, B_CS: Tensor) -> Tensor:
    """`G (B kron I)^T`, R x D."""
    return torch.einsum("rsq,cs->rcq", G_RSQ, B_CS).flatten(1)


def _contracted(M_RD: Tensor, G_RSQ: Tensor) -> Tensor:
    """What a change of `B` sees of a kernel on the kept outputs, C x S."""
    M_RCQ = M_RD.reshape(len(M_RD), -1, G_RSQ.shape[2])
    return torch.einsum("rcq,rsq->cs", M_RCQ, G_RSQ)


def _preconditioner(G_RSQ: Tensor, L_CC: Tensor) -> Operator:
    """The inverse second order in `B` as if all taps had the same moment and knew nothing of each other."""
    # Singular where the core uses fewer than S channels (always if S > R Q): more damping keeps rounding small there.
    M_SS = cholesky(torch.einsum("rsq,rtq->st", G_RSQ, G_RSQ), damping=1e-6)
    return lambda X_CS: torch.cholesky_solve(torch.cholesky_solve(X_CS, L_CC).mT, M_SS).mT
