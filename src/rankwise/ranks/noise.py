"""Rank by noise: the singular values above those of a random matrix.

A trained weight is not signal plus white noise, so on the weight alone these rules are heuristics. The whitened weight
justifies them: a weight estimated by least squares from N inputs has an error with covariance
`sigma^2 Sigma^(-1) / N` in each row, so `W Sigma^(1/2)` is the true matrix plus white noise, the model of both rules.
A convolution with groups gets the largest rank of its groups.

If all values are noise, no direction is better than another and a low rank loses most. Such a site stays dense; if a
budget scales all ranks down, it asks for the full rank, so it is cut last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..linalg.evbmf import evbmf_of, weakened
from ..linalg.hard_threshold import hard_threshold
from .free import SpectralRule
from .spectra import Unfolding


@dataclass(frozen=True, kw_only=True)
class Evbmf(SpectralRule):
    """`r = #{i : sigma_i > s sqrt(M x)}`, `s^2` the noise variance of least free energy, M the longer side.

    It reads the weight's unfoldings in the metric "weight", the whitened ones in "input": by outputs for `svd`, by
    outputs and by channels for `tucker2`.

    Args:
        weakening: w in `int(full - w (full - r))`, above 0 and at most 1: how far to go in one of several stages.
        empty: "dense" leaves a site that is all noise dense, or cuts it last; "one" gives it rank 1.
        compat: give the popular port's results, which depend on the scale of the weights and need L <= M.

    Raises:
        ValueError: for a setting outside its range.

    Example:
        >>> import torch
        >>> noise = torch.randn(64, 200, generator=torch.Generator().manual_seed(0))
        >>> values_K = torch.linalg.svdvals(noise)
        >>> Evbmf(empty="one").rank([Unfolding(values_K=values_K, rows=64, columns=200)])
        1.0

    Sources: Nakajima, Sugiyama, Babacan, Tomioka, JMLR 14, 2013 (the rank); Kim et al., 2016, arXiv 1511.06530 (for
    Tucker-2); Gusak et al., "MUSCO", 2019, arXiv 1903.09973 (the weakening).
    """

    name: ClassVar[str] = "evbmf"
    summary: ClassVar[str] = "singular values above the noise, by variational Bayes"

    weakening: float = 1.0
    empty: str = "dense"
    compat: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.weakening <= 1:
            raise ValueError(f"rule 'evbmf': weakening is {self.weakening}; it must be above 0 and at most 1")
        if self.empty not in ("dense", "one"):
            raise ValueError(f"rule 'evbmf': empty is {self.empty!r}; it must be dense or one")

    def rank(self, groups: Sequence[Unfolding]) -> float:
        found = max(evbmf_of(g.values_K, g.rows, g.columns, compat=self.compat).rank for g in groups)
        if found == 0:
            return 0.0 if self.empty == "dense" else 1.0
        return float(weakened(found, max(len(g.values_K) for g in groups), self.weakening))


@dataclass(frozen=True, kw_only=True)
class GavishDonoho(SpectralRule):
    """`r = #{i : sigma_i > omega(beta) median(sigma)}`, beta the aspect ratio: the best hard threshold for white noise.

    A site that is all noise stays dense, or is cut last.

    Source: Gavish and Donoho, "The Optimal Hard Threshold for Singular Values is 4/sqrt(3)", 2014, arXiv 1305.5870.
    """

    name: ClassVar[str] = "gavish_donoho"
    summary: ClassVar[str] = "singular values above the best hard threshold for white noise"

    def rank(self, groups: Sequence[Unfolding]) -> float:
        return float(max(int((g.values_K > hard_threshold(g.values_K, g.rows, g.columns)).sum()) for g in groups))
