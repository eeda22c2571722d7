"""Truncated factorisation of a matrix in a metric: the closed form behind every two-factor layer.

`min over rank(V) <= r of ||(W - V) Sigma^(1/2)||_F^2` is attained at `V = U_r U_r^T W` with `U_r` the leading
eigenvectors of `W Sigma W^T`, and the minimum is the sum of the eigenvalues left out. This needs no root and no inverse
of Sigma, so Sigma may be singular.

Letters: T outputs, D inputs, R rank, K the smaller side.

Sources: Denton et al., "Exploiting Linear Structure Within Convolutional Networks", 2014, arXiv 1404.0736 (the norm);
Zhang, Zou, He, Sun, "Accelerating Very Deep Convolutional Networks", 2015, arXiv 1505.06798 (response PCA).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .large import LARGE, Large
from .metric import Metric
from .symmetric import eigenvalues, eigh


def energies(W_TD: Tensor, metric: Metric) -> Tensor:
    """The eigenvalues of `spectrum`, without vectors: `energies[r:].sum()` is the error at rank r, for every r.

    For a large weight these errors are right to 1e-4 relatively at every rank that saves anything (`large`).
    """
    if W_TD.numel() >= LARGE:
        return Large.of(W_TD, metric).values_K
    W_TD = W_TD.double()
    if len(W_TD) > W_TD.shape[1]:
        W_TD = torch.linalg.qr(W_TD, mode="r").R
    return eigenvalues(metric.inner(W_TD))


def energy(W_TD: Tensor, metric: Metric) -> float:
    """`trace(W Sigma W^T)`, the error at rank 0."""
    return Large.of(W_TD, metric).energy if W_TD.numel() >= LARGE else metric.energy(W_TD)


def spectrum(W_TD: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """Leading `K = min(T, D)` eigenvalues of `W Sigma W^T`, descending, and eigenvectors, from the smaller side.

    Args:
        W_TD: weight, T x D.
        metric: Sigma, D x D.

    Returns:
        lambda_K, the squared singular values of the whitened weight, and K orthonormal columns.
        `lambda[r:].sum()` is the squared error of the best rank-r factorisation.
    """
    W_TD = W_TD.double()
    T, D = W_TD.shape
    if T <= D:
        return eigh(metric.inner(W_TD))
    Q_TD, R_DD = torch.linalg.qr(W_TD)  # T > D: the same problem on D rows
    values, vectors = eigh(metric.inner(R_DD))
    return values, Q_TD @ vectors


def truncate(W_TD: Tensor, metric: Metric, rank: int) -> tuple[Tensor, Tensor, float]:
    """Best rank-`rank` factors `U V` of `W` in the metric.

    For a large weight the error is at most 1e-4 above the least, relatively (`large`).

    Args:
        W_TD: weight, T x D.
        metric: Sigma, D x D.
        rank: between 1 and min(T, D).

    Returns:
        U_TR with orthonormal columns, V_RD, and the squared error `||(W - U V) Sigma^(1/2)||_F^2`.

    Example:
        >>> import torch
        >>> from rankwise.linalg.metric import Identity
        >>> W_TD = torch.outer(torch.arange(1.0, 4.0), torch.ones(5))
        >>> U_TR, V_RD, error = truncate(W_TD, Identity(5), rank=1)
        >>> torch.allclose(U_TR @ V_RD, W_TD.double()), error < 1e-12
        (True, True)
    """
    if W_TD.numel() >= LARGE:
        return Large.of(W_TD, metric).truncate(W_TD, metric, rank)
    values, U_TK = spectrum(W_TD, metric)
    U_TR = U_TK[:, :rank]
    return U_TR, U_TR.mT @ W_TD.double(), float(values[rank:].sum())


def slopes(W_TD: Tensor, metric: Metric, cross_TT: Tensor) -> Tensor:
    """`-u_i^T D W^T u_i`: how the loss changes to first order when component i of W leaves, leading ones first, K.

    The components are `u_i u_i^T W`, `u_i` the eigenvectors of `W Sigma W^T` (`spectrum`).

    Args:
        W_TD: weight.
        metric: Sigma, D x D.
        cross_TT: `D W^T`, D the gradient of the weight.

    Example:
        >>> from rankwise.linalg.metric import Identity
        >>> slopes(torch.diag(torch.tensor([2.0, 1.0])), Identity(2), torch.tensor([[3.0, 0.0], [0.0, 4.0]])).tolist()
        [-3.0, -4.0]

    Source: "Zero-Sum SVD" (ZS-SVD), 2026, arXiv 2602.02848: `-sigma_i diag(U^T D L^-T V)_i`, with `W L = U S V^T` and
    `L L^T = Sigma`, which is the same.
    """
    _, U_TK = spectrum(W_TD, metric)
    return -((cross_TT.double().mT @ U_TK) * U_TK).sum(0)


def multiply(U_GTR: Tensor, V_GRD: Tensor) -> Tensor:
    """The weights that factors multiply to, float64; large ones to float32, as the factors in a network."""
    T, R, D = *U_GTR.shape[1:], V_GRD.shape[2]
    if T * D < LARGE or R * (T + D) > T * D:
        return U_GTR @ V_GRD
    return (U_GTR.float() @ V_GRD.float()).double()


def balance(U_TR: Tensor, V_RD: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, with components of equal norm in both factors, which suits gradient steps and half precision.

    A component that is zero in one factor stays as it is.
    """
    U_norm = torch.linalg.vector_norm(U_TR, dim=0)
    V_norm = torch.linalg.vector_norm(V_RD, dim=1)
    scale = torch.where((U_norm > 0) & (V_norm > 0), (V_norm / U_norm).sqrt(), torch.ones_like(U_norm))
    return U_TR * scale, V_RD / scale[:, None]
