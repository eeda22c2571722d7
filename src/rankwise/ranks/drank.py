"""Ranks in proportion to the root of a site's effective rank over its cost: a closed form.

Letters: K singular values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..plan import DENSE
from .base import Candidates
from .free import SpectralRule, formats_of
from .spectra import Unfolding


@dataclass(frozen=True, kw_only=True)
class DRank(SpectralRule):
    """`k_i = sqrt(R_i / omega_i) T / sum_j sqrt(R_j omega_j)`: R effective rank, omega cost of one rank, T budget.

    It minimises `sum_i R_i / k_i` within the budget. R is the exponential of the entropy of `sigma^2 / sum sigma^2`. A
    site whose rank would cost as much as dense stays dense, and the others share what is left; bisection then finds the
    common factor of all ranks. Only for formats with one rank.

    Source: "Layer-wise dynamic rank for compressing large language models" (D-Rank), 2025, arXiv 2509.25622.
    """

    name: ClassVar[str] = "drank"
    summary: ClassVar[str] = "ranks by effective rank and cost, in closed form; formats with one rank"
    needs_budget: ClassVar[bool] = True

    def rank(self, groups: Sequence[Unfolding]) -> float:
        return sum(_information(unfolding) for unfolding in groups) / len(groups)

    def scales(self, site: Candidates, prices: Sequence[float]) -> list[float]:
        weights = {}
        for format in formats_of(site):
            wanted = self.wanted(site, format)
            if len(wanted) > 1:
                raise ValueError(
                    f"rule 'drank': site {site.name!r}: {format} has {len(wanted)} ranks, the rule is for formats with "
                    f"one; choose formats among svd and spatial_svd"
                )
            weights[format] = math.sqrt(wanted[0] / _cost_of_a_rank(site, prices, format))
        return [
            math.inf if option.format == DENSE else option.ranks[0] / weights[option.format] for option in site.options
        ]

    def wish(self, site: Candidates, index: int) -> str:
        wanted = " or ".join(f"{self.wanted(site, name)[0]:.4g}" for name in formats_of(site))
        return f"effective rank of the energy {wanted}"


def allocate(information: Sequence[float], costs: Sequence[float], budget: float) -> list[float]:
    """The closed form itself: real ranks `k_i` for R, omega and T.

    Args:
        information: R of every site.
        costs: omega of every site, the cost of one rank.
        budget: T, in the unit of the costs, equal to `sum_i k_i omega_i`.

    Example:
        >>> [round(rank, 2) for rank in allocate([100, 50, 400], [8192, 8192, 15104], 3e6)]
        [82.8, 58.55, 121.96]
    """
    total = sum(math.sqrt(R * omega) for R, omega in zip(information, costs, strict=True))
    return [math.sqrt(R / omega) * budget / total for R, omega in zip(information, costs, strict=True)]


def _information(unfolding: Unfolding) -> float:
    squares_K = unfolding.values_K.square()
    share_K = squares_K / squares_K.sum().clamp_min(torch.finfo(torch.float64).tiny)
    return math.exp(float(-torch.special.xlogy(share_K, share_K).sum()))


def _cost_of_a_rank(site: Candidates, prices: Sequence[float], format: str) -> float:
    points = sorted(
        (option.ranks[0], price) for option, price in zip(site.options, prices, strict=True) if option.format == format
    )
    (low, cheap), (high, dear) = points[0], points[-1]
    return (dear - cheap) / (high - low) if high > low else cheap / low
