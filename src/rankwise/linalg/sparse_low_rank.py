"""A low rank for all rows and columns, and further ranks for important ones: a sum of nested blocks of low rank.

`min ||Z - sum_l E_l U_l V_l F_l^T||_F`, where level l has rank `R_l` and holds the first `rows_l` rows and the first
`columns_l` columns of Z. The first level usually holds everything; two levels are the form of the paper, more are a
staircase. Rows and columns are sorted, the most important first. Z may be the weight times a lower triangular root of
a metric (`sorting`), so no metric appears here.

Letters: T rows, D columns, R rank of a level, N ranks of all levels together.

Source: Swaminathan, Garg, Kannan, Andres, "Sparse low rank factorization for deep neural network compression", 2020,
Neurocomputing 398 (the form, masked); the least-squares fit of it is our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from .splitting import leading
from .symmetric import cholesky, orthonormal

# Sweeps over all factors for each start, and at most for the best start.
FIRST_SWEEPS, MOST_SWEEPS = 3, 40
# Sweeps end when the error falls by less than this fraction.
TOLERANCE = 1e-3
# Levels can grow while they cancel each other, and a best fit need not exist. So sweeps end when the energies of all
# levels add up to this many times the energy of the matrix. No random matrix tried had a larger error for it.
BOUND = 3.0
# Relative to the mean curvature: keeps a step defined, and shortens it, so that the error never grows.
DAMPING = 1e-10


class Level(NamedTuple):
    """One term: its rank, and how many leading rows and columns it holds."""

    rank: int
    rows: int
    columns: int


class Nested(NamedTuple):
    """A sum of nested blocks: for each level `U`, rows x R, and `V`, R x columns."""

    U: list[Tensor]
    V: list[Tensor]

    def add(self, U_tR: Tensor, V_Rd: Tensor) -> None:
        """Add a level."""
        self.U.append(U_tR)
        self.V.append(V_Rd)

    def energy(self) -> float:
        """Sum of the energies of the levels; more than the energy of the sum if levels cancel."""
        return sum(float(((U.mT @ U) * (V @ V.mT)).sum()) for U, V in zip(self.U, self.V, strict=True))

    def dense(self, like_TD: Tensor) -> Tensor:
        """The sum, in the shape of a matrix."""
        total_TD = torch.zeros_like(like_TD)
        for U_tR, V_Rd in zip(self.U, self.V, strict=True):
            total_TD[: len(U_tR), : V_Rd.shape[1]] += U_tR @ V_Rd
        return total_TD


def masked(Z_TD: Tensor, levels: Sequence[Level]) -> Nested:
    """The paper's factors: the truncated SVD, with further components cut to the important neurons.

    Example:
        >>> Z = torch.eye(3, dtype=torch.float64) * torch.tensor([3.0, 2.0, 1.0])
        >>> masked(Z, [Level(1, 3, 3), Level(1, 1, 1)]).dense(Z).diagonal().tolist()
        [3.0, 0.0, 0.0]
    """
    N = sum(level.rank for level in levels)
    U_TN, V_ND = leading(Z_TD, min(N, *Z_TD.shape))
    U_TN, V_ND = _widened(U_TN, N), _widened(V_ND.mT, N).mT
    result, done = Nested([], []), 0
    for rank, rows, columns in levels:
        result.add(U_TN[:rows, done : done + rank], V_ND[done : done + rank, :columns])
        done += rank
    return result


def shortened(nested: Nested) -> Nested:
    """The same blocks, with no more rank than each can hold."""
    result = Nested([], [])
    for U_tR, V_Rd in zip(nested.U, nested.V, strict=True):
        most = min(len(U_tR), V_Rd.shape[1])
        result.add(*((U_tR, V_Rd) if len(V_Rd) <= most else leading(U_tR @ V_Rd, most)))
    return result


def deflated(Z_TD: Tensor, levels: Sequence[Level]) -> Nested:
    """Level after level, the best factors of what earlier levels leave."""
    result, rest_TD = Nested([], []), Z_TD.clone()
    for rank, rows, columns in levels:
        U_tR, V_Rd = leading(rest_TD[:rows, :columns], rank)
        rest_TD[:rows, :columns] -= U_tR @ V_Rd
        result.add(U_tR, V_Rd)
    return result


def peeled(Z_TD: Tensor, levels: Sequence[Level]) -> Nested:
    """Level after level, from the rows and columns that later levels do not touch; exact if Z has the form.

    Rows and columns outside the next block show one level alone. They span its factors; the coefficients between these
    are fitted to the rows below the next block.
    """
    result, rest_TD = Nested([], []), Z_TD.clone()
    for (rank, rows, columns), (_, next_rows, next_columns) in pairwise([*levels, Level(0, 0, 0)]):
        block_td = rest_TD[:rows, :columns]
        below, beside = block_td[next_rows:], block_td[:, next_columns:]
        if rank > min(below.shape[0], beside.shape[1]):  # too few to show all directions
            U_tR, V_Rd = leading(block_td, rank)
        else:
            # `U C V`: column space of the strip beside the next block, row space of the strip below it.
            U_tR, V_Rd = leading(beside, rank)[0], leading(below.mT, rank)[0].mT
            C_RR = torch.linalg.pinv(U_tR[next_rows:], rtol=1e-9) @ below @ V_Rd.mT
            V_Rd = C_RR @ V_Rd
        rest_TD[:rows, :columns] -= U_tR @ V_Rd
        result.add(U_tR, V_Rd)
    return result


def fit(Z_TD: Tensor, levels: Sequence[Level]) -> tuple[Nested, float]:
    """The sum of nested blocks closest to Z, from the best of three starts; no worse than any of them.

    Each half of a sweep solves for the factors of one side in all levels together, exactly.

    Args:
        Z_TD: matrix, T x D, float64, with rows and columns sorted.
        levels: from the largest block to the smallest, each inside the one before it.

    Returns:
        The factors, and the squared error `||Z - V||_F^2`.

    Example:
        >>> Z = torch.ones(4, 4, dtype=torch.float64)
        >>> Z[:2, :2] += 5 * torch.eye(2)
        >>> nested, error = fit(Z, [Level(1, 4, 4), Level(2, 2, 2)])
        >>> error < 1e-18
        True
    """
    used = [level for level in levels if level.rank]
    best: tuple[Nested, float] | None = None
    for start in (masked, deflated, peeled):
        nested = start(Z_TD, used)
        if nested.energy() > BOUND * float(Z_TD.square().sum()):
            continue
        nested, error = improve(Z_TD, nested, FIRST_SWEEPS)
        if best is None or error < best[1]:
            best = nested, error
        if error <= 1e-24 * float(Z_TD.square().sum()):
            break
    assert best is not None
    nested, error = improve(Z_TD, best[0], MOST_SWEEPS)
    U, V = iter(nested.U), iter(nested.V)
    everywhere = Nested([], [])
    for rank, rows, columns in levels:
        everywhere.add(*((next(U), next(V)) if rank else (Z_TD.new_zeros(rows, 0), Z_TD.new_zeros(0, columns))))
    return everywhere, error


def improve(Z_TD: Tensor, nested: Nested, sweeps: int) -> tuple[Nested, float]:
    """Alternating least squares: all factors at the rows, then all at the columns; the error never grows."""
    total = float(Z_TD.square().sum())
    rest_TD = Z_TD - nested.dense(Z_TD)
    error = float(rest_TD.square().sum())
    for _ in range(sweeps):
        if error <= 1e-26 * total:
            break
        U, V = list(nested.U), list(nested.V)
        _solve(rest_TD, U, V)
        turned = [part.mT for part in V], [part.mT for part in U]
        _solve(rest_TD.mT, *turned)
        other = Nested([part.mT for part in turned[1]], [part.mT for part in turned[0]])
        rest_TD = Z_TD - other.dense(Z_TD)
        after = float(rest_TD.square().sum())
        if after > error or other.energy() > BOUND * total:
            break
        slow = error - after <= TOLERANCE * error
        nested, error = other, after
        if slow:
            break
    return nested, error


def _solve(rest_TD: Tensor, U: list[Tensor], V: list[Tensor]) -> None:
    """Set all factors at the rows to their optimum, in place; `rest_TD` follows.

    Rows with the same levels (a band) share one system, of the rank of these levels together.
    """
    for level, V_Rd in enumerate(V):  # orthonormal rows for the best condition of the equations
        Q_dR = orthonormal(V_Rd.mT)
        U[level] = U[level] @ (V_Rd @ Q_dR)  # a new tensor: the given ones stay unchanged
        V[level] = Q_dR.mT
    for first, last, count in bands([len(part) for part in U]):
        V_ND = torch.cat([_widened(part, rest_TD.shape[1]) for part in V[:count]])
        gram_NN = V_ND @ V_ND.mT
        change_TN = torch.cholesky_solve(V_ND @ rest_TD[first:last].mT, cholesky(gram_NN, DAMPING)).mT
        for level, change_TR in enumerate(change_TN.split([len(part) for part in V[:count]], 1)):
            U[level] = torch.cat([U[level][:first], U[level][first:last] + change_TR, U[level][last:]])
        rest_TD[first:last] -= change_TN @ V_ND


def bands(sizes: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """First row, end, and number of levels of each band of rows with the same levels."""
    for count in range(len(sizes), 0, -1):
        first, last = (sizes[count] if count < len(sizes) else 0), sizes[count - 1]
        if last > first:
            yield first, last, count


def _widened(V_Rd: Tensor, columns: int) -> Tensor:
    return torch.cat([V_Rd, V_Rd.new_zeros(len(V_Rd), columns - V_Rd.shape[1])], 1)
