"""Axes of attention heads in which values matter most, and a matrix and a metric in these axes.

Letters: T outputs, D inputs, G key/value heads, S query heads that share one, H values of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .metric import Dense, Metric
from .symmetric import cholesky, eigh

# Of the mean diagonal: it only orders axes that no output reads.
DAMPING = 1e-9


def head_axes(W_TD: Tensor, metric: Metric, size: int, shared: int) -> Tensor:
    """Orthonormal axes of the values of each key/value head, the one that matters most first.

    With the parts `W_j` of the matrix and `C_j` of the moment that belong to the query heads j of a head,
    `S = sum_j W_j^T W_j`, `C = sum_j C_j` and `R^T R = S`: the leading eigenvectors U of `R C R^T` give the numbers
    `U^T R v` of a value v that are worth most, and the first k axes span the first k of the columns of `R^T U`.

    Args:
        W_TD: the output projection, float64; inputs are query heads x values.
        metric: of its inputs.
        size: H.
        shared: S.

    Returns:
        Axes in the columns, G x H x H.

    Source: Lin et al., "MoDeGPT: Modular Decomposition for Large Language Model Compression", 2024, arXiv 2408.09632,
    for heads that share values.
    """
    W_TGSH = W_TD.unflatten(1, (-1, shared, size))
    S_GHH = torch.einsum("tgsh,tgsk->ghk", W_TGSH, W_TGSH)
    parts = metric.dense().unflatten(1, (-1, shared, size)).unflatten(0, (-1, shared, size))
    C_GHH = torch.einsum("gshgsk->ghk", parts)
    axes = []
    for S_HH, C_HH in zip(S_GHH, C_GHH, strict=True):
        R_HH = cholesky(S_HH, DAMPING).mT
        axes.append(torch.linalg.qr(R_HH.mT @ eigh(R_HH @ C_HH @ R_HH.mT)[1]).Q)
    return torch.stack(axes)


def turned(W_TD: Tensor, axes_GHH: Tensor) -> Tensor:
    """`W Q`, Q with the axes of its head for each query head; with transposed axes its inverse.

    Example:
        >>> axes = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
        >>> turned(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), axes)
        tensor([[2., 1., 4., 3.]])
    """
    G, H = axes_GHH.shape[:2]
    return torch.einsum("tgsh,ghk->tgsk", W_TD.unflatten(1, (G, -1, H)), axes_GHH).flatten(1)


def turned_metric(metric: Metric, axes_GHH: Tensor) -> Metric:
    """The metric of the inputs in the axes, `Q^T Sigma Q`."""
    return Dense(turned(turned(metric.dense(), axes_GHH).mT, axes_GHH))
