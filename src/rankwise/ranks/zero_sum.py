"""Components leave one by one, those first that hardly change the loss, and such that the changes cancel."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..plan import DENSE
from .base import Candidates, Pick, Problem, Rule, described
from .budgeted import check_limits


@dataclass(frozen=True, kw_only=True)
class ZeroSum(Rule):
    """Remove the component with the least `abs(d)`, its sign opposite to the sum so far, until all budgets are met.

    `d_i = -sigma_i g_i` is the change of the loss, to first order, when component i of a site leaves (`slopes` of
    `linalg.reduced_rank`). The last component that a site still has is the next that it can lose. Nothing is saved
    before the rank is below break-even: until then the site stays dense. A component counts the same whatever the size
    of its site, and large changes are not predicted: at small budgets the rule needs a floor.

    Args:
        floor: least share of a site's parameters, 0 to 1; 0 for the published rule.

    Raises:
        ValueError: for a floor outside that range, formats other than svd, or a budget that the floor does not allow.

    Source: "Zero-Sum SVD" (ZS-SVD), 2026, arXiv 2602.02848. There any component of a site may leave; here the fit keeps
    the leading ones, so the rule decides how many.
    """

    name: ClassVar[str] = "zero_sum"
    summary: ClassVar[str] = "first-order changes of the loss that cancel, component by component; svd, a loss"
    needs_gradients: ClassVar[bool] = True
    needs_loss: ClassVar[bool] = True

    floor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.floor <= 1:
            raise ValueError(f"rule 'zero_sum': floor is {self.floor}; it must be from 0 to 1")

    def choose(self, problem: Problem) -> list[Pick]:
        check_limits(problem)
        ladders = [_Ladder.of(site, self.floor) for site in problem.sites]
        pairs = list(zip(problem.sites, ladders, strict=True))
        slopes = [list(site.slopes()) if ladder.ranks else [] for site, ladder in pairs]
        left = [len(own) for own in slopes]
        heaps: dict[bool, list[tuple[float, int]]] = {False: [], True: []}  # by whether the loss rises

        def offer(number: int) -> None:
            """The component that a site can lose next."""
            if left[number] > ladders[number].least:
                change = slopes[number][left[number] - 1]
                heapq.heappush(heaps[change > 0], (abs(change), number))

        for number in range(len(ladders)):
            offer(number)
        chosen = [ladder.option(rank) for ladder, rank in zip(ladders, left, strict=True)]
        total = 0.0
        while not problem.fits(chosen):
            heap = heaps[total < 0] or heaps[total >= 0]
            if not heap:
                raise ValueError(
                    f"rule 'zero_sum': with a floor of {self.floor:g} no plan meets the budgets; lower it, or take "
                    "rule 'knapsack'"
                )
            _, number = heapq.heappop(heap)
            left[number] -= 1
            total += slopes[number][left[number]]
            chosen[number] = ladders[number].option(left[number])
            offer(number)
        return [
            Pick(index, f"zero_sum: {rank} of {len(own)} components, {described(site, index)}" if own else site.idle)
            for site, index, rank, own in zip(problem.sites, chosen, left, slopes, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class _Ladder:
    """The options of a site by rank: which one holds so many components.

    Attributes:
        ranks: of the options, ascending.
        indices: of these options; the last is that of more components than any has.
        least: the fewest components that may be left.
    """

    ranks: Sequence[int]
    indices: Sequence[int]
    least: int

    @classmethod
    def of(cls, site: Candidates, floor: float) -> _Ladder:
        formats = {option.format for option in site.options} - {DENSE}
        if formats - {"svd"} or site.members > 1:
            what = "is tied to others" if site.members > 1 else f"has {', '.join(sorted(formats))}"
            raise ValueError(
                f"rule 'zero_sum': site {site.name!r} {what}; the rule is for svd without ties: pass formats=[\"svd\"]"
            )
        whole = next((at for at, option in enumerate(site.options) if option.format == DENSE), None)
        rows = sorted(
            (option.ranks[0], at)
            for at, option in enumerate(site.options)
            if option.format != DENSE and option.params >= floor * site.dense.params
        )
        ranks, indices = [rank for rank, _ in rows], [at for _, at in rows]
        top = whole if whole is not None else (indices or [0])[-1]
        return cls(ranks=ranks, indices=[*indices, top], least=ranks[0] if ranks else 0)

    def option(self, rank: int) -> int:
        """The option for so many components: the largest that needs no more; dense above the largest."""
        if not self.ranks or rank > self.ranks[-1]:
            return self.indices[-1]
        return self.indices[max(bisect_right(self.ranks, rank) - 1, 0)]
