"""Least squares in one factor of a multilinear kernel: the exact solution, or conjugate gradients from where it is.

The preconditioner is that of `tucker2` for any equation: as if the inputs that a factor holds did not depend on others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from .conjugate import conjugate_gradients
from .equation import Equation, contract
from .metric import Identity, Metric
from .symmetric import cholesky

# A matrix of at most this many rows is decomposed where one system serves many inputs, and for a preconditioner.
IDENTITY_ROWS = 1024


class Problem(Protocol):
    """What is fitted: `W Sigma`, and the same with the outputs summed over the output factor."""

    equation: Equation
    metric: Metric
    proximal: float
    WS_TD: Tensor

    def projected(self, A: Tensor, letters: str) -> Tensor: ...


class Block:
    """Least squares in one factor `f`: `(J^T (I kron Sigma) J + p I) f = J^T vec(W Sigma) + p f_before`.

    Of the letters of the factor, `outs` are output modes, each with the same system; `held` are input modes and `bonds`
    the rest, which the system couples. Everything is contracted in whatever order makes the smallest tensors.
    """

    def __init__(self, problem: Problem, factors: Sequence[Tensor], k: int) -> None:
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
        self.others = [term for number, term in enumerate(terms) if number not in (k, last)]
        # With an output factor only the span of its columns is reached: outputs are summed over it, once and for all.
        self.reached, self.A_gram = self.equation.outputs, None
        if last is None:
            WS = problem.WS_TD
        else:
            letters, A = terms[last]
            self.reached = "".join(letter for letter in letters if letter not in self.equation.outputs)
            pair = (letters, A), (self._copied(letters, ""), A)
            self.A_gram = contract(pair, self.reached + self.reached.upper())
            WS = problem.projected(A, letters)
        states = [self.sizes[letter] for letter in self.reached]
        right = self.reached + self.equation.inputs, WS.reshape(*states, *self.modes)
        self.right = contract([right, *self.others], self.letters)
        self.grams = self._grams()
        marginal = self.metric.marginal(self.modes, [self.equation.inputs.index(letter) for letter in self.held])
        self.marginal = marginal
        means = [float(gram.diagonal().mean()) for _, gram in self.grams]
        self.p = problem.proximal * math.prod(means) * float(marginal.diagonal().mean())
        # In the weight metric one system of the bonds solves for all inputs.
        self.exact = len(self.grams) == 1 and len(self.grams[0][1]) <= IDENTITY_ROWS

    def count(self, letters: str) -> int:
        return math.prod(self.sizes[letter] for letter in letters)

    def _copied(self, letters: str, shared: str) -> str:
        """Letters of a factor's copy: capitals, but for the outputs and `shared`."""
        kept = self.equation.outputs + shared
        return "".join(letter if letter in kept else letter.upper() for letter in letters)

    def _twice(self, shared: str) -> list[tuple[str, Tensor]]:
        """The other factors and their copies."""
        pairs = [*self.others, *((self._copied(letters, shared), factor) for letters, factor in self.others)]
        return pairs if self.A_gram is None else [*pairs, (self.reached + self.reached.upper(), self.A_gram)]

    def _grams(self) -> list[tuple[str, Tensor]]:
        """Products of the others, summed over all but this factor's bonds, as if no input knew of another.

        Bonds that nothing connects then have a matrix of their own each; the whole is their Kronecker product.
        """
        left = self._twice(self.equation.inputs)
        grams: list[tuple[str, Tensor]] = []
        for bond in self.bonds:
            if any(bond in bonds for bonds, _ in grams):
                continue
            reached, part = {bond}, []
            while joined := [term for term in left if reached & set(term[0])]:
                left = [term for term in left if not reached & set(term[0])]
                part += joined
                reached.update(*(letters for letters, _ in joined))
            bonds = "".join(letter for letter in self.bonds if letter in reached)
            gram = contract(part, bonds + bonds.upper()).reshape(self.count(bonds), -1)
            grams.append((bonds, gram))
        if left:  # connected with no bond: a number
            grams[0] = grams[0][0], grams[0][1] * float(contract(left, ""))
        return grams

    def solved(self) -> Tensor:
        """The exact solution, from the whole matrix."""
        coupled = self.held + self.bonds
        if isinstance(self.metric, Identity):  # no input knows of another: one system for all of them
            coupled = "".join(bonds for bonds, _ in self.grams)
            H = reduce(torch.kron, [gram for _, gram in self.grams])
            order = self.outs + self.held + coupled
        else:
            pair = self.equation.inputs + self.equation.inputs.upper()
            sigma = pair, self.metric.dense().reshape(*self.modes, *self.modes)
            H = contract([sigma, *self._twice("")], coupled + coupled.upper()).reshape(self.rows, self.rows)
            order = self.outs + coupled
        H = H + self.p * torch.eye(len(H), dtype=H.dtype, device=H.device)
        right, before = (torch.einsum(f"{self.letters}->{order}", x).reshape(-1, len(H)) for x in (self.right, self.f))
        return self._back(torch.cholesky_solve((right + self.p * before).mT, cholesky(H)).mT, order)

    def descended(self, steps: int) -> Tensor:
        """Some steps of conjugate gradients from where the factor is; the proximal term has no gradient there."""
        order = self.outs + self.held + "".join(bonds for bonds, _ in self.grams)
        # Of a matrix that is too large its diagonal has to do.
        parts = [self.marginal, *(gram for _, gram in self.grams)]
        roots = [cholesky(part, 1e-6) if len(part) <= IDENTITY_ROWS else part.diagonal() for part in parts]

        def precondition(x: Tensor) -> Tensor:
            solved = torch.einsum(f"{self.letters}->{order}", x).reshape(-1, *(len(root) for root in roots))
            for axis, root in enumerate(roots, start=1):
                moved = solved.movedim(axis, 0).flatten(1)
                if root.dim() == 2:
                    moved = torch.cholesky_solve(moved, root)
                else:
                    least = max(1e-6 * float(root.mean()), torch.finfo(root.dtype).tiny)
                    moved = moved / root.clamp_min(least)[:, None]
                shape = [solved.shape[axis], *(size for d, size in enumerate(solved.shape) if d != axis)]
                solved = moved.reshape(shape).movedim(0, axis)
            return self._back(solved, order)

        return conjugate_gradients(self._apply, precondition, self.f, self.right - self._normal(self.f), steps)

    def _apply(self, x: Tensor) -> Tensor:
        return self._normal(x) + self.p * x

    def _normal(self, x: Tensor) -> Tensor:
        """`J^T (I kron Sigma) J x`: the kernel on the reached outputs, times Sigma, and back."""
        kernel = self.reached + self.equation.inputs
        V = contract([*self.others, (self.letters, x)], kernel)
        VS = self.metric.times(V.reshape(-1, self.metric.dim))
        if self.A_gram is not None:
            VS = self.A_gram.reshape(len(VS), -1) @ VS
        return contract([(kernel, VS.reshape(V.shape)), *self.others], self.letters)

    def _back(self, x: Tensor, order: str) -> Tensor:
        return torch.einsum(f"{order}->{self.letters}", x.reshape([self.sizes[letter] for letter in order]))
