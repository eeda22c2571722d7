"""Split a tensor by truncated singular value decompositions: the start of a tensor network's fit.

Letters: M, N rows and columns of an unfolding, R rank.

Sources: Oseledets, "Tensor-Train Decomposition", 2011 (one unfolding after the other); Zhao, Zhou, Xie, Zhang,
Cichocki, "Tensor Ring Decomposition", 2016, arXiv 1606.05535 (the ring opened at its first bond).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .symmetric import eigh


def leading(X_MN: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best `U V` of at most a rank in the Frobenius norm, `U` with orthonormal columns."""
    if X_MN.shape[0] <= X_MN.shape[1]:
        U_MR = eigh(X_MN @ X_MN.mT)[1][:, :rank]
        return U_MR, U_MR.mT @ X_MN
    V_NR = eigh(X_MN.mT @ X_MN)[1][:, :rank]
    U_MR, R_RR = torch.linalg.qr(X_MN @ V_NR)
    return U_MR, R_RR @ V_NR.mT


def split(X_MN: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """As `leading`, with zeros beyond the full rank."""
    U_MR, V_RN = leading(X_MN, rank)
    if missing := rank - len(V_RN):
        U_MR = torch.cat([U_MR, U_MR.new_zeros(len(U_MR), missing)], dim=1)
        V_RN = torch.cat([V_RN, V_RN.new_zeros(missing, V_RN.shape[1])])
    return U_MR, V_RN


def train(X: Tensor, ranks: Sequence[int]) -> list[Tensor]:
    """Factors of a chain over the modes of `X`: (n1, r1), (r1, n2, r2), ..., (rk, nd).

    Args:
        X: d modes.
        ranks: of the d - 1 bonds.
    """
    sizes, factors, rest, left = X.shape, [], X, 1
    for place, rank in enumerate(ranks):
        U, rest = split(rest.reshape(left * sizes[place], -1), rank)
        factors.append(U.reshape(*([left] if place else []), sizes[place], rank))
        left = rank
    return [*factors, rest.reshape(left, sizes[-1])]


def ring(X: Tensor, closing: int, ranks: Sequence[int]) -> list[Tensor]:
    """Factors of a ring over the modes of `X`: (x, n1, r1), (r1, n2, r2), ..., (rk, nd, x).

    Args:
        X: d modes, at least 3.
        closing: x, the bond between the first and the last mode.
        ranks: of the d - 1 other bonds.
    """
    sizes = X.shape
    U, rest = split(X.reshape(sizes[0], -1), closing * ranks[0])
    first = U.reshape(sizes[0], closing, ranks[0]).movedim(1, 0)
    opened = rest.reshape(closing, ranks[0], *sizes[1:]).movedim(0, -1)  # r1, n2, ..., nd, x
    opened = opened.reshape(ranks[0] * sizes[1], *sizes[2:-1], sizes[-1] * closing)
    second, *others = train(opened, ranks[1:])
    second = second.reshape(ranks[0], sizes[1], *second.shape[1:])
    *middle, last = [second, *others]
    return [first, *middle, last.reshape(*last.shape[:-1], sizes[-1], closing)]


def terms(X: Tensor, rank: int) -> list[Tensor]:
    """Factors (n_k, rank) of a sum of rank-one terms: the largest terms of nested decompositions.

    The smallest modes are split off first, until matrices are left; all terms together would be exact.
    """
    order = sorted(range(X.dim()), key=lambda mode: X.shape[mode])
    weights, parts = _nested(X.permute(order), rank)
    kept = weights.argsort(descending=True, stable=True)[:rank]
    factors = [part[:, kept] for part in parts]
    factors[0] = factors[0] * weights[kept]
    if missing := rank - len(kept):
        factors = [torch.cat([factor, factor.new_zeros(len(factor), missing)], dim=1) for factor in factors]
    return [factors[order.index(mode)] for mode in range(X.dim())]


def paired(X: Tensor, rank: int) -> list[Tensor]:
    """Factors (n_k, rank) of a sum of rank-one terms, the r-th from the r-th leading vectors of the first two modes.

    Between these two vectors `X` is a tensor of the other modes, of which the largest rank-one term is kept. Sweeps
    from here reach the same errors as from `terms`, and sooner with hundreds of terms.

    Args:
        X: at least 3 modes, the first two of size `rank` or more.
        rank: number of terms.
    """
    bases = [split(X.movedim(mode, 0).flatten(1), rank)[0] for mode in (0, 1)]
    rest = torch.einsum("tc...,tr,cr->r...", X, *bases)
    factors = []
    while rest.dim() > 2:
        U, S, Vh = torch.linalg.svd(rest.flatten(2), full_matrices=False)
        factors.append(U[:, :, 0].mT)
        rest = (S[:, :1] * Vh[:, 0]).reshape(rank, *rest.shape[2:])
    return [*bases, *factors, rest.mT]


def _nested(X: Tensor, rank: int) -> tuple[Tensor, list[Tensor]]:
    """Weights and factors of unit rank-one terms."""
    U, V = split(X.flatten(1), min(rank, X.shape[0], math.prod(X.shape[1:])))
    if X.dim() == 2:
        weights = torch.linalg.vector_norm(V, dim=1)
        return weights, [U, (V / weights.clamp_min(torch.finfo(V.dtype).tiny)[:, None]).mT]
    weights, firsts, rests = [], [], []
    for u, v in zip(U.mT, V, strict=True):
        inner, parts = _nested(v.reshape(X.shape[1:]), rank)
        weights.append(inner)
        firsts.append(u[:, None].expand(-1, len(inner)))
        rests.append(parts)
    joined = [torch.cat(columns, dim=1) for columns in zip(*rests, strict=True)]
    return torch.cat(weights), [torch.cat(firsts, dim=1), *joined]
