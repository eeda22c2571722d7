"""The rank of a matrix under Gaussian noise of unknown variance: global analytic empirical variational Bayes.

`Y = B A^T + E`, `E_ij ~ N(0, sigma^2)`: a singular value is kept if it exceeds `sigma sqrt(M x)`, with x from
`threshold_constant`; sigma^2 minimises the free energy, a function of one variable with many local minima.

Letters: L rows, M columns with L <= M, K = L singular values, G values of sigma^2 tried at once.

Sources: Nakajima, Sugiyama, Babacan, Tomioka, "Global Analytic Solution of Fully-observed Variational Bayesian Matrix
Factorization", JMLR 14, 2013; Nakajima, Tomioka, Sugiyama, Babacan, "Condition for Perfect Dimensionality Recovery by
Variational Bayesian PCA", JMLR 16, 2015 (the threshold).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .scalar import local_minimum, root

# Values of sigma^2 on a logarithmic grid, in addition to the break points, before the best bracket is refined.
GRID = 256
# Values of sigma^2 times singular values in one tensor: 64 MB in float64.
AT_ONCE = 1 << 23
# Singular values below this times the size and the largest value are rounding errors of float32 weights.
ROUNDING = 1e-7


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What `evbmf` found.

    Attributes:
        rank: number of singular values above the threshold.
        variance: sigma^2 of the noise, 0 if there is none.
        threshold: singular values above it are kept.
        shrunken_R: the kept singular values, less what the noise added, float64.
    """

    rank: int
    variance: float
    threshold: float
    shrunken_R: Tensor


def evbmf(matrix_LM: Tensor, *, compat: bool = False) -> Noise:
    """Rank and noise of a matrix.

    Args:
        matrix_LM: L x M or M x L, any floating dtype; rows and columns of zeros do not count.
        compat: give what the popular Python port gives, including its dependence on scale and orientation.

    Raises:
        ValueError: if it is not a matrix, or not finite.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> signal = torch.randn(64, 5, generator=generator) @ torch.randn(5, 200, generator=generator)
        >>> evbmf(signal + 0.5 * torch.randn(64, 200, generator=generator)).rank
        5
    """
    if matrix_LM.dim() != 2 or not torch.isfinite(matrix_LM).all():
        raise ValueError(f"a finite matrix is needed, not shape {tuple(matrix_LM.shape)} or values that are not finite")
    matrix_LM = matrix_LM.detach().double()
    if not compat:
        matrix_LM = matrix_LM[matrix_LM.any(1)][:, matrix_LM.any(0)]
    values_K = torch.linalg.svdvals(matrix_LM) if matrix_LM.numel() else matrix_LM.new_zeros(0)
    return evbmf_of(values_K, *matrix_LM.shape, compat=compat)


def evbmf_of(values_K: Tensor, rows: int, columns: int, *, compat: bool = False) -> Noise:
    """`evbmf` of a matrix whose singular values are known.

    Args:
        values_K: all singular values, descending.
        rows, columns: of the matrix, without rows and columns of zeros.
        compat: as for `evbmf`.
    """
    if compat:
        return _compat(values_K.double().cpu(), rows, columns)
    L, M = sorted((rows, columns))
    values_K = values_K.double().cpu()[:L]
    largest = float(values_K[0]) if len(values_K) else 0.0
    if largest == 0:
        return _kept(values_K, L, M, 0.0, 0.0)
    x = threshold_constant(L / M)[1]
    squares_K = (values_K / largest).square()  # the answer must not depend on the scale
    lower, upper = _bounds(squares_K, L, M, x, L)
    if lower < (M * ROUNDING) ** 2 / M:  # no noise: what is above rounding errors is the rank
        return _kept(values_K, L, M, 0.0, largest * M * ROUNDING)
    variance = _least_energy(squares_K / lower, L, M, x, max(upper / lower, 1.0)) * lower
    return _kept(values_K, L, M, variance * largest**2, largest * math.sqrt(M * variance * x))


def threshold_constant(alpha: float, *, exact: bool = True) -> tuple[float, float]:
    """`tau` and `x = (1 + tau) (1 + alpha / tau)` with `log(1 + tau) / tau + alpha / tau log(1 + tau / alpha) = 1`.

    Args:
        alpha: L / M, above 0 and at most 1 (in the popular port it may be larger).
        exact: solve the equation; else `tau = 2.5129 sqrt(alpha)`, as all published code does.

    Example:
        >>> round(threshold_constant(1.0)[0], 6)
        2.512862
    """

    def excess(tau: float) -> float:
        return math.log1p(tau) / tau + alpha / tau * math.log1p(tau / alpha) - 1

    # excess falls from 1 at tau = 0; at 4 sqrt(alpha) + 4 alpha it is below 0 for every alpha up to 1
    tau = root(excess, 1e-3 * alpha, 4 * math.sqrt(alpha) + 4 * alpha) if exact else 2.5129 * math.sqrt(alpha)
    return tau, (1 + tau) * (1 + alpha / tau)


