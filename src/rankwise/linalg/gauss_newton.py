"""All factors of multilinear kernels moved at once: a damped Gauss-Newton step in the metric.

To first order in the factors the kernel is `V + J d`. The step solves

    min over d of ||(W - V - J d) Sigma^(1/2)||_F^2 + p |d|^2 + q |f + d|^2.

The output factor `A` (`V = A M`) is eliminated: it follows every change of the others as the best for them. What it
can repair then costs nothing, and Sigma becomes

    Sigma - Sigma M^T (M Sigma M^T)^-1 M Sigma.

Small problems are solved directly. In large ones a few conjugate gradient steps each cost one product with Sigma, for
any number of factors; the preconditioner has one block per factor, and directions are conjugate to the step before, so
that a step continues where the last one ended.

Letters: G problems, T outputs, D inputs, M bond states of the output factor, N numbers in all other factors.

Sources: Kaufman, "A Variable Projection Method for Solving Separable Nonlinear Least Squares Problems", 1975; Sorber,
Van Barel, De Lathauwer, "Optimization-Based Algorithms for Tensor Decompositions: Canonical Polyadic Decomposition,
Decomposition in Rank-(Lr,Lr,1) Terms, and a New Generalization", 2013 (blocks as preconditioner).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor

from .block import Block
from .conjugate import SINGLE_PRECISION, conjugate_gradients
from .equation import BATCH, Equation, arranged, compose, contract
from .problems import Problems, Settled

# Inputs up to which the normal matrix is formed and decomposed; and up to which what is left of Sigma is.
DIRECT_INPUTS, LEFT_INPUTS = 1024, 1024
# Preconditioners are damped at least by this.
ROUNDING = 1e-6


def free_numbers(equation: Equation, sizes: Mapping[str, int]) -> int:
    """How many numbers a step solves for."""
    equation = equation.split
    free = [letters for k, letters in enumerate(equation.factors) if k != equation.output_factor]
    return sum(math.prod(sizes[letter] for letter in letters) for letters in free)


def is_small(equation: Equation, sizes: Mapping[str, int], numbers: int) -> bool:
    """Whether steps are solved directly, where that is done for at most so many numbers."""
    inputs = math.prod(sizes[letter] for letter in equation.split.inputs)
    return free_numbers(equation, sizes) <= numbers and inputs <= DIRECT_INPUTS


class Linearised:
    """Problems to first order in all factors but the output factor.

    Args:
        problems: what is fitted.
        here: expansion point.
        steps: conjugate gradient steps; 0 to solve directly.
    """

    def __init__(self, problems: Problems, here: Settled, steps: int) -> None:
        equation, last = problems.equation, problems.equation.output_factor
        self.problems, self.factors, self.steps = problems, here.factors, steps
        self.numbers = [k for k in range(len(here.factors)) if k != last]
        self.letters = [BATCH + equation.factors[k] for k in self.numbers]
        self.sizes = equation.sizes(here.factors)
        self.precision = torch.float32 if steps and problems.dim >= SINGLE_PRECISION else torch.float64
        self.repaired_GMD: Tensor | None = None
        self.A_GTM: Tensor | None = None
        self.gram_GMM: Tensor | None = None
        if last is None:
            self.reached = equation.outputs
            V = compose(equation, here.factors)
            missed = problems.WS_GTD - problems.times(V.reshape(len(V), -1, problems.dim))
        else:
            self.reached = equation.bonds(equation.factors[last])
            missed = self._eliminate(here, last)
        rounded = [(letters, factor.to(self.precision)) for letters, factor in problems.terms(here.factors)]
        own = set(self.letters)
        self.others = [[term for term in rounded if term[0] in own - {letters}] for letters in self.letters]
        self.kernel = BATCH + self.reached + equation.inputs
        self.shape = tuple(self.sizes[letter] for letter in self.kernel[1:])
        self.slope_GN = self._back(missed.to(self.precision))
        self.x_GN = torch.cat([self.factors[k].flatten(1) for k in self.numbers], 1).to(self.precision)

    def _eliminate(self, here: Settled, last: int) -> Tensor:
        """What the output factor repairs; `A^T (W - V) Sigma`, which needs no term for `A`, as that is at its best."""
        problems, equation, MS_GMD = self.problems, self.problems.equation, here.MS_GMD
        assert MS_GMD is not None
        assert here.root_GMM is not None
        # With L L^T = M Sigma M^T the repaired part of Sigma is R^T R, R = L^-1 M Sigma.
        self.repaired_GMD = torch.linalg.solve_triangular(
            here.root_GMM.to(self.precision), MS_GMD.to(self.precision), upper=False
        )
        A = arranged(self.factors[last], BATCH + equation.factors[last], BATCH + equation.outputs + self.reached)
        A_GTM = A.reshape(len(A), -1, MS_GMD.shape[1])
        missed_GMD = A_GTM.mT @ (problems.WS_GTD - A_GTM @ MS_GMD)
        self.A_GTM = A_GTM = A_GTM.to(self.precision)
        # With no more states than outputs A^T A is smaller than A, and products need no outputs.
        if A_GTM.shape[2] <= A_GTM.shape[1] or not self.steps:
            self.gram_GMM = A_GTM.mT @ A_GTM
        return missed_GMD

    def step(self, damping_G: Tensor, pull_G: Tensor, last_GN: Tensor | None) -> tuple[Tensor, Tensor]:
        """The change of the factors, G x N, and the decrease of the squared error to expect of it.

        Args:
            damping_G: `p`, relative to the mean diagonal of each factor's block.
            pull_G: `q`, likewise.
            last_GN: the change before, for conjugate gradients.
        """
        damping_G, pull_G = damping_G.to(self.precision), pull_G.to(self.precision)
        added_GN = (damping_G + pull_G)[:, None] * self.scale
        right_GN = self.slope_GN - pull_G[:, None] * self.scale * self.x_GN
        if self.steps:
            d_GN = self._iterated(added_GN, right_GN, damping_G + pull_G, last_GN)
        else:
            damped_GNN = self.matrix.clone()
            damped_GNN.diagonal(dim1=1, dim2=2).add_(added_GN)
            root_GNN = torch.linalg.cholesky_ex(damped_GNN)[0]
            d_GN = torch.cholesky_solve(right_GN[:, :, None], root_GNN)[:, :, 0]
        # d solves the damped system, by conjugate gradients in their subspace: d^T H d = d^T right - d^T added d.
        expected_G = (d_GN * (2 * self.slope_GN - right_GN + added_GN * d_GN)).sum(1)
        return d_GN, expected_G

    def _iterated(self, added_GN: Tensor, right_GN: Tensor, damping_G: Tensor, last_GN: Tensor | None) -> Tensor:
        inverses = [block.inverse(damping_G.clamp_min(ROUNDING), self.precision) for block in self.blocks]

        def precondition(d_GN: Tensor) -> Tensor:
            pairs = zip(inverses, self._parts(d_GN), strict=True)
            return torch.cat([inverse(part).flatten(1) for inverse, part in pairs], 1)

        def apply(d_GN: Tensor) -> Tensor:
            return self._normal(d_GN) + added_GN * d_GN

        start_GN = torch.zeros_like(right_GN)
        return conjugate_gradients(apply, precondition, start_GN, right_GN, self.steps, last_GN, batch=1)

    def moved(self, d_GN: Tensor) -> list[Tensor]:
        """The factors after a change; the output factor stays."""
        moved = list(self.factors)
        for k, change in zip(self.numbers, self._parts(d_GN.double()), strict=True):
            moved[k] = moved[k] + change
        return moved

    @cached_property
    def blocks(self) -> list[Block]:
        return [Block(self.problems, self.factors, k) for k in self.numbers]

    @cached_property
    def scale(self) -> Tensor:
        """Mean diagonal of each factor's block of the normal matrix, for every number of the factor, G x N."""
        if self.steps:
            means = [block.mean() for block in self.blocks]
        else:
            diagonal = self._parts(self.matrix.diagonal(dim1=1, dim2=2))
            means = [part.flatten(1).mean(1) for part in diagonal]
        sizes = [self.factors[k][0].numel() for k in self.numbers]
        columns = [mean_G[:, None].expand(len(self.x_GN), size) for mean_G, size in zip(means, sizes, strict=True)]
        scale_GN = torch.cat(columns, 1)
        least_G1 = 1e-12 * scale_GN.amax(1, keepdim=True) + torch.finfo(torch.float32).tiny
        return scale_GN.clamp_min(least_G1).to(self.precision)

    @cached_property
    def left(self) -> Tensor:
        """Sigma', the part of Sigma that the output factor cannot repair, G x D x D."""
        sigma_GDD = self.problems.dense(self.precision)
        return sigma_GDD if self.repaired_GMD is None else sigma_GDD - self.repaired_GMD.mT @ self.repaired_GMD

    @cached_property
    def matrix(self) -> Tensor:
        """`J^T (I kron Sigma') J`, G x N x N."""
        inputs, problems, sigma = self.problems.equation.inputs, self.problems, self.left
        modes = [self.sizes[letter] for letter in inputs]
        joining = [(BATCH + inputs + inputs.upper(), sigma.reshape(len(sigma), *modes, *modes))]
        if self.gram_GMM is not None:
            states = [self.sizes[letter] for letter in self.reached]
            gram = self.gram_GMM.reshape(len(self.gram_GMM), *states, *states)
            joining.append((BATCH + self.reached + self.reached.upper(), gram))
        else:  # outputs are independent of each other
            eye = [
                (letter, torch.eye(self.sizes[letter], dtype=sigma.dtype, device=sigma.device))
                for letter in self.reached
            ]
            joining += [(letter + letter.upper(), matrix) for letter, matrix in eye]
        rows: list[list[Tensor]] = [[] for _ in self.letters]
        for i, letters in enumerate(self.letters):
            for j, other in enumerate(self.letters[: i + 1]):
                copies = [(problems.copied(term), factor) for term, factor in self.others[j]]
                block = contract([*joining, *self.others[i], *copies], letters + problems.copied(other[1:]))
                block_GNN = block.reshape(len(block), self.factors[self.numbers[i]][0].numel(), -1)
                rows[i].append(block_GNN)
                if j < i:
                    rows[j].append(block_GNN.mT)
        return torch.cat([torch.cat(row, 2) for row in rows], 1)

    def _parts(self, d_GN: Tensor) -> list[Tensor]:
        shapes = [self.factors[k].shape[1:] for k in self.numbers]
        parts = d_GN.split([shape.numel() for shape in shapes], 1)
        return [part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)]

    def _normal(self, d_GN: Tensor) -> Tensor:
        """`J^T (I kron Sigma') J d`."""
        V, *further = (
            contract([*others, (letters, d)], self.kernel)
            for others, letters, d in zip(self.others, self.letters, self._parts(d_GN), strict=True)
        )
        for other in further:
            V = V + other
        V_GMD = V.reshape(len(V), -1, self.problems.dim)
        if self.gram_GMM is not None:
            return self._back(self.gram_GMM @ self._left(V_GMD))
        if self.A_GTM is not None:
            return self._back(self.A_GTM.mT @ self._left(self.A_GTM @ V_GMD))
        return self._back(self.problems.times(V_GMD))

    def _left(self, V_GMD: Tensor) -> Tensor:
        """`V Sigma'`: with the matrix where that costs less, over all steps, than what it is made of."""
        assert self.repaired_GMD is not None
        M, D = self.repaired_GMD.shape[1:]
        if min(LEFT_INPUTS, 2 * M * self.steps) >= D:
            return V_GMD @ self.left
        return self.problems.times(V_GMD) - (V_GMD @ self.repaired_GMD.mT) @ self.repaired_GMD

    def _back(self, E_GMD: Tensor) -> Tensor:
        """`J^T`."""
        term = self.kernel, E_GMD.reshape(len(E_GMD), *self.shape)
        pairs = zip(self.others, self.letters, strict=True)
        return torch.cat([contract([term, *others], letters).flatten(1) for others, letters in pairs], 1)
