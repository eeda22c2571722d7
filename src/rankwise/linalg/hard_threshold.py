"""The optimal hard threshold for singular values of a signal in white noise of unknown strength.

Letters: K singular values.

Source: Gavish and Donoho, "The Optimal Hard Threshold for Singular Values is 4/sqrt(3)", 2014, arXiv 1305.5870.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Points of the integral over the Marchenko-Pastur density: its median is then right to 1e-6.
POINTS = 4001


def hard_threshold(values_K: Tensor, rows: int, columns: int) -> float:
    """`omega(beta) median(sigma)`, `beta = min(rows, columns) / max(rows, columns)`.

    Args:
        values_K: all singular values, descending.
        rows, columns: of the matrix.

    Returns:
        The threshold; 0 without values.

    Example:
        >>> round(hard_threshold(torch.tensor([5.0, 1.0, 1.0]), 3, 3), 3)
        2.858
    """
    if not len(values_K):
        return 0.0
    middle = float(values_K.double().quantile(0.5))
    return coefficient(min(rows, columns) / max(rows, columns)) * middle


def coefficient(beta: float) -> float:
    """`omega(beta) = lambda(beta) / sqrt(mu_beta)`, 0 < beta <= 1: threshold for known noise over the noise median."""
    known = math.sqrt(2 * (beta + 1) + 8 * beta / ((beta + 1) + math.sqrt(beta**2 + 14 * beta + 1)))
    return known / math.sqrt(marchenko_pastur_median(beta))


def marchenko_pastur_median(beta: float) -> float:
    """Median of the squared singular values of white noise, in units of its variance times the longer side."""
    # Substituting x = 1 + beta - 2 sqrt(beta) cos(angle) removes the square roots at both ends of the density.
    angle = torch.linspace(0, math.pi, POINTS, dtype=torch.float64)
    x = (1 + beta - 2 * math.sqrt(beta) * angle.cos()).clamp_min(1e-12)
    mass = torch.cumulative_trapezoid(angle.sin().square() / x, angle)
    above = int((mass < mass[-1] / 2).sum()) + 1
    below = float(mass[above - 2]) if above > 1 else 0.0
    part = (float(mass[-1]) / 2 - below) / (float(mass[above - 1]) - below)
    return float(x[above - 1] + part * (x[above] - x[above - 1]))
