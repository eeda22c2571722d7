"""The hierarchical group lasso over suffixes of columns, and its exact proximal step.

Letters: M rows, R columns.

Source: Horvath et al., "Maestro", 2023, arXiv 2308.14929, equation 8; the proximal step of nested groups: Jenatton,
Mairal, Obozinski, Bach, "Proximal Methods for Hierarchical Sparse Coding", 2011, arXiv 1009.2139.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .layer import Ordered, ordered_layers


def hierarchical_lasso(U_MR: Tensor) -> Tensor:
    """`sum_b ||U[:, b:]||_F`, differentiable; the gradient of a suffix that is exactly zero is zero.

    Example:
        >>> float(hierarchical_lasso(torch.tensor([[3.0, 4.0]])))
        9.0
    """
    squares_R = U_MR.square().sum(0).flip(0).cumsum(0)
    held = squares_R > 0  # the root has no derivative at 0
    return torch.where(held, torch.where(held, squares_R, 1.0).sqrt(), 0.0).sum()


@torch.no_grad()
def hierarchical_shrinkage(U_MR: Tensor, strength: float) -> Tensor:
    """`argmin_P 1/2 ||P - U||_F^2 + strength sum_b ||P[:, b:]||_F`, exactly.

    The groups are nested, so shrinking the suffixes one after the other, the shortest first, is the minimum. Every
    suffix is scaled by one number, so that the norms of the columns are all that is needed.

    Args:
        U_MR: M x R.
        strength: at least 0; after a step of gradient descent its rate times the weight of the lasso.

    Returns:
        M x R, with exact zeros.

    Raises:
        ValueError: for a strength below 0.

    Example:
        >>> hierarchical_shrinkage(torch.tensor([[3.0, 4.0]]), 5.0)
        tensor([[0., 0.]])
    """
    if not 0 <= strength < math.inf:
        raise ValueError(f"the strength of a proximal step is {strength}; it must be 0 or more")
    squares, scales, after = U_MR.double().square().sum(0).tolist(), [], 0.0
    for square in reversed(squares):
        norm = math.sqrt(square + after * after)
        after = max(norm - strength, 0.0)
        scales.append(after / norm if norm else 1.0)
    # A column is scaled with every suffix that it belongs to.
    total_R = torch.tensor(scales[::-1], dtype=torch.float64).cumprod(0)
    return U_MR * total_R.to(U_MR)


def factors_of(layer: Ordered) -> tuple[Tensor, Tensor]:
    """The active components of a layer as columns of two matrices, all groups one below the other."""
    U_GTR, V_GRD = layer.factors()
    return U_GTR.flatten(0, 1), V_GRD.transpose(0, 1).flatten(1).mT


def lasso(model: nn.Module) -> Tensor:
    """`sum_i sum_b (||U_i[:, b:]||_F + ||V_i[b:]||_F)` over the ordered layers, with gradients."""
    layers = ordered_layers(model).values()
    return torch.stack([hierarchical_lasso(factor) for layer in layers for factor in factors_of(layer)]).sum()


@torch.no_grad()
def lasso_step_(model: nn.Module, strength: float) -> nn.Module:
    """The proximal step of `lasso`, on the factors of every ordered layer.

    Args:
        model: changed in place and returned.
        strength: rate of the step before it times the weight of the lasso.
    """
    for layer in ordered_layers(model).values():
        (U_GTR, V_GRD), (U_MR, V_MR) = layer.factors(), factors_of(layer)
        rows_RM = hierarchical_shrinkage(V_MR, strength).mT
        V_GRD = rows_RM.reshape(V_GRD.shape[1], len(V_GRD), -1).transpose(0, 1)
        layer.write(hierarchical_shrinkage(U_MR, strength).reshape(U_GTR.shape), V_GRD)
    return model
