"""Leading eigenvectors of a large matrix, to a given accuracy of the sum of the eigenvalues left out.

Chebyshev-filtered subspace iteration. With all eigenvalues known, a polynomial that is small on those to leave out
turns random vectors towards the leading ones; the best of what they span (Rayleigh-Ritz) is compared with the optimum,
which is known too. Eigenvectors need not converge: those whose eigenvalues are alike may take each other's place. So
few products with the matrix are enough, and a decomposition of all of it costs several times as much.

Letters: N order of the matrix, R rank, M > R vectors that are iterated, K leading directions taken out before.

Sources: Zhou, Saad, Tiago, Chelikowsky, "Self-consistent-field calculations using Chebyshev-filtered subspace
iteration", 2006, Journal of Computational Physics 219 (the filter); Winkelmann, Springer, Di Napoli, "ChASE: Chebyshev
Accelerated Subspace iteration Eigensolver for sequences of Hermitian eigenvalue problems", 2019, arXiv 1805.10121.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .symmetric import product

# The sum of the eigenvalues left out is at most this much, relatively, above the least. It is a sum of at most N
# numbers, so one more rank lowers it by a part of at least 1 / N: below ten thousand, more rank is never worse.
TOLERANCE = 1e-4
# Vectors beyond the rank, relative to it, and at least. With more of them fewer products do, at the same cost together.
MORE, LEAST = 0.25, 32
# From this part of all vectors on, a full decomposition is cheaper; and where so many products with all of them are
# not enough.
MOST, MOST_PRODUCTS = 0.6, 24
# The filter raises the eigenvalue at the rank so much over those to leave out. For random weights and inputs of many
# spectra the sum then ends at 0.1 to 0.8 of the tolerance.
GAIN = 100.0
# No pass raises an eigenvalue by more than this many units of the last digit.
RANGE = 2.0
# Directions taken out before, else a few large eigenvalues would drown all others in rounding: at most so many, found
# by so many products, and only those whose residual is below this part of the eigenvalues to leave out.
TAKEN_OUT, TURNS, RESIDUAL = 32, 4, 1e-2
# Differences below this part of the sum are rounding errors in float64.
ROUNDING = 1e-13
# Passes that are added where the tolerance is missed.
REPEATS = 2


def leading(K_NN: Tensor, values_N: Tensor, rank: int) -> tuple[Tensor, float] | None:
    """Orthonormal vectors that hold as much of `K` as its leading eigenvectors, to the tolerance.

    `trace(K) - trace(U^T K U) <= (1 + TOLERANCE) sum of values[rank:]`, up to rounding

    Args:
        K_NN: symmetric positive semidefinite, N x N; products run in its precision.
        values_N: its eigenvalues, descending, float64.
        rank: R, between 1 and N.

    Returns:
        U_NR, float64, and `trace(U^T K U)`; None if a full decomposition costs less, or the tolerance is missed.

    Example:
        >>> values = torch.linspace(2.0, 1.0, 400, dtype=torch.float64)
        >>> found = leading(torch.diag(values), values, rank=20)
        >>> found is not None and found[1] > float(values[:20].sum() - 1e-4 * values[20:].sum())
        True
    """
    N, width = len(K_NN), rank + max(math.ceil(MORE * rank), LEAST)
    if width + TAKEN_OUT > MOST * N:
        return None
    best, least = float(values_N[:rank].sum()), float(values_N[rank:].sum())
    allowed = TOLERANCE * least + ROUNDING * best
    # The filter lets through what M vectors can hold, and all that is nearly as large as the last one wanted.
    edge = min(rank + math.ceil(1.1 * (width - rank)), N - 1)
    edge = max(edge, min(int((values_N >= values_N[rank - 1] - 0.1 * allowed / rank).sum()), N - 1))
    # Any direction may take the place of those at the end whose eigenvalues are nearly that of the edge.
    gains_R = (values_N[:rank] - values_N[edge]).flip(0).cumsum(0).flip(0)
    needed = int((gains_R > 0.1 * allowed).sum())
    lead_NK = _lead(K_NN, RESIDUAL * float(values_N[edge]))
    filter = _Filter(K_NN, lead_NK, *values_N[[edge, -1, 0]].tolist())
    largest = values_N[min(lead_NK.shape[1], rank - 1)]
    degrees = filter.degrees(float(largest), float(values_N[needed - 1])) if needed else [1]
    X_NM = _random(K_NN, width)
    for place, degree in enumerate(degrees + degrees[-1:] * REPEATS):
        X_NM = torch.linalg.qr(torch.cat([lead_NK, filter(X_NM[:, -width:], degree)], dim=1)).Q
        if place >= len(degrees) - 1:
            try:
                U_NR, held = _best(K_NN, X_NM, rank)
            except torch.linalg.LinAlgError:
                return None
            if best - held <= allowed:
                return U_NR, held
    return None


class _Filter:
    """Chebyshev polynomials of `K` without some leading directions, at most 1 between two eigenvalues."""

    def __init__(self, K_NN: Tensor, lead_NK: Tensor, upper: float, lower: float, largest: float) -> None:
        self.K_NN, self.lead_NK = K_NN, lead_NK
        self.centre = (upper + lower) / 2
        limits = torch.finfo(K_NN.dtype)
        self.half = max((upper - lower) / 2, limits.eps * largest, limits.tiny)

    def degrees(self, largest: float, wanted: float) -> list[int]:
        """Degrees of successive filters that raise `wanted` by `GAIN` together; none if it takes too many products.

        No filter raises `largest` so much that what it raises less would be lost in rounding.
        """
        far, near = (math.acosh(max((value - self.centre) / self.half, 1.0)) for value in (largest, wanted))
        most = max(1, int(math.log(RANGE / torch.finfo(self.K_NN.dtype).eps) / max(far, 1e-9)))
        for products in range(1, MOST_PRODUCTS + 1):
            passes = -(-products // most)
            degrees = [products // passes + (place < products % passes) for place in range(passes)]
            if sum(math.log(math.cosh(degree * near)) for degree in degrees) >= math.log(GAIN):
                return degrees
        return []

    def __call__(self, Y_NM: Tensor, degree: int) -> Tensor:
        """`T_d(X) Y` with `X = (K - centre) / half`, by `T_(d+1)(X) = 2 X T_d(X) - T_(d-1)(X)`."""
        shift = self.centre / self.half
        before_NM = self._without_lead(Y_NM)
        now_NM = self._without_lead((self.K_NN @ before_NM).div_(self.half).sub_(before_NM, alpha=shift))
        for _ in range(degree - 1):
            before_NM.add_(now_NM, alpha=2 * shift).addmm_(self.K_NN, now_NM, beta=-1, alpha=2 / self.half)
            before_NM, now_NM = now_NM, self._without_lead(before_NM)
        return now_NM

    def _without_lead(self, Y_NM: Tensor) -> Tensor:
        return torch.addmm(Y_NM, self.lead_NK, self.lead_NK.mT @ Y_NM, alpha=-1)


def _random(K_NN: Tensor, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(width)
    return torch.randn(len(K_NN), width, generator=generator, dtype=K_NN.dtype).to(K_NN.device)


def _lead(K_NN: Tensor, residual: float) -> Tensor:
    """The first eigenvectors, as far as a few steps of subspace iteration find them."""
    X_NK = _random(K_NN, TAKEN_OUT)
    for _ in range(TURNS):
        X_NK = torch.linalg.qr(K_NN @ X_NK).Q
    KX_NK = K_NN @ X_NK
    T_KK = X_NK.mT @ KX_NK
    values_K, Z_KK = torch.linalg.eigh((T_KK + T_KK.mT) / 2)
    X_NK, KX_NK = X_NK @ Z_KK, KX_NK @ Z_KK
    return X_NK[:, torch.linalg.vector_norm(KX_NK - X_NK * values_K, dim=0) <= residual]


def _best(K_NN: Tensor, X_NM: Tensor, rank: int) -> tuple[Tensor, float]:
    """The best directions that orthonormal `X` spans, and what they hold: its leading Ritz vectors and values."""
    values_M, Z_MM = torch.linalg.eigh(product(X_NM.mT, (K_NN @ X_NM).mT))
    U_NR = (X_NM @ Z_MM[:, -rank:].flip(1)).double()
    # Orthonormal in float64 too: a step of Newton's method for `U (U^T U)^(-1/2)`, whose change is small.
    change_RR = (torch.eye(rank, dtype=U_NR.dtype, device=U_NR.device) - product(U_NR.mT, U_NR.mT)) / 2
    U_NR += U_NR.to(K_NN.dtype) @ change_RR.to(K_NN.dtype)
    return U_NR, float(values_M[-rank:].double().sum())
