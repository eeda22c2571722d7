"""How far to trust moments of few rows: the shares of identity and diagonal to mix into a covariance."""

from __future__ import annotations

from torch import Tensor

# Least damping, relative to the mean variance: keeps fits defined on inputs that never fire, without moving the others.
DAMPING = 1e-6
LARGEST_SHARE = 0.99


def check_shrink(shrink: float) -> float:
    """The share of the weight metric; a ValueError if it is not a number from 0 to 1."""
    if isinstance(shrink, bool) or not isinstance(shrink, (int, float)) or not 0 <= shrink <= 1:
        raise ValueError(f"shrink must be a number from 0 (the statistics) to 1 (the weight metric), not {shrink!r}")
    return shrink


def shrinkage(trace: float, squares: float, rows: int, dim: int) -> float:
    """The share of the weight metric that brings a covariance of few rows closest to the true one.

    `min over s of E ||(1 - s) S + s trace(S) / D I - Sigma||_F^2`, estimated for normally distributed rows.

    Args:
        trace, squares: trace of the sample covariance `S` and the sum of its squared entries.
        rows, dim: number and length of the rows in it.

    Returns:
        A number from 0 (many rows) to 0.99.

    Source: Chen, Wiesel, Eldar, Hero, "Shrinkage Algorithms for MMSE Covariance Estimation", 2010, arXiv 0907.4698.
    """
    spread = squares - trace**2 / dim
    missed = ((1 - 2 / dim) * squares + trace**2) / (rows + 1 - 2 / dim)
    return min(missed / spread, LARGEST_SHARE) if spread > 0 else 0.0


def covariance_shrinkage(variances_D: Tensor, squares: float, rows: int) -> float:
    """The share of its diagonal that brings a covariance `S` of few rows closest to the true one.

    `min over s of E ||(1 - s) S + s diag(S) - Sigma||_F^2`, that is `s = sum var(S_ij) / sum S_ij^2` over `i != j`,
    with `var(S_ij) = (S_ii S_jj + S_ij^2) / rows` for normally distributed rows. Variances do not change, so there must
    be enough rows to know them: an input that never fired in a few rows may still fire.

    Args:
        variances_D: the diagonal of `S`.
        squares: sum of all squared entries of `S`.
        rows: number of rows in it.

    Returns:
        A number from 0 (many rows) to 1 (covariances are no larger than those of independent inputs).

    Source: Schafer, Strimmer, "A Shrinkage Approach to Large-Scale Covariance Matrix Estimation and Implications for
    Functional Genomics", 2005.
    """
    own = float(variances_D.square().sum())
    shared = squares - own
    missed = (float(variances_D.sum()) ** 2 - own + shared) / rows
    return min(missed / shared, 1.0) if shared > 0 else 0.0
