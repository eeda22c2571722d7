"""All factors of a multilinear kernel moved at once: a Gauss-Newton step in the metric.

To first order in the factors the kernel is `V + J d`. The step solves

    min over d of ||(W - V - J d) Sigma^(1/2)||_F^2

by a few conjugate gradient steps, each of which costs one product with Sigma, for any number of factors. The
preconditioner has one block per factor. The output factor `A` (`V = A M`) is eliminated: it follows every change of
the others as the best for them. What it can repair then costs nothing, and Sigma becomes

    Sigma - Sigma M^T (M Sigma M^T)^-1 M Sigma.

Directions are conjugate to the step before, so that a step continues where the last one ended.

Letters: T outputs, D inputs, M bond states of the output factor, N numbers in all other factors.

Sources: Kaufman, "A Variable Projection Method for Solving Separable Nonlinear Least Squares Problems", 1975; Sorber,
Van Barel, De Lathauwer, "Optimization-Based Algorithms for Tensor Decompositions: Canonical Polyadic Decomposition,
Decomposition in Rank-(Lr,Lr,1) Terms, and a New Generalization", 2013 (blocks as preconditioner).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .block import Block, BlockProblem
from .conjugate import conjugate_gradients
from .equation import arranged, contract
from .symmetric import cholesky


class Linearised:
    """A problem with an output factor, to first order in all other factors.

    Args:
        problem: what is fitted.
        factors: expansion point; the output factor must be the best for the others.
        precision: of the steps; float32 is enough for a correction.
    """

    def __init__(self, problem: BlockProblem, factors: Sequence[Tensor], precision: torch.dtype) -> None:
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
        # With L L^T = M Sigma M^T the repaired part of Sigma is R^T R, R = L^-1 M Sigma.
        root_MM = cholesky(MS_MD @ M_MD.mT, max(problem.proximal, 1e-12))
        self.repaired_MD = torch.linalg.solve_triangular(root_MM, MS_MD, upper=False).to(precision)
        A_TM = arranged(A, letters, equation.outputs + bonds).reshape(-1, len(M_MD))
        # A^T (W - V) Sigma: the gradient needs no term for A, which is at its best.
        missed_MD = A_TM.mT @ (problem.WS_TD - A_TM @ MS_MD)
        self.A_TM = A_TM.to(precision)
        # With no more states than outputs A^T A is smaller than A, and products need no outputs.
        self.gram_MM = self.A_TM.mT @ self.A_TM if A_TM.shape[1] <= A_TM.shape[0] else None
        rounded = [(letters, factor.to(precision)) for letters, factor in terms]
        self.others = [[term for term in rounded if term[0] != letters] for letters in self.letters]
        self.inverses = [Block(problem, factors, k).preconditioner(precision) for k in self.numbers]
        self.slope_N = self._back(missed_MD.to(precision))

    def solved(self, steps: int, before_N: Tensor | None) -> Tensor:
        """The change of the factors, N numbers, after some conjugate gradient steps, the first along `before_N`."""
        start_N = torch.zeros_like(self.slope_N)
        return conjugate_gradients(self._normal, self._precondition, start_N, self.slope_N, steps, before_N)

    def moved(self, d_N: Tensor) -> list[Tensor]:
        """The factors after a change; the output factor stays."""
        moved = list(self.factors)
        for k, change in zip(self.numbers, self._parts(d_N.double()), strict=True):
            moved[k] = moved[k] + change
        return moved

    def _parts(self, d_N: Tensor) -> list[Tensor]:
        shapes = [self.factors[k].shape for k in self.numbers]
        parts = d_N.split([shape.numel() for shape in shapes])
        return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]

    def _normal(self, d_N: Tensor) -> Tensor:
        """`J^T (I kron Sigma') J d`, with Sigma' the part of Sigma that the output factor cannot repair."""
        changes = zip(self.others, self.letters, self._parts(d_N), strict=True)
        V = torch.stack([contract([*others, (letters, d)], self.reached) for others, letters, d in changes]).sum(0)
        V_MD = V.reshape(-1, self.metric.dim)
        if self.gram_MM is not None:
            return self._back(self.gram_MM @ self._left(V_MD))
        return self._back(self.A_TM.mT @ self._left(self.A_TM @ V_MD))

    def _left(self, V_MD: Tensor) -> Tensor:
        """`V Sigma'`."""
        return self.metric.times(V_MD) - (V_MD @ self.repaired_MD.mT) @ self.repaired_MD

    def _back(self, E_MD: Tensor) -> Tensor:
        """`J^T`."""
        term = self.reached, E_MD.reshape(self.shape)
        pairs = zip(self.others, self.letters, strict=True)
        return torch.cat([contract([term, *others], letters).flatten() for others, letters in pairs])

    def _precondition(self, d_N: Tensor) -> Tensor:
        pairs = zip(self.inverses, self._parts(d_N), strict=True)
        return torch.cat([inverse(part).flatten() for inverse, part in pairs])
