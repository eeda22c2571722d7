"""Kernels that are multilinear in their factors, fitted in a metric by least squares, block by block or all at once.

`min ||(W - V) Sigma^(1/2)||_F^2` over `V = sum over the bonds of the product of the factors`, written as an equation
of index letters, "ta,cb,abhw->tchw". The problem is linear least squares in each factor `f`:

    (J^T (I kron Sigma) J + p I) f = J^T vec(W Sigma) + p f_before,

with `J` the product of the other factors. A factor that holds all output modes has one small system for all its rows.
The others are solved directly if they are small, else improved by preconditioned conjugate gradients; neither ever
raises the error. The proximal term `p` keeps factors bounded where the problem is degenerate, and vanishes at the
solution.

Alternating steps are slow where factors resemble each other. So after a sweep a jump goes further along the way from
the sweep before, and is kept if it lowers the error. With many inputs a sweep takes tens of products with Sigma; there
all factors move at once instead, by the steps of `gauss_newton`.

Letters: T outputs, D inputs, M bond states of the output factor.

Sources: Kroonenberg, de Leeuw, 1980, and Carroll, Chang, 1970 (alternating least squares); Navasca, De Lathauwer,
Kindermann, "Swamp reducing technique for tensor decomposition", 2008 (the proximal term); Mitchell, Ye, De Sterck,
"Nesterov Acceleration of Alternating Least Squares for Canonical Tensor Decomposition", 2018 (the jumps); Kalle,
Rudkiewicz, Ouerfelli, Tamaazousti, 2025, arXiv 2511.04494 (the metric).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .block import IDENTITY_ROWS, Block
from .conjugate import SINGLE_PRECISION
from .equation import Equation, arranged, compose, contract, equalised
from .gauss_newton import Linearised
from .metric import Identity, Metric
from .symmetric import cholesky

# A block is solved directly if its normal matrix and Sigma (which is then needed as a matrix) have at most this many
# rows.
DIRECT_ROWS = 512
DIRECT_INPUTS = 2304
# Proximal term, relative to the mean diagonal of a block's normal matrix.
PROXIMAL = 1e-7
# Sweeps end before the norm of all parts of the kernel is this many times its own norm. Such parts cancel each other,
# and in half precision their sum would be rounding errors. Orthogonal parts have exactly the norm of the kernel.
CANCELLING = 10.0
# From this many inputs on all factors move at once. Below, blocks are solved directly, and sweeps end at lower errors.
TOGETHER_INPUTS = 512
# First moves that go one factor after the other: far from the solution the first order holds only for short steps.
FIRST = 2
# After this many moves of all factors, one more conjugate gradient step: near the solution longer steps are right.
LONGER = 4
# A move that does not lower the error is halved at most this often.
HALVINGS = 6
# Below this fraction of the kernel's energy, the difference of two energies is rounding; the error is computed anew.
DIFFERENCE = 1e-5


@dataclass(frozen=True)
class Fitted:
    """Factors, the squared error in the metric, and its history by sweep."""

    factors: list[Tensor]
    error: float
    history: list[float]


def fit(
    W_TD: Tensor,
    metric: Metric,
    equation: Equation,
    start: Sequence[Tensor],
    sweeps: int = 50,
    tolerance: float = 1e-4,
    steps: int = 8,
    proximal: float = PROXIMAL,
    enough: float = 0.0,
) -> Fitted:
    """Least squares in all factors from a start.

    Args:
        W_TD: kernel, T x D.
        metric: Sigma on D inputs.
        equation: letters of the factors.
        start: factors to start from.
        sweeps: at most this many moves of all factors.
        tolerance: stop when a sweep lowers the squared error by less than this fraction.
        steps: conjugate gradient steps per large block.
        proximal: see `PROXIMAL`.
        enough: stop at this squared error.

    Returns:
        Factors, equal in norm for each bond state; the error never rises from sweep to sweep.
    """
    solver = Solver(W_TD.double(), metric, equation, proximal, steps)
    factors = equalised(equation, [factor.double() for factor in start])
    if solver.total <= 0:  # nothing to fit: the kernel is zero, or no input was ever seen
        factors[0] = factors[0] * 0 if solver.error(factors) > 0 else factors[0]
        return Fitted(factors, 0.0, [0.0])
    enough = max(enough, 1e-14 * solver.total)
    factors, error = solver.settled(factors)
    move: Alternating | Together = (
        Together(solver, enough) if at_once(equation, metric) else Alternating(solver, enough)
    )
    history = [error]
    for _ in range(sweeps if error > enough else 0):
        moved, moved_error = move(factors, error)
        if not moved_error < error or solver.cancelling(moved):  # converged up to rounding, or degenerate
            break
        before, factors, error = error, equalised(equation, moved), moved_error
        history.append(error)
        if before - error <= tolerance * before or error <= enough:
            break
    return Fitted(factors, error, history)


def at_once(equation: Equation, metric: Metric) -> bool:
    """Whether all factors move together: if one holds all outputs, and products with Sigma take most of the time."""
    return equation.output_factor is not None and not isinstance(metric, Identity) and metric.dim >= TOGETHER_INPUTS


class Alternating:
    """One factor after the other, then a jump further along the way from the sweep before.

    A jump that helps makes the next one 1.5 times as long, any other half as long.
    """

    def __init__(self, solver: Solver, enough: float) -> None:
        self.solver, self.enough, self.jump = solver, enough, 1.0
        self.swept: list[Tensor] | None = None

    def __call__(self, factors: Sequence[Tensor], error: float) -> tuple[list[Tensor], float]:
        solver, moved = self.solver, list(factors)
        for k in range(len(moved)):
            if k != solver.equation.output_factor:
                moved[k] = solver.block(moved, k)
        moved, moved_error = solver.settled(moved)
        last, self.swept = self.swept, moved
        if last is None or moved_error <= self.enough:
            return moved, moved_error
        ahead = [after + self.jump * (after - before) for before, after in zip(last, moved, strict=True)]
        ahead, ahead_error = solver.settled(ahead)
        self.jump *= 1.5 if ahead_error < moved_error else 0.5
        return (ahead, ahead_error) if ahead_error < moved_error else (moved, moved_error)


class Together:
    """All factors at once, see `gauss_newton`; one after the other if that does not lower the error."""

    def __init__(self, solver: Solver, enough: float) -> None:
        self.solver, self.moves, self.alternating = solver, 0, Alternating(solver, enough)
        self.precision = torch.float32 if solver.metric.dim >= SINGLE_PRECISION else torch.float64
        self.change_N: Tensor | None = None

    def __call__(self, factors: Sequence[Tensor], error: float) -> tuple[list[Tensor], float]:
        if self.moves < FIRST:
            self.moves += 1
            return self.alternating(factors, error)
        linear = Linearised(self.solver, factors, self.precision)
        self.change_N = linear.solved(self.solver.steps + self.moves // LONGER, self.change_N)
        self.moves += 1
        for halvings in range(HALVINGS):
            moved, moved_error = self.solver.settled(linear.moved(self.change_N / 2**halvings))
            if moved_error < error and not self.solver.cancelling(moved):
                return moved, moved_error
        self.change_N = None
        return self.alternating(factors, error)


class Solver:
    """The blocks of one problem."""

    def __init__(self, W_TD: Tensor, metric: Metric, equation: Equation, proximal: float, steps: int) -> None:
        self.W_TD, self.metric, self.equation = W_TD, metric, equation
        self.proximal, self.steps = proximal, steps
        self.WS_TD = metric.times(W_TD)
        self.total = float((self.WS_TD * W_TD).sum())
        self.most = CANCELLING**2 * float(W_TD.square().sum())
        self._projected: tuple[Tensor, Tensor] | None = None

    @cached_property
    def rounded(self) -> Metric:
        """The metric in single precision."""
        return self.metric.to(torch.float32)

    def error(self, factors: Sequence[Tensor]) -> float:
        """`||(W - V) Sigma^(1/2)||_F^2`."""
        missed_TD = self.W_TD - compose(self.equation, factors).reshape(self.W_TD.shape)
        return max(self.metric.energy(missed_TD), 0.0)

    def cancelling(self, factors: Sequence[Tensor]) -> bool:
        """Whether the energies of the parts, one per choice of bond states, add up to far more than the kernel's."""
        squares = [factor.square() for factor in factors]
        return float(contract(list(zip(self.equation.factors, squares, strict=True)), "")) > self.most

    def copied(self, terms: Sequence[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
        """The terms with their bonds in capitals: multiplied with the terms themselves they give Gram matrices."""
        kernel = self.equation.kernel
        return [("".join(x if x in kernel else x.upper() for x in letters), factor) for letters, factor in terms]

    def settled(self, factors: Sequence[Tensor]) -> tuple[list[Tensor], float]:
        """The factors with the best output factor for the others, if there is one, and the squared error.

        `A (M Sigma M^T) = W Sigma M^T` is one system for all rows of `A`. The error comes from the same products:
        with `H = M Sigma M^T` and `right = W Sigma M^T` it is `total - tr((2 right - A H) A^T)`, also for an `A` that
        damping keeps from the exact solution.
        """
        factors, k = list(factors), self.equation.output_factor
        if k is None:
            return factors, self.error(factors)
        letters, outputs = self.equation.factors[k], self.equation.outputs
        bonds = "".join(letter for letter in letters if letter not in outputs)
        others = [term for n, term in enumerate(zip(self.equation.factors, factors, strict=True)) if n != k]
        M_MD = contract(others, bonds + self.equation.inputs).reshape(-1, self.metric.dim)
        if isinstance(self.metric, Identity):
            H_MM = contract([*others, *self.copied(others)], bonds + bonds.upper()).reshape(len(M_MD), -1)
        else:
            H_MM = self.metric.inner(M_MD)
        A = arranged(factors[k], letters, outputs + bonds)
        A_TM = A.reshape(len(self.W_TD), -1)
        # Solve for the change of A: the proximal term has no gradient at A itself.
        right_TM = self.WS_TD @ M_MD.mT
        A_TM = A_TM + torch.cholesky_solve((right_TM - A_TM @ H_MM).mT, cholesky(H_MM, max(self.proximal, 1e-12))).mT
        factors[k] = arranged(A_TM.reshape(A.shape), outputs + bonds, letters)
        error = self.total - float(((2 * right_TM - A_TM @ H_MM) * A_TM).sum())
        return factors, error if error > DIFFERENCE * self.total else self.error(factors)

    def block(self, factors: Sequence[Tensor], k: int) -> Tensor:
        """Another factor, solved or improved with all others held."""
        block = Block(self, factors, k)
        if isinstance(self.metric, Identity):
            direct = all(len(gram) <= IDENTITY_ROWS for _, gram in block.grams)
        else:
            direct = block.rows <= DIRECT_ROWS and self.metric.dim <= DIRECT_INPUTS
        return block.solved() if direct else block.descended(self.steps)

    def projected(self, A: Tensor, letters: str) -> Tensor:
        """`A^T W Sigma` for the output factor `A`, bonds x inputs; kept for all blocks of a sweep."""
        if self._projected is None or self._projected[0] is not A:
            bonds = "".join(letter for letter in letters if letter not in self.equation.outputs)
            A_TM = arranged(A, letters, self.equation.outputs + bonds).reshape(len(self.WS_TD), -1)
            sizes = [A.shape[letters.index(letter)] for letter in bonds]
            self._projected = A, (A_TM.mT @ self.WS_TD).reshape(*sizes, self.metric.dim)
        return self._projected[1]
