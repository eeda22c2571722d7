"""Least squares problems of one equation and equal sizes, side by side: errors, and the best output factor.

The first dimension of every tensor is over the problems. One that all share has size 1 there.

Letters: G problems, T outputs, D inputs, M bond states of the output factor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .equation import BATCH, Equation, arranged, compose, contract
from .metric import Metric
from .stacked import chosen

# Sweeps end before the norm of all parts of the kernel is this many times its own norm. Such parts cancel each other,
# and in half precision their sum would be rounding errors. Orthogonal parts have exactly the norm of the kernel.
CANCELLING = 10.0
# Damping of the output factor's system, relative to its mean diagonal. It draws towards the factor as it is, so it
# vanishes at the solution.
PROXIMAL = 1e-7


class Settled(NamedTuple):
    """Factors of a batch with their squared errors, and what the best output factor was found with.

    Attributes:
        factors, error_G: where the batch is.
        MS_GMD: `M Sigma`, where the kernel is `A M` with the output factor `A`; None without an output factor.
        root_GMM: Cholesky factors of `M Sigma M^T`, damped.
    """

    factors: list[Tensor]
    error_G: Tensor
    MS_GMD: Tensor | None = None
    root_GMM: Tensor | None = None

    def at(self, places: Tensor) -> Settled:
        """Some of the problems."""
        MS_GMD, root_GMM = (None if value is None else value[places] for value in self[2:])
        return Settled([factor[places] for factor in self.factors], self.error_G[places], MS_GMD, root_GMM)

    def where(self, good_G: Tensor, other: Settled) -> Settled:
        """These where `good_G`, else the others."""

        def chosen(here: Tensor, there: Tensor) -> Tensor:
            return torch.where(per_problem(good_G, here), here, there)

        factors = [chosen(*pair) for pair in zip(self.factors, other.factors, strict=True)]
        if self.MS_GMD is None or other.MS_GMD is None or self.root_GMM is None or other.root_GMM is None:
            return Settled(factors, chosen(self.error_G, other.error_G))
        MS_GMD, root_GMM = chosen(self.MS_GMD, other.MS_GMD), chosen(self.root_GMM, other.root_GMM)
        return Settled(factors, chosen(self.error_G, other.error_G), MS_GMD, root_GMM)


class Problems:
    """`min ||(W - V) (I kron Sigma)^(1/2)||_F^2` for every problem of a batch.

    Args:
        W_GTD: kernels, float64; G is 1 if all have the same.
        metric: of all, see `stacked`.
        equation: of `V`. Its inputs may begin with outputs that no factor holds together with the others: each of them
            repeats Sigma, hence the identity.
    """

    def __init__(self, W_GTD: Tensor, metric: Metric, equation: Equation) -> None:
        self.W_GTD, self.metric, self.equation, self.dim = W_GTD, metric, equation, W_GTD.shape[2]
        self.WS_GTD = self.times(W_GTD)
        self.total_G = (self.WS_GTD * W_GTD).sum((1, 2))
        self.most_G = CANCELLING**2 * W_GTD.square().sum((1, 2))
        self._moments: dict[str, Tensor] = {}

    def at(self, places: Tensor) -> Problems:
        """Some of the problems."""
        result = object.__new__(Problems)
        result.equation, result.metric, result.dim = self.equation, chosen(self.metric, places), self.dim
        result._moments = {}
        for name in ("W_GTD", "WS_GTD", "total_G", "most_G"):
            values = getattr(self, name)
            setattr(result, name, values if len(values) == 1 else values[places])
        return result

    @cached_property
    def rounded(self) -> Metric:
        """The metric in single precision."""
        return self.metric.to(torch.float32)

    def times(self, M_GTD: Tensor) -> Tensor:
        """`M (I kron Sigma)`, in the precision of `M`."""
        metric = self.metric if M_GTD.dtype == torch.float64 else self.rounded
        return metric.times(M_GTD.reshape(len(M_GTD), -1, metric.dim)).reshape(-1, *M_GTD.shape[1:])

    def dense(self, precision: torch.dtype) -> Tensor:
        """`I kron Sigma`, G x D x D."""
        sigma_GDD = (self.metric if precision == torch.float64 else self.rounded).dense().to(precision)
        return _repeated(sigma_GDD if sigma_GDD.dim() == 3 else sigma_GDD[None], self.dim // self.metric.dim)

    def moment(self, sizes: Mapping[str, int], held: str) -> Tensor:
        """Moment of some input modes, G x K x K, averaged over all others."""
        if held in self._moments:
            return self._moments[held]
        modes = [sizes[letter] for letter in self.equation.inputs]
        ahead = next(n for n in range(len(modes) + 1) if math.prod(modes[n:]) == self.metric.dim)
        places = [self.equation.inputs.index(letter) for letter in held]
        moment = self.metric.marginal(modes[ahead:], [place - ahead for place in places if place >= ahead])
        repeats = math.prod(modes[place] for place in places if place < ahead)
        self._moments[held] = _repeated(moment if moment.dim() == 3 else moment[None], repeats)
        return self._moments[held]

    def terms(self, factors: Sequence[Tensor], leaving: int | None = None) -> list[tuple[str, Tensor]]:
        """The factors with their letters, the batch's first; `leaving` one out."""
        pairs = zip(self.equation.factors, factors, strict=True)
        return [(BATCH + letters, factor) for k, (letters, factor) in enumerate(pairs) if k != leaving]

    def copied(self, letters: str, shared: str = "") -> str:
        """The same letters in capitals: a copy of the factor, for Gram matrices; those `shared` stay."""
        return "".join(x if x in shared + BATCH else x.upper() for x in letters)

    def error(self, factors: Sequence[Tensor]) -> Tensor:
        """`||(W - V) Sigma^(1/2)||_F^2`, G numbers."""
        V = compose(self.equation, factors)
        return self._energy(self.W_GTD - V.reshape(len(V), *self.W_GTD.shape[1:]))

    def _energy(self, missed_GTD: Tensor) -> Tensor:
        return (self.times(missed_GTD) * missed_GTD).sum((1, 2)).clamp_min(0)

    def parts(self, factors: Sequence[Tensor]) -> Tensor:
        """The energies of the parts, one per choice of bond states, added up, relative to what is allowed."""
        squares = self.terms([factor.square() for factor in factors])
        return contract(squares, BATCH) / self.most_G.clamp_min(torch.finfo(torch.float64).tiny)

    def settled(self, factors: Sequence[Tensor], exactly: bool = True) -> Settled:
        """The factors with the best output factor for the others, if there is one, and the squared errors.

        `A (M Sigma M^T) = W Sigma M^T` is one system for all rows of `A`, solved for the change of `A`.

        Args:
            factors: of each problem.
            exactly: else the error is the difference of two energies, `total - tr((2 W Sigma M^T - A H) A^T)` with
                `H = M Sigma M^T`: cheap, and right as long as the error is not far below the total.
        """
        factors, k, equation = list(factors), self.equation.output_factor, self.equation
        if k is None:
            return Settled(factors, self.error(factors))
        letters, outputs, bonds = equation.factors[k], equation.outputs, equation.bonds(equation.factors[k])
        M = contract(self.terms(factors, leaving=k), BATCH + bonds + equation.inputs)
        M_GMD = M.reshape(len(M), -1, self.dim)
        MS_GMD = self.times(M_GMD)
        H_GMM = MS_GMD @ M_GMD.mT
        A = arranged(factors[k], BATCH + letters, BATCH + outputs + bonds)
        A_GTM = A.reshape(len(A), -1, M_GMD.shape[1])
        right_GTM = self.WS_GTD @ M_GMD.mT
        root_GMM = root(H_GMM, PROXIMAL)
        moved_GTM = A_GTM + torch.cholesky_solve((right_GTM - A_GTM @ H_GMM).mT, root_GMM).mT
        # A system that could not be solved leaves the factor as it is.
        solved_G = torch.isfinite(moved_GTM.sum((1, 2)))
        A_GTM = torch.where(per_problem(solved_G, moved_GTM), moved_GTM, A_GTM)
        factors[k] = arranged(A_GTM.reshape(A.shape), BATCH + outputs + bonds, BATCH + letters)
        if exactly:
            return Settled(factors, self._energy(self.W_GTD - A_GTM @ M_GMD), MS_GMD, root_GMM)
        error_G = self.total_G - ((2 * right_GTM - A_GTM @ H_GMM) * A_GTM).sum((1, 2))
        return Settled(factors, error_G, MS_GMD, root_GMM)


def per_problem(values_G: Tensor, like: Tensor) -> Tensor:
    """G values with as many dimensions as a tensor of the batch."""
    return values_G.reshape(-1, *[1] * (like.dim() - 1))


def _repeated(S_GNN: Tensor, times: int) -> Tensor:
    """`I kron S`."""
    return S_GNN if times == 1 else torch.kron(torch.eye(times).to(S_GNN), S_GNN)


def root(S_GNN: Tensor, damping: Tensor | float) -> Tensor:
    """Lower Cholesky factors of `S + damping * trace / N I`, without a look at whether they exist.

    Where they do not exist, a solution is not finite or does not lower the error, and is refused there.
    """
    mean_G = S_GNN.diagonal(dim1=1, dim2=2).mean(1).abs()
    added_G = damping * mean_G + torch.finfo(S_GNN.dtype).tiny
    damped_GNN = S_GNN.expand(len(added_G), -1, -1).clone()
    damped_GNN.diagonal(dim1=1, dim2=2).add_(added_G[:, None])
    return torch.linalg.cholesky_ex(damped_GNN)[0]
