"""Fit one site to the dense network's outputs on the compressed network's inputs.

`min over V, c of  E || y - V x - c ||^2` with `y = W x_dense + b` and `x` the input in the compressed network. With the
centred moments `A = Cov(x)` and `C = Cov(y, x)` this is the ordinary data-aware problem for the target

    T = W + beta (C - W A) (A + e I)^-1,      c = mean(y) - V mean(x),

so every format works unchanged. The damping e pulls the target towards W. How far to follow the target (beta) is
decided on held-out samples, because a target estimated from few rows fits their noise.

Letters: G groups, T outputs per group, D inputs per group.

Source: Zhang, Zou, He, Sun, "Accelerating Very Deep Convolutional Networks for Classification and Detection", 2015,
arXiv 1505.06798 (asymmetric reconstruction).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..formats import Factors, Format, Ranks, get_format
from ..formats.both_sides import fit
from ..linalg.symmetric import cholesky
from ..network.site import Site
from ..statistics.moments import Moments

BETAS = (0.0, 0.5, 1.0)
# With fewer rows than this per input dimension the target is never followed.
LEAST_ROWS_PER_INPUT = 8
TARGET_DAMPING = 1e-4
# Nor where the mean variance per input is below this part of the second moment: that is float32 rounding.
ROUNDING = 1e-6


def regression_target(weight_GTD: Tensor, moments: Moments) -> Tensor:
    """The target for `beta = 1`: `W + (C - W A)(A + e I)^-1`, G x T x D."""
    covariances, crosses = _centred(moments)
    target = weight_GTD.clone()
    for group, (A_DD, C_TD) in enumerate(zip(covariances, crosses, strict=True)):
        L_DD = cholesky(A_DD, TARGET_DAMPING)
        residual = C_TD - weight_GTD[group] @ A_DD
        target[group] += torch.cholesky_solve(residual.mT, L_DD).mT
    return target


def regression_bias(weight_GTD: Tensor, moments: Moments) -> Tensor:
    """`mean(y) - V mean(x)`, G x T: the bias with which `V` gives the mean of the targets."""
    assert moments.target_mean_GT is not None
    return moments.target_mean_GT - torch.einsum("gtd,gd->gt", weight_GTD, moments.mean_GD)


def held_out_error(weight_GTD: Tensor, moments: Moments, held: Moments) -> float:
    """`E|y - V x - c|^2` on the held-out samples, up to a constant; `c` is from the fitted samples."""
    bias_GT = regression_bias(weight_GTD, moments)
    covariances, crosses = _centred(held)
    error = 0.0
    for group, (A_DD, C_TD) in enumerate(zip(covariances, crosses, strict=True)):
        V_TD = weight_GTD[group]
        error += float((V_TD @ A_DD * V_TD).sum() - 2 * (V_TD * C_TD).sum())
    assert held.target_mean_GT is not None
    offset = held.target_mean_GT - torch.einsum("gtd,gd->gt", weight_GTD, held.mean_GD) - bias_GT
    return error + float(offset.square().sum())


def choose_beta(weight_GTD: Tensor, fitted: Moments, held: Moments | None) -> float:
    """The beta whose target predicts the held-out outputs best; 0 where too few rows were seen."""
    enough = fitted.count >= LEAST_ROWS_PER_INPUT * fitted.dim
    if held is None or not enough or fitted.second_GDD is None or held.second_GDD is None or fitted.cross_GTD is None:
        return 0.0
    variance = sum(float(A_DD.trace()) for A_DD in _centred(fitted)[0])
    if variance <= ROUNDING * fitted.dim * sum(float(second.trace()) for second in fitted.second_GDD):
        return 0.0
    target = regression_target(weight_GTD, fitted)
    errors = {beta: held_out_error(torch.lerp(weight_GTD, target, beta), fitted, held) for beta in BETAS}
    return min(errors, key=errors.__getitem__)


def fit_site(
    site: Site,
    weight: Tensor,
    format: str,
    ranks: Ranks,
    moments: Moments,
    beta: float,
    metric: str = "input",
    formats: Mapping[str, Format] | None = None,
) -> tuple[Factors, Tensor]:
    """Fit a format to the regression target on the compressed network's inputs.

    Args:
        weight: dense weight, O x I/G [x kh x kw], float64.
        moments: of the inputs, with the dense network's outputs as targets; with gradients for the metric "fisher".
        beta: how far to follow the target, from 0 (the weight itself) to 1.

    Returns:
        The factors and the bias, O.
    """
    weight_GTD = target_GTD = weight.reshape(site.groups, -1, site.in_features)
    if beta:
        target_GTD = torch.lerp(weight_GTD, regression_target(weight_GTD, moments), beta)
    factors = fit(get_format(format, formats), site, target_GTD.reshape(weight.shape), moments.two_sided(metric), ranks)
    return factors, regression_bias(factors.dense().reshape(weight_GTD.shape), moments).reshape(-1)


def _centred(moments: Moments) -> tuple[list[Tensor], list[Tensor]]:
    """Covariances of the inputs and cross covariances with the targets, per group."""
    assert moments.second_GDD is not None
    assert moments.cross_GTD is not None
    assert moments.target_mean_GT is not None
    mu_GD, nu_GT = moments.mean_GD, moments.target_mean_GT
    A = [second - torch.outer(mu, mu) for second, mu in zip(moments.second_GDD, mu_GD, strict=True)]
    C = [cross - torch.outer(nu, mu) for cross, nu, mu in zip(moments.cross_GTD, nu_GT, mu_GD, strict=True)]
    return A, C