def weakened(rank: int, full: int, weakening: float = 1.0, least: int = 1) -> int:
    """The rank of a step of multi-stage compression: `max(int(full - w (full - rank)), least)`.

    Args:
        rank: rank found; 0 leaves the full rank, since pure noise is not a reason to drop a layer.
        full: largest rank.
        weakening: w, above 0 and at most 1; at 1 the rank stays as found.
        least: smallest rank to return; a full rank not above it is returned.

    Source: Gusak et al., "MUSCO: Multi-Stage Compression of neural networks", 2019, arXiv 1903.09973.
    """
    if rank == 0 or full <= least:
        return full
    return max(int(full - weakening * (full - rank)), least)


def _bounds(squares_K: Tensor, L: int, M: int, x: float, count: int) -> tuple[float, float]:
    """Bounds of the best sigma^2."""
    total = float(squares_K.sum())
    most = min(math.ceil(L / (1 + L / M)) - 1, len(squares_K) - 1)  # components that can be kept
    rest = float(squares_K[most:].sum()) if most < len(squares_K) else 0.0
    return max(float(squares_K[most]) / (M * x), rest / (M * (count - most))), total / (L * M)


def _energies(squares_K: Tensor, L: int, M: int, x: float, variances_G: Tensor) -> Tensor:
    """The free energy of each sigma^2, times 2 / M and up to a constant."""
    alpha = L / M
    result = []
    for variances in variances_G.split(max(AT_ONCE // max(len(squares_K), 1), 1)):
        x_GK = (squares_K / (M * variances[:, None])).clamp_min(1e-300)
        tau_GK = _tau(x_GK.clamp_min(x), alpha)
        # Subtract tau first: x and tau are both large for small sigma^2.
        kept_GK = (x_GK - tau_GK) + torch.log1p(tau_GK) + alpha * torch.log1p(tau_GK / alpha)
        energy_GK = torch.where(x_GK > x, kept_GK, x_GK)
        # The sum of -log x over all L values is L log sigma^2 plus a constant; so no value of 0 meets a logarithm.
        result.append(energy_GK.sum(1) + L * variances.log())
    return torch.cat(result)


def _tau(x: Tensor, alpha: float) -> Tensor:
    centred = x - (1 + alpha)
    return (centred + (centred.square() - 4 * alpha).clamp_min(0).sqrt()) / 2


def _least_energy(squares_K: Tensor, L: int, M: int, x: float, upper: float) -> float:
    """The best sigma^2 in [1, upper]: grid and break points, finer and finer grids, then the stationary point."""
    breaks = squares_K / (M * x)
    breaks = breaks[(breaks > 1) & (breaks < upper)]
    grid_G = torch.logspace(0, math.log10(upper), GRID, dtype=torch.float64).clamp(1, upper)
    grid_G = torch.cat([grid_G, breaks]).sort().values
    best = int(_energies(squares_K, L, M, x, grid_G).argmin())
    low, high = float(grid_G[max(best - 1, 0)]), float(grid_G[min(best + 1, len(grid_G) - 1)])
    points = torch.linspace(0, 1, 64, dtype=torch.float64)
    while high - low > 1e-7 * low:
        tried_G = low + (high - low) * points
        best = int(_energies(squares_K, L, M, x, tried_G).argmin())
        low, high = float(tried_G[max(best - 1, 0)]), float(tried_G[min(best + 1, 63)])

    def excess(variance: float) -> float:  # sign of the derivative: sigma^2 less the mean square that is not explained
        kept_K = squares_K[squares_K > M * variance * x]
        return variance - float(squares_K.sum() - _explained(kept_K, L, M, variance).sum()) / (L * M)

    low, high = max(low * (1 - 1e-6), 1.0), min(high * (1 + 1e-6), upper)
    return root(excess, low, high) if excess(low) < 0 else low


def _explained(squares_R: Tensor, L: int, M: int, variance: float) -> Tensor:
    """`gamma gamma~`: the kept square, less what the noise added."""
    shrunk_R = squares_R - (L + M) * variance
    return (shrunk_R + (shrunk_R.square() - 4 * L * M * variance**2).clamp_min(0).sqrt()) / 2


def _kept(values_K: Tensor, L: int, M: int, variance: float, threshold: float) -> Noise:
    kept_R = values_K[values_K > threshold]
    shrunken_R = _explained(kept_R.square(), L, M, variance) / kept_R
    return Noise(rank=len(kept_R), variance=variance, threshold=threshold, shrunken_R=shrunken_R)


def _compat(values_K: Tensor, L: int, M: int) -> Noise:
    """The popular port: no transposing, no scaling, an approximate constant, one local search with fixed tolerance."""
    x = threshold_constant(L / M, exact=False)[1]
    squares_K = values_K.square()
    # The port divides by the number of values. With L > M that is less than L, and the bounds can cross.
    lower, upper = _bounds(squares_K, L, M, x, len(squares_K))
    if lower > upper:
        raise ValueError(
            f"the lower bound {lower:g} of the variance exceeds the upper bound {upper:g}; transpose the matrix"
        )

    def energy(variance: float) -> float:
        return float(_energies(squares_K, L, M, x, torch.tensor([variance], dtype=torch.float64)))

    variance = local_minimum(energy, lower, upper, 1e-5)
    return _kept(values_K, L, M, variance, math.sqrt(M * variance * x))
