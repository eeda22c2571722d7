"""The error of all ranks of a partial Tucker factorisation at once, before anything is fitted.

These are errors of the start of a fit (`tucker2.channel_basis`), whose first s channels start channel rank s.

Letters: T outputs, C channels, Q taps, D = C * Q, K = D explained directions.

Source: ours, for the problem of Kalle, Rudkiewicz, Ouerfelli, Tamaazousti, "Distribution-Aware Tensor Decomposition for
Compression of Convolutional Neural Networks", 2025, arXiv 2511.04494.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .metric import Metric
from .symmetric import eigenvalues
from .tucker2 import channel_basis


def error_surface(W_TCQ: Tensor, metric: Metric, channel_ranks: list[int]) -> Tensor:
    """Squared errors of the start for every output rank and the given channel ranks, from one decomposition.

    With the channels turned into the basis of the start, the regression on the first s channels is a leading block of
    one Cholesky factor. So each channel rank costs one T x T eigenvalue problem, and output ranks cost nothing.

    Args:
        W_TCQ: kernel.
        metric: Sigma.
        channel_ranks: ascending, each between 1 and C.

    Returns:
        len(channel_ranks) x T; column r - 1 is output rank r.
    """
    W_TCQ = W_TCQ.double()
    T, _, Q = W_TCQ.shape
    Y_KT, total = _explained(W_TCQ, metric)
    surface = torch.empty(len(channel_ranks), T, dtype=torch.float64)
    K_TT = torch.zeros(T, T, dtype=torch.float64, device=W_TCQ.device)
    done = 0
    for row, rank in enumerate(channel_ranks):
        block = Y_KT[done : rank * Q]
        K_TT += block.mT @ block
        done = rank * Q
        surface[row] = (total - eigenvalues(K_TT).cumsum(0)).clamp_min(0)
    return surface


def channel_errors(W_TCQ: Tensor, metric: Metric) -> Tensor:
    """The last column of the surface for every channel rank: squared errors with all outputs kept, C values."""
    Q = W_TCQ.shape[2]
    Y_KT, total = _explained(W_TCQ.double(), metric)
    explained = torch.zeros(W_TCQ.shape[1] * Q, dtype=torch.float64)
    explained[: len(Y_KT)] = Y_KT.square().sum(1).cpu()
    return (total - explained.view(-1, Q).sum(1).cumsum(0)).clamp_min(0)


def _explained(W_TCQ: Tensor, metric: Metric) -> tuple[Tensor, float]:
    """Rows whose squares add up to the explained energy, ordered by channel of the start and tap; the total energy."""
    T, _, Q = W_TCQ.shape
    B_CC = channel_basis(W_TCQ, metric)
    W_TD = torch.einsum("tcq,cs->tsq", W_TCQ, B_CC).reshape(T, -1)
    return metric.fold(B_CC, Q).nested_projection(W_TD), metric.energy(W_TCQ.reshape(T, -1))
