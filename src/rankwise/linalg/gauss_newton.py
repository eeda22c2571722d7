"""All factors of a multilinear kernel moved at once: a step of Gauss and Newton in the metric.

The kernel is taken to first order in the factors, `V + J d`, and

    min ||(W - V - J d) Sigma^(1/2)||_F^2

is solved for `d` by a few conjugate gradient steps, each of which costs one product with Sigma, however many factors
there are. They are preconditioned by the blocks, each factor for itself. The output factor is eliminated: it follows
every change of the others at its best, so that only those parts of the inputs count that it cannot repair,

    Sigma - Sigma M^T (M Sigma M^T)^-1 M Sigma     with `V = A M`.

Directions are conjugate to the step before, so that one step goes on where the last one ended.

Letters: T outputs, D inputs, M bond states of the output factor, N numbers of all other factors.

Sources: Kaufman, "A Variable Projection Method for Solving Separable Nonlinear Least Squares Problems", 1975; Sorber,
Van Barel, De Lathauwer, "Optimization-Based Algorithms for Tensor Decompositions: Canonical Polyadic Decomposition,
Decomposition in Rank-(Lr,Lr,1) Terms, and a New Generalization", 2013 (blocks as preconditioner).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .block import Block, Problem
from .conjugate import conjugate_gradients
from .equation import arranged, contract
from .symmetric import cholesky


class Linearised:
    """A problem with an output factor to first order in all others.

    Args:
        problem: what is fitted.
        factors: around which; the output factor is at its best for the others.
        precision: of the steps: they look for a correction, which needs no more than float32.
    """

    def __init__(self, problem: Problem, factors: Sequence[Tensor], precision: torch.dtype) -> None:
        equation, last = problem.equation, problem.equation.output_factor
        assert last is not None
        self.factors, self.last = list(factors), last
        self.numbers = [k for k in range(len(factors)) if k != last]
        self.letters = [equation.factors[k] for k in self.numbers]
        self.metric = problem.metric if precision == torch.float64 else problem.rounded
        letters, A = equation.factors[last], factors[last]
        bonds = "".join(letter for letter in letters if letter not in equation.outputs)
        self.reached = bonds + equation.inputs
        terms = [(equation.factors[k], factors[k]) for k in self.numbers]
        M = contract(terms, self.reached)
        self.shape = M.shape
        M_MD = M.reshape(-1, problem.metric.dim)
        MS_MD = problem.metric.times(M_MD)
        root_MM = cholesky(MS_MD @ M_MD.mT, max(problem.proximal, 1e-12))
        self.repaired_MD = torch.linalg.solve_triangular(root_MM, MS_MD, upper=False).to(precision)
        A_TM = arranged(A, letters, equation.outputs + bonds).reshape(-1, len(M_MD))
        missed_MD = A_TM.mT @ (problem.WS_TD - A_TM @ MS_MD)
        self.A_TM = A_TM.to(precision)
        # With few states their Gram matrix takes the place of the outputs.
        self.gram_MM = self.A_TM.mT @ self.A_TM if A_TM.shape[1] <= A_TM.shape[0] else None
        rounded = [(letters, factor.to(precision)) for letters, factor in terms]
        self.others = [[term for term in rounded if term[0] != letters] for letters in self.letters]
        self.inverses = [Block(problem, factors, k).preconditioner(precision) for k in self.numbers]
        self.slope_N = self._back(missed_MD.to(precision))

    def solved(self, steps: int, before_N: Tensor | None) -> Tensor:
        """The change of the factors, N numbers.

        Args:
            steps: of conjugate gradients.
            before_N: the change before this one, along which the first step goes.
        """
        start_N = torch.zeros_like(self.slope_N)
        return conjugate_gradients(self._normal, self._precondition, start_N, self.slope_N, steps, before_N)

    def moved(self, d_N: Tensor) -> list[Tensor]:
        """The factors after a change, the output factor as it was."""
        moved = list(self.factors)
        for k, change in zip(self.numbers, self._parts(d_N.double()), strict=True):
            moved[k] = moved[k] + change
        return moved

    def _parts(self, d_N: Tensor) -> list[Tensor]:
        shapes = [self.factors[k].shape for k in self.numbers]
        parts = d_N.split([shape.numel() for shape in shapes])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _normal(self, d_N: Tensor) -> Tensor:
        """`J^T (I kron Sigma) J d`, of Sigma what the output factor cannot repair."""
        changes = zip(self.others, self.letters, self._parts(d_N), strict=True)
        V = torch.stack([contract([*others, (letters, d)], self.reached) for others, letters, d in changes]).sum(0)
        V_MD = V.reshape(-1, self.metric.dim)
        if self.gram_MM is not None:
            return self._back(self.gram_MM @ self._left(V_MD))
        return self._back(self.A_TM.mT @ self._left(self.A_TM @ V_MD))

    def _left(self, V_MD: Tensor) -> Tensor:
        return self.metric.times(V_MD) - (V_MD @ self.repaired_MD.mT) @ self.repaired_MD

    def _back(self, E_MD: Tensor) -> Tensor:
        """`J^T`."""
        term = self.reached, E_MD.reshape(self.shape)
        pairs = zip(self.others, self.letters, strict=True)
        return torch.cat([contract([term, *others], letters).flatten() for others, letters in pairs])

    def _precondition(self, d_N: Tensor) -> Tensor:
        pairs = zip(self.inverses, self._parts(d_N), strict=True)
        return torch.cat([inverse(part).flatten() for inverse, part in pairs])
