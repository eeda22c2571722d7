"""Which rows and columns of a weight matter, and the weight sorted by that, in coordinates with the Frobenius norm.

With columns sorted and `Sigma = L L^T`, L lower triangular, `||M Sigma^(1/2)||_F = ||M L||_F`. If only the first d
columns of M are not zero, the same holds for `M L`. So a form whose parts hold leading columns can be fitted to `W L`
in the Frobenius norm, for any order of the columns.

Letters: T outputs, C channels, Q taps of each, D = C Q inputs, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .metric import Identity, Metric
from .symmetric import cholesky


def descending(scores: Tensor) -> Tensor:
    """Places of the scores, the largest first; equal scores keep their order.

    Example:
        >>> descending(torch.tensor([0.0, 2.0, 0.0, 5.0])).tolist()
        [3, 1, 0, 2]
    """
    return scores.argsort(descending=True, stable=True)


def shares(M_TD: Tensor, metric: Metric, taps: int) -> tuple[Tensor, Tensor]:
    """What each row and each channel contributes by itself: `(M Sigma M^T)_tt` and `trace(M_c Sigma_cc M_c^T)`.

    Args:
        M_TD: a weight, or the part of it that is left to explain.
        metric: Sigma, D x D.
        taps: inputs per channel.
    """
    rows_T = (metric.times(M_TD) * M_TD).sum(1)
    M_TCQ = M_TD.unflatten(1, (-1, taps))
    if isinstance(metric, Identity):
        return rows_T, M_TCQ.square().sum((0, 2))
    blocks_CQQ = metric.dense().unflatten(0, (-1, taps)).unflatten(2, (-1, taps)).diagonal(dim1=0, dim2=2)
    return rows_T, torch.einsum("tcq,qpc,tcp->c", M_TCQ, blocks_CQQ, M_TCQ)


class Sorted:
    """A weight with sorted rows and columns, in coordinates where the metric is the Frobenius norm.

    Args:
        W_TD: weight, float64.
        metric: Sigma, D x D.
        rows, channels: their new orders, T and C numbers.

    Attributes:
        Z_TD: `W L`, with rows and columns in their new order.
    """

    def __init__(self, W_TD: Tensor, metric: Metric, rows: Tensor, channels: Tensor) -> None:
        taps = W_TD.shape[1] // len(channels)
        self.rows, self.channels = rows, channels
        self.columns = (channels[:, None] * taps + torch.arange(taps, device=channels.device)).flatten()
        self.L_DD: Tensor | None = None
        self.Z_TD = W_TD[rows][:, self.columns]
        if not isinstance(metric, Identity):
            self.L_DD = cholesky(metric.dense()[self.columns][:, self.columns])
            self.Z_TD = self.Z_TD @ self.L_DD

    def plain(self, V_Rd: Tensor) -> Tensor:
        """A factor of the first d columns of `Z` as one of the sorted weight: `V L^-1`."""
        if self.L_DD is None:
            return V_Rd
        d = V_Rd.shape[1]
        return torch.linalg.solve_triangular(self.L_DD[:d, :d], V_Rd, upper=False, left=False)

    def unsorted(self, M_TD: Tensor) -> Tensor:
        """A matrix with its rows and columns back in their own order."""
        return M_TD[self.rows.argsort()][:, self.columns.argsort()]
