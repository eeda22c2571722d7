"""Kernels that are multilinear in their factors, fitted in a metric: one factor after the other by least squares.

`min ||(W - V) Sigma^(1/2)||_F^2` over `V = sum over the bonds of the product of the factors`, written as an equation
of index letters, "ta,cb,abhw->tchw". Every block of the problem is linear least squares in one factor `f`:

    (J^T (I kron Sigma) J + p I) f = J^T vec(W Sigma) + p f_before,

with `J` the product of the other factors. A factor that holds all output modes has one small system for all its rows.
The others are solved directly where they are small, and by preconditioned conjugate gradients from where they are
where they are not; neither ever raises the error. The proximal term `p` keeps factors bounded where the problem is
degenerate, and vanishes at the solution.

Letters: T outputs, D inputs, M bond states of the output factor.

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
from .metric import Identity, Metric
from .symmetric import cholesky

# A block is solved directly if its normal matrix has at most this many rows.
DIRECT_ROWS = 512
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
    if solver.total <= 0:  # nothing to fit: a kernel of zeros, or no input was ever seen
        factors[0] = factors[0] * 0 if solver.error(factors) > 0 else factors[0]
        return Fitted(factors, 0.0, [0.0])
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
        self._projected: tuple[Tensor, Tensor] | None = None

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
        return block.solved() if block.rows <= DIRECT_ROWS else block.descended(self.steps)

    def projected(self, A: Tensor, letters: str) -> Tensor:
        """`W Sigma` with the outputs summed over the output factor: bonds x inputs; one for all blocks of a sweep."""
        if self._projected is None or self._projected[0] is not A:
            bonds = "".join(letter for letter in letters if letter not in self.equation.outputs)
            A_TM = torch.einsum(f"{letters}->{self.equation.outputs}{bonds}", A).reshape(len(self.WS_TD), -1)
            sizes = [A.shape[letters.index(letter)] for letter in bonds]
            self._projected = A, (A_TM.mT @ self.WS_TD).reshape(*sizes, self.metric.dim)
        return self._projected[1]


class _Block:
    """Least squares in one factor `f`: `(J^T (I kron Sigma) J + p I) f = J^T vec(W Sigma) + p f_before`.

    Of the letters of the factor, `outs` are output modes, each with the same system; `held` are input modes and `bonds`
    the rest, which the system couples. Everything is contracted in whatever order makes the smallest tensors.
    """

    def __init__(self, solver: _Solver, factors: Sequence[Tensor], k: int) -> None:
        self.equation, self.metric = solver.equation, solver.metric
        self.letters, self.f = self.equation.factors[k], factors[k]
        self.outs = "".join(letter for letter in self.letters if letter in self.equation.outputs)
        self.held = "".join(letter for letter in self.equation.inputs if letter in self.letters)
        self.bonds = "".join(letter for letter in self.letters if letter not in self.equation.kernel)
        terms = list(zip(self.equation.factors, factors, strict=True))
        self.sizes = {letter: size for term, factor in terms for letter, size in zip(term, factor.shape, strict=True)}
        self.modes = [self.sizes[letter] for letter in self.equation.inputs]
        self.rows = self.count(self.held + self.bonds)
        last = self.equation.output_factor
        self.others = [term for number, term in enumerate(terms) if number not in (k, last)]
        self.A: tuple[str, Tensor] | None = terms[last] if last is not None else None
        if self.A is None:
            outputs = [self.sizes[letter] for letter in self.equation.outputs]
            WS = self.equation.kernel, solver.WS_TD.reshape(*outputs, *self.modes)
        else:
            reached = "".join(letter for letter in self.A[0] if letter not in self.equation.outputs)
            states = [self.sizes[letter] for letter in reached]
            projected = solver.projected(self.A[1], self.A[0])
            WS = reached + self.equation.inputs, projected.reshape(*states, *self.modes)
        self.right = contract([WS, *self.others], self.letters)
        self.bond_gram = self._bond_gram()
        marginal = self.metric.marginal(self.modes, [self.equation.inputs.index(letter) for letter in self.held])
        self.marginal = marginal
        self.p = solver.proximal * float(self.bond_gram.diagonal().mean() * marginal.diagonal().mean())

    def count(self, letters: str) -> int:
        return math.prod(self.sizes[letter] for letter in letters)

    def _twice(self, shared: str) -> list[tuple[str, Tensor]]:
        """The other factors and a copy of them, in whose letters all but the outputs and `shared` are capitals."""
        kept = set(self.equation.outputs + shared)

        def copy(letters: str) -> str:
            return "".join(letter if letter in kept else letter.upper() for letter in letters)

        pairs = [*self.others, *((copy(letters), factor) for letters, factor in self.others)]
        if self.A is None:
            return pairs
        letters, A = self.A
        both = "".join(letter for letter in letters if letter not in self.equation.outputs)
        return [*pairs, (both + both.upper(), contract([(letters, A), (copy(letters), A)], both + both.upper()))]

    def _bond_gram(self) -> Tensor:
        """Products of the others, summed over all but this factor's bonds, as if no input knew of another."""
        capitals = self.bonds.upper()
        gram = contract(self._twice(self.equation.inputs), self.bonds + capitals)
        return gram.reshape(self.count(self.bonds), -1)

    def solved(self) -> Tensor:
        """The exact solution, from the whole matrix."""
        order = self.outs + self.held + self.bonds
        if isinstance(self.metric, Identity):  # no input knows of another: one system for all of them
            H = self.bond_gram
        else:
            sigma = self.equation.inputs + self.equation.inputs.upper(), self._sigma()
            coupled = self.held + self.bonds
            H = contract([sigma, *self._twice("")], coupled + coupled.upper()).reshape(self.rows, self.rows)
        H = H + self.p * torch.eye(len(H), dtype=H.dtype, device=H.device)
        right, before = (torch.einsum(f"{self.letters}->{order}", x).reshape(-1, len(H)) for x in (self.right, self.f))
        return self._back(torch.cholesky_solve((right + self.p * before).mT, cholesky(H)).mT, order)

    def _sigma(self) -> Tensor:
        return self.metric.dense().reshape(*self.modes, *self.modes)

    def descended(self, steps: int) -> Tensor:
        """Some steps of conjugate gradients from where the factor is; the proximal term has no gradient there."""
        L_held, diagonal = cholesky(self.marginal, 1e-6), self.bond_gram.diagonal()
        diagonal = diagonal.clamp_min(max(1e-6 * float(diagonal.mean()), torch.finfo(diagonal.dtype).tiny))
        small = len(diagonal) <= DIRECT_ROWS  # of a larger matrix the diagonal has to do
        L_bonds = cholesky(self.bond_gram, 1e-6) if small else None
        order = self.outs + self.held + self.bonds

        def precondition(x: Tensor) -> Tensor:
            flat = torch.einsum(f"{self.letters}->{order}", x).reshape(-1, len(L_held), len(diagonal))
            solved = torch.cholesky_solve(flat, L_held)
            solved = solved / diagonal if L_bonds is None else torch.cholesky_solve(solved.mT, L_bonds).mT
            return self._back(solved, order)

        if isinstance(self.metric, Identity) and small:  # there the preconditioner is the inverse
            return self.f + precondition(self.right - self._normal(self.f))
        return conjugate_gradients(self._apply, precondition, self.f, self.right - self._normal(self.f), steps)

    def _apply(self, x: Tensor) -> Tensor:
        return self._normal(x) + self.p * x

    def _normal(self, x: Tensor) -> Tensor:
        """`J^T (I kron Sigma) J x`: the kernel on a basis of the outputs, times Sigma, and back."""
        terms, outputs = [*self.others, (self.letters, x)], self.equation.outputs
        back = list(self.others)
        if self.A is not None:
            letters, A = self.A
            outputs = "".join(letter for letter in letters if letter not in self.equation.outputs)
            V = contract(terms, outputs + self.equation.inputs)
            A_TM = torch.einsum(f"{letters}->{self.equation.outputs}{outputs}", A).reshape(-1, self.count(outputs))
            VS = (A_TM.mT @ A_TM) @ self.metric.times(V.reshape(-1, self.metric.dim))
        else:
            V = contract(terms, outputs + self.equation.inputs)
            VS = self.metric.times(V.reshape(-1, self.metric.dim))
        spread = VS.reshape(*(self.sizes[letter] for letter in outputs), *self.modes)
        return contract([(outputs + self.equation.inputs, spread), *back], self.letters)

    def _back(self, x: Tensor, order: str) -> Tensor:
        return torch.einsum(f"{order}->{self.letters}", x.reshape([self.sizes[letter] for letter in order]))
