"""Rank by energy: as many singular values as hold a share of the total.

Letters: K singular values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch.nn.utils.rnn import pad_sequence

from .free import SpectralRule
from .spectra import Unfolding


@dataclass(frozen=True, kw_only=True)
class Energy(SpectralRule):
    """`min r  subject to  sum_{i <= r} sigma_i^p >= share sum_i sigma_i^p`, p = 2 if `squared`, else 1.

    With p = 2 and `svd`, `1 - share` is the relative squared error of the layer's output (metric "input") or weight
    (metric "weight"); with `tucker2`, whose two ranks both cut, the error in the weight metric is at most twice that.
    Groups of a convolution are added up because they share one rank.

    Args:
        share: share of the energy to keep, above 0 and at most 1.
        squared: whether energy is the square of a singular value, or the value itself.

    Raises:
        ValueError: for a share outside that range.

    Example:
        >>> import torch
        >>> values_K = torch.tensor([3.0, 2.0, 1.0])
        >>> Energy(share=0.9).rank([Unfolding(values_K=values_K, rows=3, columns=3)])
        2.0

    Source: Zhang, Zou, He, Sun, "Accelerating Very Deep Convolutional Networks for Classification and Detection", 2015,
    arXiv 1505.06798 (PCA energy as a measure for rank selection).
    """

    name: ClassVar[str] = "energy"
    summary: ClassVar[str] = "as many singular values as hold a share of the energy"

    share: float = 0.9
    squared: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"rule 'energy': share is {self.share}; it must be above 0 and at most 1")

    def rank(self, groups: Sequence[Unfolding]) -> float:
        values = pad_sequence([unfolding.values_K for unfolding in groups]).double()
        parts_K = (values.square() if self.squared else values).sum(1)
        wanted = self.share * parts_K.sum() * (1 - 1e-12)
        return float(1 + int((parts_K.cumsum(0) < wanted).sum()))
