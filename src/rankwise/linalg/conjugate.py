"""Preconditioned conjugate gradients for positive semidefinite operators on tensors of any shape, one or several."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Operator = Callable[[Tensor], Tensor]

# From this many inputs on, steps run in single precision, which is enough for a correction.
SINGLE_PRECISION = 512
# A problem rests once its preconditioned residual, squared, has fallen by this much.
SOLVED = 1e-20


def conjugate_gradients(
    apply: Operator,
    precondition: Operator,
    x: Tensor,
    residual: Tensor,
    steps: int,
    last: Tensor | None = None,
    batch: int = 0,
) -> Tensor:
    """`steps` steps on `H x = b` from `x`; any number of steps lowers `x^T H x / 2 - b^T x`.

    Nothing is read by the host. A problem that is solved, or whose curvature is lost in rounding, rests: further steps
    leave it as it is.

    Args:
        apply: `H`.
        precondition: an approximate inverse of `H`.
        x: start.
        residual: `b - H x` at the start.
        steps: how many.
        last: direction of the first step; all further directions are conjugate to it. Zeros are none.
        batch: number of leading dimensions over problems of their own.
    """
    dims, tiny = tuple(range(batch, x.dim())), torch.finfo(x.dtype).tiny

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(dims, keepdim=True)

    if last is not None:
        along = apply(last)
        curvature = dot(last, along)
        usable = curvature > 0
        curvature = torch.where(usable, curvature, 1.0)
        alpha = torch.where(usable, dot(residual, last) / curvature, 0.0)
        x, residual, steps = x + alpha * last, residual - alpha * along, steps - 1
        plain, weights = precondition, torch.where(usable, along / curvature, 0.0)

        # Keeps all further directions conjugate to `last`, so that no later step undoes the first one.
        def precondition(r: Tensor) -> Tensor:
            z = plain(r)
            return z - dot(weights, z) * last

    z = precondition(residual)
    direction, rho = z, dot(residual, z)
    enough, goes_on = SOLVED * rho, rho > tiny
    for step in range(steps):
        along = apply(direction)
        curvature = dot(direction, along)
        goes_on = goes_on & (curvature > 0)
        alpha = torch.where(goes_on, rho / torch.where(goes_on, curvature, 1.0), 0.0)
        x = x + alpha * direction
        if step == steps - 1:
            break
        residual = residual - alpha * along
        z = precondition(residual)
        rho, previous = dot(residual, z), rho
        goes_on = goes_on & (rho > enough)
        direction = z + torch.where(goes_on, rho / torch.where(goes_on, previous, 1.0), 0.0) * direction
    return x
