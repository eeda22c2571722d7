"""Symmetric decompositions that do not fail: double precision, relative damping, a second method if one fails.

Letters: N order of the matrix, R rank.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Symmetric matrices below this order are treated as a whole; others by blocks and tiles.
WHOLE, TILE = 512, 256


def eigh(K_NN: Tensor, precision: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Eigenvalues (descending, at least 0) and eigenvectors of a positive semidefinite matrix.

    `K = Q diag(lambda) Q^T`. The matrix is scaled to unit size first, so that the answer does not depend on its units.
    LAPACK's divide and conquer can fail to converge on repeated eigenvalues; then the singular value decomposition is
    used, which has the same vectors.

    Args:
        K_NN: symmetric positive semidefinite, N x N; only its symmetric part counts.
        precision: of the decomposition; float32 takes about half the time.

    Returns:
        lambda_N and Q_NN (eigenvectors in columns), float64, on the device of `K_NN`.

    Raises:
        ValueError: if `K_NN` is not finite.
    """
    K_NN = symmetric_part(K_NN.double())
    scale = K_NN.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    if not torch.isfinite(scale):  # NaN and infinity survive the maximum
        raise ValueError("a moment matrix holds NaN or infinity; check the calibration data and the weights")
    try:
        values, vectors = torch.linalg.eigh((K_NN / scale).to(precision))
    except torch.linalg.LinAlgError:
        vectors, values, _ = torch.linalg.svd(K_NN / scale)
        return values * scale, vectors
    return values.double().flip(0).clamp_min(0) * scale, vectors.double().flip(1)


def eigenvalues(K_NN: Tensor) -> Tensor:
    """The eigenvalues of `eigh`, without vectors, in a third of the time."""
    K_NN = symmetric_part(K_NN.double())
    scale = K_NN.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    try:
        return torch.linalg.eigvalsh(K_NN / scale).flip(0).clamp_min(0) * scale
    except torch.linalg.LinAlgError:
        return eigh(K_NN)[0]


def symmetric_part(K_NN: Tensor) -> Tensor:
    """`(K + K^T) / 2`; of a large matrix by tiles, since reading all of it across its rows takes twice as long."""
    N = len(K_NN)
    if N < WHOLE:
        return (K_NN + K_NN.mT).div_(2)
    result_NN = torch.empty_like(K_NN)
    places = [slice(first, first + TILE) for first in range(0, N, TILE)]
    for number, rows in enumerate(places):
        for columns in places[: number + 1]:
            half = (K_NN[rows, columns] + K_NN[columns, rows].mT).div_(2)
            result_NN[rows, columns] = half
            result_NN[columns, rows] = half.mT
    return result_NN


def product(A_NK: Tensor, B_NK: Tensor) -> Tensor:
    """`A B^T` where that is symmetric: of a large one, only the blocks on and below the diagonal are multiplied."""
    N = A_NK.shape[-2]
    if A_NK.dim() > 2 or N < WHOLE:
        return A_NK @ B_NK.mT
    result_NN = A_NK.new_empty(N, N)
    for first in range(0, N, WHOLE // 2):
        last = min(first + WHOLE // 2, N)
        torch.mm(A_NK[first:last], B_NK[:last].mT, out=result_NN[first:last, :last])
        result_NN[:first, first:last] = result_NN[first:last, :first].mT
    return result_NN


def cholesky(S_NN: Tensor, damping: float = 1e-12) -> Tensor:
    """Lower Cholesky factor of `S + e I`, with `e` from `damping * trace / N` in steps of 100 until it succeeds.

    Args:
        S_NN: symmetric positive semidefinite, N x N; only its lower triangle counts.
        damping: relative to the mean diagonal.

    Raises:
        ValueError: if no damping up to the mean diagonal helps: the matrix is not positive semidefinite.
    """
    damped_NN = S_NN.clone()
    mean = damped_NN.diagonal().mean().double().abs().clamp_min(torch.finfo(torch.float64).tiny)
    added = torch.zeros_like(mean)
    while damping <= 1:
        damped_NN.diagonal().add_(damping * mean - added)
        L_NN, failed = torch.linalg.cholesky_ex(damped_NN)
        # One number says whether it succeeded, so that a device is waited for once.
        if math.isfinite(float(torch.where(failed == 0, L_NN.diagonal().sum(), math.nan))):
            return L_NN
        added = damping * mean
        damping *= 100
    raise ValueError("a moment matrix is not positive semidefinite; the statistics are damaged, collect them again")


def orthonormal(B_NR: Tensor) -> Tensor:
    """Orthonormal basis of the columns; the first r columns span the first r columns of `B_NR`, for every r."""
    return torch.linalg.qr(B_NR).Q
