"""Stable rank and effective rank: how many directions a matrix really uses.

Both are continuous, do not depend on the scale of the matrix, and lie between 1 and the rank (0 for a zero matrix).

Shapes: `...` any batch, M rows, N columns, K = min(M, N).
"""

from __future__ import annotations

import torch
from torch import Tensor


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values, largest first, in float64, from the Gram matrix of the smaller side.

    A Gram matrix squares the condition number: values below about 1e-8 of the largest are noise. That does not matter
    for sums over the spectrum, and a wide matrix costs a fraction of a full decomposition.

    Args:
        matrix: `(..., M, N)`, any floating dtype.

    Returns:
        `(..., K)`, float64.

    Raises:
        ValueError: if it has fewer than two dimensions, is empty or is not finite.
    """
    if matrix.ndim < 2 or 0 in matrix.shape:
        raise ValueError(f"singular values need a matrix that is not empty, got shape {tuple(matrix.shape)}")
    exact = matrix.detach().to(torch.float64)
    if not torch.isfinite(exact).all():
        raise ValueError(f"the matrix of shape {tuple(matrix.shape)} has values that are not finite")
    # The squares of very small or large weights would leave the range: take the scale out and put it back.
    scale = exact.abs().amax(dim=(-2, -1), keepdim=True)
    unit = exact / torch.where(scale > 0, scale, 1.0)
    gram = unit @ unit.mT if unit.shape[-2] <= unit.shape[-1] else unit.mT @ unit
    squares = torch.linalg.eigvalsh(gram).clamp_min(0).flip(-1)
    return squares.sqrt() * scale[..., 0]


def stable_rank(matrix: Tensor) -> Tensor:
    """Stable rank `‖W‖_F² / σ₁²` of `W`, `(..., M, N)`: the energy in units of the strongest direction.

    Example:
        >>> import torch
        >>> stable_rank(torch.diag(torch.tensor([2.0, 2.0, 0.0]))).item()
        2.0
    """
    return stable_rank_of(singular_values(matrix))


def effective_rank(matrix: Tensor) -> Tensor:
    """Effective rank `exp(H(p))`, `p = σ / Σσ`, of `W`, `(..., M, N)`: H is the entropy of the singular values.

    Source: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.
    """
    return effective_rank_of(singular_values(matrix))


def stable_rank_of(values: Tensor) -> Tensor:
    """`stable_rank` of a matrix whose singular values `(..., K)` are known."""
    return _relative_to_largest(values).square().sum(-1)


def effective_rank_of(values: Tensor) -> Tensor:
    """`effective_rank` of a matrix whose singular values `(..., K)` are known."""
    relative = _relative_to_largest(values)
    total = relative.sum(-1, keepdim=True)
    share = relative / torch.where(total > 0, total, 1.0)
    entropy = -torch.special.xlogy(share, share).sum(-1)
    return torch.where(total[..., 0] > 0, entropy.exp(), 0.0)


def _relative_to_largest(values: Tensor) -> Tensor:
    """Singular values divided by the largest, so that nothing overflows; zeros stay zeros."""
    largest = values.amax(-1, keepdim=True)
    return values / torch.where(largest > 0, largest, 1.0)
