"""Rules that say how much rank each site needs by itself; a budget scales all sites equally.

Such a rule gives every option the scale `s_o` up to which it is enough: with ranks `r` and wanted ranks `w` that is
`s_o = min_j r_j / w_j`. Without a budget every site takes the cheapest option with `s_o >= 1`; with budgets the
cheapest with `s_o >= s`, for the largest s that meets them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from typing import ClassVar

from ..plan import DENSE
from .base import Candidates, Pick, Problem, Rule
from .budgeted import check_limits
from .spectra import Unfolding

SLACK = 1e-9  # wanted ranks are real numbers: an option that misses one by rounding is enough


class FreeRule(Rule):
    """A rule that decides for each site alone. It can also be a floor below another rule."""

    needs_budget: ClassVar[bool] = False

    @abstractmethod
    def scales(self, site: Candidates, prices: Sequence[float]) -> list[float]:
        """The scale up to which each option of a site with a choice is enough; infinite for dense.

        Args:
            site: with at least two options.
            prices: prices of the options, as from `Problem.shares`.

        Raises:
            ValueError: if the rule does not apply to a format.
        """

    @abstractmethod
    def wish(self, site: Candidates, index: int) -> str:
        """What the rule asked for when it took this option, in words."""

    def pick(self, site: Candidates, scales: Sequence[float], prices: Sequence[float], scale: float) -> int:
        """The option for a scale: the cheapest that is enough, else the one that comes nearest."""
        enough = [index for index, own in enumerate(scales) if own >= scale]
        if not enough:
            return max(range(len(scales)), key=scales.__getitem__)
        return min(enough, key=lambda index: (prices[index], site.options[index].error))

    def enough(self, site: Candidates) -> list[bool]:
        """Which options satisfy the rule unscaled, for its use as a floor."""
        if len(site.options) == 1:
            return [True]
        prices = [float(option.params) for option in site.options]
        return [scale >= 1 - SLACK for scale in self.scales(site, prices)]

    def choose(self, problem: Problem) -> list[Pick]:
        prices = [problem.shares(site) for site in problem.sites]
        scales = [
            self.scales(site, price) if len(site.options) > 1 else [math.inf]
            for site, price in zip(problem.sites, prices, strict=True)
        ]

        def picks(scale: float) -> list[int]:
            return [
                self.pick(site, own, price, scale)
                for site, own, price in zip(problem.sites, scales, prices, strict=True)
            ]

        scale = 1 - SLACK
        if problem.limits:
            steps = sorted({0.0, *(own for site in scales for own in site)})
            # The first step whose plan is over a limit; the one before is the largest that is not.
            over = bisect_left(steps, True, key=lambda step: not problem.fits(picks(step)))
            if over == 0:
                check_limits(problem)
                raise ValueError(f"rule {self.name!r} finds no plan within all budgets together; take rule 'knapsack'")
            scale = steps[over - 1]
        return [Pick(index, self._why(site, index)) for site, index in zip(problem.sites, picks(scale), strict=True)]

    def _why(self, site: Candidates, index: int) -> str:
        option = site.options[index]
        if len(site.options) == 1:
            return site.idle if option.format == DENSE else "the only option"
        end = ": dense, as nothing cheaper is enough" if option.format == DENSE else f", error {option.error:.2%}"
        return f"{self.name}: {self.wish(site, index)}{end}"


class SpectralRule(FreeRule):
    """A free rule whose wanted rank follows from the singular values that the rank cuts off."""

    needs_spectra: ClassVar[bool] = True

    @abstractmethod
    def rank(self, groups: Sequence[Unfolding]) -> float:
        """The wanted rank, a real number, from the unfolding of each group of the layer; 0 asks for the full rank."""

    def wanted(self, site: Candidates, format: str) -> list[float]:
        """The wanted ranks of a format; a ValueError names the rule if it does not apply."""
        try:
            return [self.rank(groups) for groups in site.spectra(format)]
        except ValueError as error:
            raise ValueError(f"rule {self.name!r}: {error}") from None

    def scales(self, site: Candidates, prices: Sequence[float]) -> list[float]:
        wanted = {format: self.wanted(site, format) for format in formats_of(site)}
        full = {format: [_full(groups) for groups in site.spectra(format)] for format in wanted}
        return [
            math.inf
            if option.format == DENSE
            else min(
                math.inf if rank >= most else rank / (want or most)
                for rank, want, most in zip(option.ranks, wanted[option.format], full[option.format], strict=True)
            )
            for option in site.options
        ]

    def wish(self, site: Candidates, index: int) -> str:
        option = site.options[index]
        formats = formats_of(site) if option.format == DENSE else [option.format]
        asked = []
        for format in formats:
            pairs = zip(self.wanted(site, format), site.spectra(format), strict=True)
            asked.append(f"{format} " + ", ".join(f"{wanted:.4g} of {_full(groups)}" for wanted, groups in pairs))
        return "rank " + " or ".join(asked)


def formats_of(site: Candidates) -> list[str]:
    """The formats among a site's options."""
    return list(dict.fromkeys(option.format for option in site.options if option.format != DENSE))


def _full(groups: Sequence[Unfolding]) -> int:
    return max(len(unfolding.values_K) for unfolding in groups)
