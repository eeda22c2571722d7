"""The normal matrix of one factor of a multilinear kernel, as a Kronecker product: exact in the weight metric.

In other metrics it takes the inputs that a factor holds as independent of all others, and serves as preconditioner.

Letters: G problems.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .equation import BATCH, arranged, contract
from .problems import Problems, root

# Matrices of at most this many rows are decomposed; of larger ones the diagonal is taken.
DECOMPOSED = 2048
# Matrices of at most this many rows are inverted: a product takes a fraction of the time of two triangular solves.
INVERTED = 256

Operation = Callable[[Tensor], Tensor]


class Block:
    """`J^T (I kron Sigma) J` for one factor, with `J` the product of the others, as `I kron moment kron grams`.

    The letters of the factor are of three kinds. `outs` are output modes: the matrix is the same for each. `held` are
    input modes, with their moment. `bonds` have Gram matrices of the other factors, one for each group of bonds that
    no product connects.
    """

    def __init__(self, problems: Problems, factors: Sequence[Tensor], k: int) -> None:
        equation = problems.equation
        self.problems, self.letters = problems, equation.factors[k]
        self.sizes = equation.sizes(factors)
        self.outs = "".join(letter for letter in self.letters if letter in equation.outputs)
        self.held = "".join(letter for letter in equation.inputs if letter in self.letters)
        self.bonds = equation.bonds(self.letters)
        self.others = problems.terms(factors, leaving=k)
        self.moment_GKK = problems.moment(self.sizes, self.held)
        self.grams = self._grams()

    def count(self, letters: str) -> int:
        return math.prod(self.sizes[letter] for letter in letters)

    def _grams(self) -> list[tuple[str, Tensor]]:
        """Gram matrices of the other factors over this factor's bonds, as if Sigma were the identity."""
        kernel = self.problems.equation.kernel
        left = [*self.others, *((self.problems.copied(term, kernel), factor) for term, factor in self.others)]
        grams: list[tuple[str, Tensor]] = []
        for bond in self.bonds:
            if any(bond in bonds for bonds, _ in grams):
                continue
            # Grow the set of letters from this bond until no term shares a letter with it.
            reached, part = {bond}, []
            while joined := [term for term in left if reached & set(term[0])]:
                left = [term for term in left if not reached & set(term[0])]
                part += joined
                reached.update(*(set(letters) - {BATCH} for letters, _ in joined))
            bonds = "".join(letter for letter in self.bonds if letter in reached)
            gram = contract(part, BATCH + bonds + bonds.upper())
            grams.append((bonds, gram.reshape(len(gram), self.count(bonds), -1)))
        if left:  # terms connected with no bond are a number
            grams[0] = grams[0][0], grams[0][1] * contract(left, BATCH)[:, None, None]
        return grams

    def mean(self) -> Tensor:
        """Mean diagonal of the matrix, G numbers."""
        parts = (self.moment_GKK, *(gram for _, gram in self.grams))
        return torch.stack(torch.broadcast_tensors(*(part.diagonal(dim1=1, dim2=2).mean(1) for part in parts))).prod(0)

    def inverse(self, damping: Tensor | float, precision: torch.dtype) -> Operation:
        """The inverse, each part damped."""
        inverses = [_inverse(part.to(precision), damping) for part in (self.moment_GKK, *(g for _, g in self.grams))]
        return lambda x: self._along(x, inverses)

    def solved(self, f: Tensor, right: Tensor, damping: float) -> Tensor:
        """The best factor in the weight metric, from the current one: `J^T J f = right`."""
        missed = right - self._along(f, [gram.matmul for _, gram in self.grams])
        return f + self._along(missed, [_inverse(gram, damping) for _, gram in self.grams])

    def _along(self, x: Tensor, operations: Sequence[Operation]) -> Tensor:
        """A Kronecker product of operations: one per group of bonds, before them one for the held inputs if there."""
        order = BATCH + self.outs + self.held + "".join(bonds for bonds, _ in self.grams)
        groups = [self.held, *(bonds for bonds, _ in self.grams)][-len(operations) :]
        x = arranged(x, BATCH + self.letters, order)
        moved = x.reshape(len(x), -1, *(self.count(group) for group in groups))
        for axis, operation in enumerate(operations, start=2):
            first = moved.movedim(axis, 1)
            moved = operation(first.flatten(2)).reshape(first.shape).movedim(1, axis)
        return arranged(moved.reshape(x.shape), order, BATCH + self.letters)


def _inverse(S_GNN: Tensor, damping: Tensor | float) -> Operation:
    """The inverse of damped matrices; of large ones, of their diagonals."""
    if S_GNN.shape[1] <= DECOMPOSED:
        root_GNN = root(S_GNN, damping)
        if S_GNN.shape[1] > INVERTED:
            return lambda x: torch.cholesky_solve(x, root_GNN)
        return torch.cholesky_inverse(root_GNN).matmul
    diagonal_GN = S_GNN.diagonal(dim1=1, dim2=2)
    added_G = damping * diagonal_GN.mean(1) + torch.finfo(S_GNN.dtype).tiny
    return lambda x: x / (diagonal_GN + added_G[:, None])[:, :, None]
