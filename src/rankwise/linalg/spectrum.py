"""How many directions a matrix really uses: stable rank and effective rank.

Both are continuous, do not change with the scale of the matrix, and lie between 1 and the rank (0 for a zero matrix).

Shapes: `...` any batch, M rows, N columns, K = min(M, N).
"""

from __future__ import annotations

import torch
from torch import Tensor


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values, largest first, in float64, from the Gram matrix of the smaller side.

    A Gram matrix squares the condition number: values below about 1e-8 of the largest are noise. Sums over the
    spectrum, which is all this module needs, do not feel that, and a wide matrix costs a fraction of a full
    decomposition.

    Args:
        matrix: `(..., M, N)`, any floating dtype.

    Returns:
        `(..., K)`, float64.

    Raises:
        ValueError: if the matrix has fewer than two dimensions, is empty or has values that are not finite.
    """
    if matrix.ndim < 2 or 0 in matrix.shape:
        raise ValueError(f"singular values need a matrix that is not empty, got shape {tuple(matrix.shape)}")
    exact = matrix.detach().to(torch.float64)
    if not torch.isfinite(exact).all():
        raise ValueError(f"the matrix of shape {tuple(matrix.shape)} has values that are not finite")
    # Weights of 1e-30 or 1e30 would leave the range of squares; the scale is taken out and put back.
    scale = exact.abs().amax(dim=(-2, -1), keepdim=True)
    unit = exact / torch.where(scale > 0, scale, 1.0)
    gram = unit @ unit.mT if unit.shape[-2] <= unit.shape[-1] else unit.mT @ unit
    squares = torch.linalg.eigvalsh(gram).clamp_min(0).flip(-1)
    return squares.sqrt() * scale[..., 0]


def stable_rank(matrix: Tensor) -> Tensor:
    """Stable rank `‖W‖_F² / σ₁²`: the energy in units of the strongest direction.

    Args:
        matrix: `W`, `(..., M, N)`.

    Returns:
        `(...)`, float64; 0 for a zero matrix.

    Example:
        >>> import torch
        >>> stable_rank(torch.diag(torch.tensor([2.0, 2.0, 0.0]))).item()
        2.0
    """
    return stable_rank_of(singular_values(matrix))


def effective_rank(matrix: Tensor) -> Tensor:
    """Effective rank `exp(H(p))`, `p = σ / Σσ`: the exponential of the entropy of the normalised singular values.

    Args:
        matrix: `W`, `(..., M, N)`.

    Returns:
        `(...)`, float64; 0 for a zero matrix.

    References:
        Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.
    """
    return effective_rank_of(singular_values(matrix))


def stable_rank_of(values: Tensor) -> Tensor:
    """`stable_rank` of a matrix whose singular values `(..., K)` are known."""
    relative = _relative_to_largest(values)
    return relative.square().sum(-1)


def effective_rank_of(values: Tensor) -> Tensor:
    """`effective_rank` of a matrix whose singular values `(..., K)` are known."""
    relative = _relative_to_largest(values)
    total = relative.sum(-1, keepdim=True)
    share = relative / torch.where(total > 0, total, 1.0)
    entropy = -torch.special.xlogy(share, share).sum(-1)
    return torch.where(total[..., 0] > 0, entropy.exp(), 0.0)


def _relative_to_largest(values: Tensor) -> Tensor:
    """Singular values divided by the largest: figures that do not overflow whatever the scale; zeros stay zeros."""
    largest = values.amax(-1, keepdim=True)
    return values / torch.where(largest > 0, largest, 1.0)
