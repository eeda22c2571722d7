"""Rank by the number of directions that a weight uses: effective rank and stable rank.

Letters: K singular values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..linalg.spectrum import effective_rank_of, stable_rank_of
from .free import SpectralRule
from .spectra import Unfolding


def _mean(ranks: Sequence[float]) -> float:
    return max(sum(ranks) / len(ranks), 1.0)


@dataclass(frozen=True, kw_only=True)
class EffectiveRank(SpectralRule):
    """`r = exp(-sum_i p_i log p_i)` with `p_i = sigma_i / sum_j sigma_j`; the mean over a convolution's groups.

    It counts directions by their entropy and so keeps most of a flat spectrum: a cautious rule. Within a budget ranks
    have these proportions.

    Source: Roy and Vetterli, "The effective rank: a measure of effective dimensionality", EUSIPCO 2007.
    """

    name: ClassVar[str] = "effective_rank"
    summary: ClassVar[str] = "exponential of the entropy of the singular values"

    def rank(self, groups: Sequence[Unfolding]) -> float:
        return _mean([float(effective_rank_of(unfolding.values_K)) for unfolding in groups])


@dataclass(frozen=True, kw_only=True)
class StableRank(SpectralRule):
    """`r = sum_i sigma_i^2 / sigma_1^2`: energy in units of the strongest direction; the mean over groups.

    If one direction dominates, it is far below the effective rank: too bold alone, useful as a floor.

    Source: Rudelson and Vershynin, "Sampling from large matrices: an approach through geometric functional analysis",
    2007, arXiv math/0503442.
    """

    name: ClassVar[str] = "stable_rank"
    summary: ClassVar[str] = "energy in units of the strongest direction; best as a floor"

    def rank(self, groups: Sequence[Unfolding]) -> float:
        return _mean([float(stable_rank_of(unfolding.values_K)) for unfolding in groups])
