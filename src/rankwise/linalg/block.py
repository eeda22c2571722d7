"""Least squares in one factor of a multilinear kernel: exactly, or by conjugate gradients from the current factor.

The preconditioner is that of `tucker2_steps` for any equation: it takes the inputs that a factor holds as independent
of all others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from .conjugate import SINGLE_PRECISION, conjugate_gradients
from .equation import Equation, arranged, contract
from .metric import Identity, Metric
from .symmetric import cholesky

# Matrices of at most this many rows are decomposed in the weight metric and for preconditioners.
IDENTITY_ROWS = 2048

Operation = Callable[[Tensor], Tensor]


class BlockProblem(Protocol):
    """What a block needs to know of the fit: see `multilinear.Solver`."""

    equation: Equation
    metric: Metric
    proximal: float
    WS_TD: Tensor

    @property
    def rounded(self) -> Metric: ...

    def projected(self, A: Tensor, letters: str) -> Tensor: ...


class Block:
    """Least squares in one factor `f`: `(J^T (I kron Sigma) J + p I) f = J^T vec(W Sigma) + p f_before`.

    The letters of the factor are of three kinds. `outs` are output modes: the system is the same for each. `held` are
    input modes and `bonds` all others: the system couples both. Products are contracted in the order that makes the
    smallest tensors.
    """

    def __init__(self, problem: BlockProblem, factors: Sequence[Tensor], k: int) -> None:
        self.equation, self.metric = problem.equation, problem.metric
        self.letters, self.f = self.equation.factors[k], factors[k]
        self.outs = "".join(letter for letter in self.letters if letter in self.equation.outputs)
        self.held = "".join(letter for letter in self.equation.inputs if letter in self.letters)
        self.bonds = "".join(letter for letter in self.letters if letter not in self.equation.kernel)
        terms = list(zip(self.equation.factors, factors, strict=True))
        self.sizes = {letter: size for term, factor in terms for letter, size in zip(term, factor.shape, strict=True)}
        self.modes = [self.sizes[letter] for letter in self.equation.inputs]
        self.rows = self.count(self.held + self.bonds)
        last = self.equation.output_factor
        letters = self.equation.factors[last] if last is not None else ""
        bonds = "".join(letter for letter in letters if letter not in self.equation.outputs)
        # If one factor A holds all outputs, the kernel is `A M` and `J` needs A only as `A^T A` (bonds x bonds) and
        # `A^T W Sigma`. All later products then have one row per bond state instead of one per output, which pays
        # where A has no more columns than rows.
        if last is not None and self.count(bonds) <= self.count(self.equation.outputs):
            A = terms.pop(last)[1]
            self.reached, pair = bonds, ((letters, A), (self._copied(letters, ""), A))
            self.A_gram: Tensor | None = contract(pair, bonds + bonds.upper())
            WS = problem.projected(A, letters)
        else:
            self.reached, self.A_gram, WS = self.equation.outputs, None, problem.WS_TD
        self.others = [term for term in terms if term[0] != self.letters]
        states = [self.sizes[letter] for letter in self.reached]
        self.WS = self.reached + self.equation.inputs, WS.reshape(*states, *self.modes)
        self.grams = self._grams()
        marginal = self.metric.marginal(self.modes, [self.equation.inputs.index(letter) for letter in self.held])
        self.marginal = marginal
        self.problem = problem
        # Relative to the mean diagonal of the normal matrix, taken as `marginal kron grams`.
        means = [float(gram.diagonal().mean()) for _, gram in self.grams]
        self.p = problem.proximal * math.prod(means) * float(marginal.diagonal().mean())

    @cached_property
    def right(self) -> Tensor:
        """`J^T vec(W Sigma)`."""
        return contract([self.WS, *self.others], self.letters)

    def count(self, letters: str) -> int:
        return math.prod(self.sizes[letter] for letter in letters)

    def _copied(self, letters: str, shared: str) -> str:
        """Letters of a factor's copy in `J^T J`: capitals, except for what is summed over: outputs and `shared`."""
        kept = self.equation.outputs + shared
        return "".join(letter if letter in kept else letter.upper() for letter in letters)

    def _twice(self, shared: str) -> list[tuple[str, Tensor]]:
        """The other factors and their copies."""
        pairs = [*self.others, *((self._copied(letters, shared), factor) for letters, factor in self.others)]
        return pairs if self.A_gram is None else [*pairs, (self.reached + self.reached.upper(), self.A_gram)]

    def _grams(self) -> list[tuple[str, Tensor]]:
        """Gram matrices of the other factors over this factor's bonds, as if Sigma were the identity.

        Bonds that no product connects have a matrix each; the whole is the Kronecker product of these.
        """
        left = self._twice(self.equation.inputs)
        grams: list[tuple[str, Tensor]] = []
        for bond in self.bonds:
            if any(bond in bonds for bonds, _ in grams):
                continue
            # Grow the set of letters from this bond until no term shares a letter with it.
            reached, part = {bond}, []
            while joined := [term for term in left if reached & set(term[0])]:
                left = [term for term in left if not reached & set(term[0])]
                part += joined
                reached.update(*(letters for letters, _ in joined))
            bonds = "".join(letter for letter in self.bonds if letter in reached)
            gram = contract(part, bonds + bonds.upper()).reshape(self.count(bonds), -1)
            grams.append((bonds, gram))
        if left:  # terms connected with no bond are a number
            grams[0] = grams[0][0], grams[0][1] * float(contract(left, ""))
        return grams

    def solved(self) -> Tensor:
        """The exact solution, up to the proximal term."""
        if isinstance(self.metric, Identity):  # the normal matrix is the Kronecker product of the grams
            missed = self.right - self._along(self.f, [gram.matmul for _, gram in self.grams])
            return self.f + self._along(missed, [_inverse(gram, self.problem.proximal) for _, gram in self.grams])
        coupled = self.held + self.bonds
        pair = self.equation.inputs + self.equation.inputs.upper()
        sigma = pair, self.metric.dense().reshape(*self.modes, *self.modes)
        H = contract([sigma, *self._twice("")], coupled + coupled.upper()).reshape(self.rows, self.rows)
        H = H + self.p * torch.eye(len(H), dtype=H.dtype, device=H.device)
        order = self.outs + coupled
        right, before = (arranged(x, self.letters, order).reshape(-1, len(H)) for x in (self.right, self.f))
        solved = torch.cholesky_solve((right + self.p * before).mT, cholesky(H)).mT
        return arranged(solved.reshape([self.sizes[letter] for letter in order]), order, self.letters)

    def descended(self, steps: int) -> Tensor:
        """Some conjugate gradient steps from the current factor, where the proximal term has no gradient."""
        missed = self.right - self._normal(self.f)
        if self.metric.dim >= SINGLE_PRECISION:
            self._round()
        precondition = self.preconditioner(self.marginal.dtype)
        missed = missed.to(self.marginal.dtype)
        return self.f + conjugate_gradients(self._apply, precondition, torch.zeros_like(missed), missed, steps)

    def preconditioner(self, dtype: torch.dtype) -> Operation:
        """The inverse of `marginal kron grams`: the normal matrix if held inputs were independent of all others."""
        inverses = [_inverse(part.to(dtype), 1e-6) for part in (self.marginal, *(gram for _, gram in self.grams))]
        return lambda x: self._along(x, inverses)

    def _round(self) -> None:
        """Everything the steps multiply with, in single precision: enough for a correction."""
        self.metric, self.marginal = self.problem.rounded, self.marginal.float()
        self.others = [(letters, factor.float()) for letters, factor in self.others]
        self.grams = [(bonds, gram.float()) for bonds, gram in self.grams]
        self.A_gram = None if self.A_gram is None else self.A_gram.float()

    def _along(self, x: Tensor, operations: Sequence[Operation]) -> Tensor:
        """A Kronecker product of operations: one per group of bonds, before them one for the held inputs if there."""
        order = self.outs + self.held + "".join(bonds for bonds, _ in self.grams)
        groups = [self.held, *(bonds for bonds, _ in self.grams)][-len(operations) :]
        x = arranged(x, self.letters, order)
        moved = x.reshape(-1, *(self.count(group) for group in groups))
        for axis, operation in enumerate(operations, start=1):
            first = moved.movedim(axis, 0)
            moved = operation(first.flatten(1)).reshape(first.shape).movedim(0, axis)
        return arranged(moved.reshape(x.shape), order, self.letters)

    def _apply(self, x: Tensor) -> Tensor:
        return self._normal(x) + self.p * x

    def _normal(self, x: Tensor) -> Tensor:
        """`J^T (I kron Sigma) J x`: to a kernel on the reached outputs, times Sigma, and back."""
        kernel = self.reached + self.equation.inputs
        V = contract([*self.others, (self.letters, x)], kernel)
        VS = self.metric.times(V.reshape(-1, self.metric.dim))
        if self.A_gram is not None:
            VS = self.A_gram.reshape(len(VS), -1) @ VS
        return contract([(kernel, VS.reshape(V.shape)), *self.others], self.letters)


def _inverse(S_NN: Tensor, damping: float) -> Operation:
    """The inverse of a damped matrix; for a large matrix, the inverse of its diagonal."""
    if len(S_NN) <= IDENTITY_ROWS:
        root = cholesky(S_NN, max(damping, 1e-12))
        return lambda x: torch.cholesky_solve(x, root)
    diagonal = S_NN.diagonal()
    least = max(damping * float(diagonal.mean()), torch.finfo(S_NN.dtype).tiny)
    return lambda x: x / diagonal.clamp_min(least)[:, None]
