"""The metric of one-hot inputs: Sigma is diagonal, so vocabulary-sized inputs are cheap.

Letters: D input dimension = C * Q, T output rows of a weight, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .metric import Dense, Metric


class Diagonal(Metric):
    """`Sigma = diag(variance) + damping * mean(variance) I`.

    Args:
        variance_D: the diagonal, at least 0.
        damping: share of the weight metric that is mixed in, relative to the mean.

    Example:
        >>> Diagonal(torch.tensor([1.0, 3.0]), damping=0.5).dense().diagonal().tolist()
        [2.0, 4.0]
    """

    def __init__(self, variance_D: Tensor, damping: float = 0.0) -> None:
        variance_D = variance_D.double()
        self.variance_D = variance_D + damping * variance_D.mean()
        self.dim = len(variance_D)
        self.device = variance_D.device

    def times(self, M_TD: Tensor) -> Tensor:
        return M_TD * (self.variance_D if self.variance_D.dim() == 1 else self.variance_D[:, None])

    def dense(self) -> Tensor:
        return torch.diag_embed(self.variance_D)

    def marginal(self, sizes: Sequence[int], held: Sequence[int]) -> Tensor:
        batch = self.variance_D.shape[:-1]
        modes = self.variance_D.reshape(*batch, *sizes)
        others = [len(batch) + mode for mode in range(len(sizes)) if mode not in held]
        return torch.diag_embed((modes.mean(others) if others else modes).reshape(*batch, -1))

    def fold(self, B_CR: Tensor, taps: int) -> Metric:
        blocks = torch.einsum("cr,cq,cs->rqs", B_CR, self.variance_D.reshape(-1, taps), B_CR)
        R = B_CR.shape[1]
        folded = B_CR.new_zeros(R, taps, R, taps)
        folded.diagonal(dim1=1, dim2=3).copy_(blocks.permute(0, 2, 1))
        return Dense(folded.reshape(R * taps, R * taps))

    def nested_projection(self, target_TD: Tensor) -> Tensor:
        return self.variance_D.sqrt()[:, None] * target_TD.mT
