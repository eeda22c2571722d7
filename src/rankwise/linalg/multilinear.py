"""Kernels that are multilinear in their factors, fitted in a metric: one factor after the other by least squares.

`min ||(W - V) Sigma^(1/2)||_F^2` over `V = sum over the bonds of the product of the factors`, written as an equation
of index letters, "ta,cb,abhw->tchw". Every block of the problem is linear least squares in one factor `f`:

    (J^T (I kron Sigma) J + p I) f = J^T vec(W Sigma) + p f_before,

with `J` the product of the other factors. A factor that holds all output modes has one small system for all its rows.
The others are solved directly where they are small, and by preconditioned conjugate gradients from where they are
where they are not; neither ever raises the error. The proximal term `p` keeps factors bounded where the problem is
degenerate, and vanishes at the solution.

Letters: T outputs, D inputs, M bond states of the output factor.

A sweep is followed by a jump further along its way, which is kept where it lowers the error: alternating steps are slow
where factors resemble each other.

Sources: Kroonenberg, de Leeuw, 1980, and Carroll, Chang, 1970 (alternating least squares); Navasca, De Lathauwer,
Kindermann, "Swamp reducing technique for tensor decomposition", 2008 (the proximal term); Kalle, Rudkiewicz, Ouerfelli,
Tamaazousti, 2025, arXiv 2511.04494 (the metric).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .block import Block
from .equation import Equation, compose, contract, equalised
from .metric import Identity, Metric
from .symmetric import cholesky

# A block is solved directly if its normal matrix and Sigma, which that needs as a matrix, have at most so many rows.
DIRECT_ROWS = 512
DIRECT_INPUTS = 2304
# Relative to the mean diagonal of a block's normal matrix.
PROXIMAL = 1e-7
# Sweeps end before the parts of a kernel are this much larger than it: they would cancel each other, and in half
# precision what is left of them would be rounding errors.
CANCELLING = 30.0


@dataclass(frozen=True)
class Fitted:
    """Factors, the squared error in the metric, and the squared error after every sweep."""

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
    proximal: float = PROXIMAL,
    steps: int = 8,
) -> Fitted:
    """Alternating least squares from given factors.

    Args:
        W_TD: kernel, T x D.
        metric: Sigma on D inputs.
        equation: what the factors are.
        start: factors.
        sweeps: at most this many rounds over all factors.
        tolerance: stop when a sweep lowers the squared error by less than this fraction.
        proximal: see the module; relative to the mean diagonal of each normal matrix.
        steps: conjugate gradient steps per large block.

    Returns:
        Factors, each bond's parts of equal norm; the error never rises from sweep to sweep.
    """
    solver = Solver(W_TD.double(), metric, equation, proximal, steps)
    factors = equalised(equation, [factor.double() for factor in start])
    if solver.total <= 0:  # nothing to fit: a kernel of zeros, or no input was ever seen
        factors[0] = factors[0] * 0 if solver.error(factors) > 0 else factors[0]
        return Fitted(factors, 0.0, [0.0])
    last = equation.output_factor
    order = [k for k in range(len(factors)) if k != last] + ([] if last is None else [last])
    if last is not None:
        factors[last] = solver.outputs(factors, last)
    error = solver.error(factors)
    history, jump = [error], 1.0
    for _ in range(sweeps):
        moved = list(factors)
        for k in order:
            moved[k] = solver.outputs(moved, k) if k == last else solver.block(moved, k)
        moved = equalised(equation, moved)
        moved_error = solver.error(moved)
        if len(history) > 1:  # further along the way of the last sweep, kept where that is better
            further = [after + jump * (after - before) for before, after in zip(factors, moved, strict=True)]
            if last is not None:
                further[last] = solver.outputs(further, last)
            further = equalised(equation, further)
            further_error = solver.error(further)
            jump *= 1.5 if further_error < moved_error else 0.5
            if further_error < moved_error:
                moved, moved_error = further, further_error
        if not moved_error < error or solver.cancelling(moved):  # converged up to rounding, or degenerate
            break
        before, factors, error = error, moved, moved_error
        history.append(error)
        if before - error <= tolerance * before or error <= 1e-14 * solver.total:
            break
    return Fitted(factors, error, history)


class Solver:
    """The blocks of one problem."""

    def __init__(self, W_TD: Tensor, metric: Metric, equation: Equation, proximal: float, steps: int) -> None:
        self.W_TD, self.metric, self.equation = W_TD, metric, equation
        self.proximal, self.steps = proximal, steps
        self.WS_TD = metric.times(W_TD)
        self.total = float((self.WS_TD * W_TD).sum())
        self._projected: tuple[Tensor, Tensor] | None = None

    def error(self, factors: Sequence[Tensor]) -> float:
        """`||(W - V) Sigma^(1/2)||_F^2`."""
        missed_TD = self.W_TD - compose(self.equation, factors).reshape(self.W_TD.shape)
        return max(self.metric.energy(missed_TD), 0.0)

    def cancelling(self, factors: Sequence[Tensor]) -> bool:
        """Whether the parts' absolute values add up to far more than the kernel."""
        sizes = compose(self.equation, [factor.abs() for factor in factors])
        return bool(sizes.norm() > CANCELLING * self.W_TD.norm())

    def outputs(self, factors: Sequence[Tensor], k: int) -> Tensor:
        """The factor that holds all outputs: `A (M Sigma M^T) = W Sigma M^T`, one system for all rows."""
        letters = self.equation.factors[k]
        bonds = "".join(letter for letter in letters if letter not in self.equation.outputs)
        others = [term for n, term in enumerate(zip(self.equation.factors, factors, strict=True)) if n != k]
        M_MD = contract(others, bonds + self.equation.inputs).reshape(-1, self.metric.dim)
        H_MM = self.metric.inner(M_MD)
        arranged = torch.einsum(f"{letters}->{self.equation.outputs}{bonds}", factors[k])
        A_TM = arranged.reshape(len(self.W_TD), -1)
        p = self.proximal * float(H_MM.diagonal().mean())
        H_MM = H_MM + p * torch.eye(len(H_MM), dtype=H_MM.dtype, device=H_MM.device)
        right_TM = self.WS_TD @ M_MD.mT + p * A_TM
        solved = torch.cholesky_solve(right_TM.mT, cholesky(H_MM)).mT.reshape(arranged.shape)
        return torch.einsum(f"{self.equation.outputs}{bonds}->{letters}", solved)

    def block(self, factors: Sequence[Tensor], k: int) -> Tensor:
        """Any other factor."""
        block = Block(self, factors, k)
        direct = block.exact
        if not isinstance(self.metric, Identity):
            direct = block.rows <= DIRECT_ROWS and self.metric.dim <= DIRECT_INPUTS
        return block.solved() if direct else block.descended(self.steps)

    def projected(self, A: Tensor, letters: str) -> Tensor:
        """`W Sigma` with the outputs summed over the output factor: bonds x inputs; one for all blocks of a sweep."""
        if self._projected is None or self._projected[0] is not A:
            bonds = "".join(letter for letter in letters if letter not in self.equation.outputs)
            A_TM = torch.einsum(f"{letters}->{self.equation.outputs}{bonds}", A).reshape(len(self.WS_TD), -1)
            sizes = [A.shape[letters.index(letter)] for letter in bonds]
            self._projected = A, (A_TM.mT @ self.WS_TD).reshape(*sizes, self.metric.dim)
        return self._projected[1]
