"""Kernels that are multilinear in their factors, fitted in a metric: one factor after the other by least squares.

`min ||(W - V) Sigma^(1/2)||_F^2` over `V = sum over the bonds of the product of the factors`, written as an equation
of index letters, "ta,cb,abhw->tchw". Every block of the problem is linear least squares in one factor `f`:

    (J^T (I kron Sigma) J + p I) f = J^T vec(W Sigma) + p f_before,

with `J` the product of the other factors. A factor that holds all output modes has one small system for all its rows.
The others are solved directly where they are small, and by preconditioned conjugate gradients from where they are
where they are not; neither ever raises the error. The proximal term `p` keeps factors bounded where the problem is
degenerate, and vanishes at the solution.

Letters: T outputs, D inputs, M bond states of the output factor, N entries of a factor.

Sources: Kroonenberg, de Leeuw, 1980, and Carroll, Chang, 1970 (alternating least squares); Navasca, De Lathauwer,
Kindermann, "Swamp reducing technique for tensor decomposition", 2008 (the proximal term); Kalle, Rudkiewicz, Ouerfelli,
Tamaazousti, 2025, arXiv 2511.04494 (the metric).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .conjugate import conjugate_gradients
from .metric import Metric
from .symmetric import cholesky

# A block is solved directly if its normal matrix has at most this many rows, and its Jacobian this many entries.
DIRECT_ROWS = 512
DIRECT_ENTRIES = 2**23
# Relative to the mean diagonal of a block's normal matrix.
PROXIMAL = 1e-7


@dataclass(frozen=True)
class Equation:
    """Which index letters the factors hold, and those of the kernel.

    Attributes:
        factors: letters of each factor.
        outputs: letters of the kernel's output modes.
        inputs: letters of the kernel's input modes, in the order of the metric's inputs.

    Every letter of the kernel belongs to one factor; all others are bonds, which are summed over.
    """

    factors: tuple[str, ...]
    outputs: str
    inputs: str

    @classmethod
    def parse(cls, text: str, outputs: int = 1) -> Equation:
        """Of "ta,cb,abhw->tchw"; the first `outputs` letters of the result are output modes."""
        factors, result = text.split("->")
        return cls(tuple(factors.split(",")), result[:outputs], result[outputs:])

    @property
    def kernel(self) -> str:
        return self.outputs + self.inputs

    @property
    def output_factor(self) -> int | None:
        """The factor that holds all output modes and no input mode."""
        for number, letters in enumerate(self.factors):
            if set(self.outputs) <= set(letters) and not set(self.inputs) & set(letters):
                return number
        return None


@dataclass(frozen=True)
class Fitted:
    """Factors, the squared error in the metric, and the squared error after every sweep."""

    factors: list[Tensor]
    error: float
    history: list[float]


def contract(terms: Sequence[tuple[str, Tensor]], result: str) -> Tensor:
    """Sum of products over all letters that are not in the result, pair by pair, the smallest products first."""
    left = list(terms)
    while len(left) > 1:
        i, j = min(
            ((i, j) for i in range(len(left)) for j in range(i + 1, len(left))),
            key=lambda pair: _pair_size(left, pair[0], pair[1], result),
        )
        (a, A), (b, B) = left[i], left[j]
        kept = _kept(left, i, j, result)
        product = torch.einsum(f"{a},{b}->{kept}", A, B)
        left = [term for number, term in enumerate(left) if number not in (i, j)] + [(kept, product)]
    ((letters, tensor),) = left
    return torch.einsum(f"{letters}->{result}", tensor)


def _kept(terms: Sequence[tuple[str, Tensor]], i: int, j: int, result: str) -> str:
    needed = set(result).union(*(letters for number, (letters, _) in enumerate(terms) if number not in (i, j)))
    return "".join(sorted(set(terms[i][0] + terms[j][0]) & needed))


def _pair_size(terms: Sequence[tuple[str, Tensor]], i: int, j: int, result: str) -> int:
    sizes = dict(zip(terms[i][0] + terms[j][0], (*terms[i][1].shape, *terms[j][1].shape), strict=True))
    product = math.prod(sizes[letter] for letter in _kept(terms, i, j, result))
    return product - terms[i][1].numel() - terms[j][1].numel()


def compose(equation: Equation, factors: Sequence[Tensor]) -> Tensor:
    """The kernel that the factors stand for, with one dimension per mode."""
    return contract(list(zip(equation.factors, factors, strict=True)), equation.kernel)


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
    solver = _Solver(W_TD.double(), metric, equation, proximal, steps)
    factors = equalised(equation, [factor.double() for factor in start])
    last = equation.output_factor
    order = [k for k in range(len(factors)) if k != last] + ([] if last is None else [last])
    if last is not None:
        factors[last] = solver.outputs(factors, last)
    error = solver.error(factors)
    history = [error]
    for _ in range(sweeps):
        moved = list(factors)
        for k in order:
            moved[k] = solver.outputs(moved, k) if k == last else solver.block(moved, k)
        moved = equalised(equation, moved)
        moved_error = solver.error(moved)
        if not moved_error < error:  # converged up to rounding
            break
        before, factors, error = error, moved, moved_error
        history.append(error)
        if before - error <= tolerance * before or error <= 1e-14 * solver.total:
            break
    return Fitted(factors, error, history)


def equalised(equation: Equation, factors: Sequence[Tensor]) -> list[Tensor]:
    """The same product, with the parts of every bond state of equal norm in all factors that share it."""
    factors = list(factors)
    for bond in sorted(set("".join(equation.factors)) - set(equation.kernel)):
        holders = [k for k, letters in enumerate(equation.factors) if bond in letters]
        norms = []
        for k in holders:
            moved = factors[k].movedim(equation.factors[k].index(bond), 0).flatten(1)
            norms.append(torch.linalg.vector_norm(moved, dim=1))
        stacked = torch.stack(norms)
        usable = (stacked > 0).all(0)
        mean = torch.where(usable, stacked.clamp_min(torch.finfo(stacked.dtype).tiny).log().mean(0).exp(), 1.0)
        for k, norm in zip(holders, norms, strict=True):
            scale = torch.where(usable, mean / norm, 1.0)
            shape = [-1 if letter == bond else 1 for letter in equation.factors[k]]
            factors[k] = factors[k] * scale.view(shape)
    return factors


class _Solver:
    """The blocks of one problem."""

    def __init__(self, W_TD: Tensor, metric: Metric, equation: Equation, proximal: float, steps: int) -> None:
        self.W_TD, self.metric, self.equation = W_TD, metric, equation
        self.proximal, self.steps = proximal, steps
        self.WS_TD = metric.times(W_TD)
        self.total = float((self.WS_TD * W_TD).sum())

    def error(self, factors: Sequence[Tensor]) -> float:
        """`||(W - V) Sigma^(1/2)||_F^2`."""
        missed_TD = self.W_TD - compose(self.equation, factors).reshape(self.W_TD.shape)
        return max(self.metric.energy(missed_TD), 0.0)

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
        block = _Block(self, factors, k)
        f = factors[k]
        rows = f.numel()
        if rows <= DIRECT_ROWS and rows * block.height * self.metric.dim <= DIRECT_ENTRIES:
            return block.solved(f)
        return block.descended(f, self.steps)


class _Block:
    """Least squares in one factor: the product of the others, outputs turned into a basis of the output factor."""

    def __init__(self, solver: _Solver, factors: Sequence[Tensor], k: int) -> None:
        equation, self.metric, self.proximal = solver.equation, solver.metric, solver.proximal
        self.letters, self.shape = equation.factors[k], factors[k].shape
        terms = list(zip(equation.factors, factors, strict=True))
        WS = solver.WS_TD
        self.outputs = equation.outputs
        last = equation.output_factor
        if last is not None and last != k:
            # Only the span of the output factor is reached: outputs in an orthonormal basis of it, "*" its letter.
            letters, A = terms[last]
            bonds = "".join(letter for letter in letters if letter not in equation.outputs)
            arranged = torch.einsum(f"{letters}->{equation.outputs}{bonds}", A)
            Q, R = torch.linalg.qr(arranged.reshape(len(WS), -1))
            if Q.shape[1] < len(WS):
                terms[last] = ("Z" + bonds, R.reshape(-1, *arranged.shape[len(equation.outputs) :]))
                self.outputs, WS = "Z", Q.mT @ WS
        self.kernel = self.outputs + equation.inputs
        self.height = len(WS)
        held = set(self.letters)
        # The product of the others: kernel modes that they hold, and the bonds of this factor.
        self.around = "".join(letter for letter in self.kernel if letter not in held)
        self.around += "".join(letter for letter in self.letters if letter not in self.kernel)
        self.E = contract([term for number, term in enumerate(terms) if number != k], self.around)
        sizes = dict(zip(self.letters, self.shape, strict=True)) | dict(zip(self.around, self.E.shape, strict=True))
        self.sizes = [sizes[letter] for letter in self.kernel]
        self.right = self.gathered(WS)
        self.preconditioner = self._preconditioner(equation)

    def spread(self, f: Tensor) -> Tensor:
        """`J f`: the kernel, height x D."""
        return torch.einsum(f"{self.around},{self.letters}->{self.kernel}", self.E, f).reshape(self.height, -1)

    def gathered(self, V: Tensor) -> Tensor:
        """`J^T V`."""
        return torch.einsum(f"{self.kernel},{self.around}->{self.letters}", V.reshape(self.sizes), self.E)

    def solved(self, f: Tensor) -> Tensor:
        """The exact solution, from the whole normal matrix."""
        N = f.numel()
        units = torch.eye(N, dtype=f.dtype, device=f.device).reshape(N, *self.shape)
        J = torch.einsum(f"{self.around},Y{self.letters}->Y{self.kernel}", self.E, units).reshape(N, -1)
        JS = self.metric.times(J.reshape(N * self.height, -1)).reshape(N, -1)
        H_NN = JS @ J.mT
        p = self.proximal * float(H_NN.diagonal().mean())
        H_NN = H_NN + p * torch.eye(N, dtype=H_NN.dtype, device=H_NN.device)
        right = (self.right + p * f).reshape(-1, 1)
        return torch.cholesky_solve(right, cholesky(H_NN)).reshape(self.shape)

    def descended(self, f: Tensor, steps: int) -> Tensor:
        """Some steps of conjugate gradients from `f`; the proximal term has no gradient there."""
        p = self.proximal * self.mean_diagonal

        def apply(x: Tensor) -> Tensor:
            return self.gathered(self.metric.times(self.spread(x))) + p * x

        residual = self.right - self.gathered(self.metric.times(self.spread(f)))
        return conjugate_gradients(apply, self.preconditioned, f, residual, steps)

    def _preconditioner(self, equation: Equation) -> tuple[str, str, Tensor, Tensor]:
        """`Sigma_held kron Gamma`: the marginal moment of the input modes that this factor holds, and the Gram matrix
        of the others' product per bond state."""
        held = "".join(letter for letter in equation.inputs if letter in self.letters)
        bonds = "".join(letter for letter in self.letters if letter not in self.kernel)
        E = torch.einsum(f"{self.around}->{bonds}{self._rest(bonds)}", self.E).reshape(self._bond_states(bonds), -1)
        gamma = E @ E.mT
        sizes = [self.sizes[self.kernel.index(letter)] for letter in equation.inputs]
        marginal = self.metric.marginal(sizes, [equation.inputs.index(letter) for letter in held])
        self.mean_diagonal = float(gamma.diagonal().mean() * marginal.diagonal().mean())
        return held, bonds, cholesky(marginal, 1e-6), cholesky(gamma, 1e-6)

    def _rest(self, bonds: str) -> str:
        return "".join(letter for letter in self.around if letter not in bonds)

    def _bond_states(self, bonds: str) -> int:
        return math.prod(size for letter, size in zip(self.letters, self.shape, strict=True) if letter in bonds)

    def preconditioned(self, x: Tensor) -> Tensor:
        held, bonds, L_held, L_bonds = self.preconditioner
        outs = "".join(letter for letter in self.letters if letter not in held + bonds)
        order = outs + held + bonds
        arranged = torch.einsum(f"{self.letters}->{order}", x)
        flat = arranged.reshape(-1, len(L_held), len(L_bonds))
        solved = torch.cholesky_solve(flat, L_held)
        solved = torch.cholesky_solve(solved.mT, L_bonds).mT
        return torch.einsum(f"{order}->{self.letters}", solved.reshape(arranged.shape))
