"""Preconditioned conjugate gradients for a positive semidefinite operator on tensors of any shape."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]

# From this many inputs on, steps run in single precision, which is enough for a correction.
SINGLE_PRECISION = 512


def conjugate_gradients(
    apply: Operator, precondition: Operator, x: Tensor, residual: Tensor, steps: int, last: Tensor | None = None
) -> Tensor:
    """At most `steps` steps on `H x = b` from `x`; any number of steps lowers `x^T H x / 2 - b^T x`.

    Args:
        apply: `H`.
        precondition: an approximate inverse of `H`.
        x: start.
        residual: `b - H x` at the start.
        steps: at most this many; fewer at the solution, or where the curvature is lost in rounding.
        last: direction of the first step; all further directions are conjugate to it.
    """
    if last is not None and (curvature := (last * (along := apply(last))).sum()) > 0:
        alpha = (residual * last).sum() / curvature
        x, residual, steps = x + alpha * last, residual - alpha * along, steps - 1
        plain, weights = precondition, along / curvature

        # Keeps all further directions conjugate to `last`, so that no later step undoes the first one.
        def precondition(r: Tensor) -> Tensor:
            z = plain(r)
            return z - (weights * z).sum() * last

    z = precondition(residual)
    direction, rho = z, (residual * z).sum()
    first = rho
    for _ in range(steps):
        if rho <= 1e-20 * first.clamp_min(torch.finfo(torch.float64).tiny):
            break
        along = apply(direction)
        curvature = (direction * along).sum()
        if curvature <= 0:
            break
        alpha = rho / curvature
        x = x + alpha * direction
        residual = residual - alpha * along
        z = precondition(residual)
        rho, previous = (residual * z).sum(), rho
        direction = z + (rho / previous) * direction
    return x
