"""The default rule: the least sum of the sites' errors within the budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from .base import Pick, Problem, Rule, described
from .several import least_loss


@dataclass(frozen=True, kw_only=True)
class Knapsack(Rule):
    """`min sum_i error_i(o_i)  subject to  sum_i cost_iu(o_i) <= limit_u`: multipliers, then slack filled by exchanges.

    The errors are relative squared errors of the sites' outputs. Their sum is not the loss of the network, but it needs
    no run of it, and every option of every format takes part.

    Example:
        >>> str(Knapsack())
        'knapsack'
    """

    name: ClassVar[str] = "knapsack"
    summary: ClassVar[str] = "least sum of the layers' errors within the budgets; the default, for all formats"

    def choose(self, problem: Problem) -> list[Pick]:
        return least(problem, [[option.error for option in site.options] for site in problem.sites])


def least(problem: Problem, losses: Sequence[Sequence[float]]) -> list[Pick]:
    """Picks with the least sum of any losses of the sites' options, within the problem's limits."""
    costs = [list(site.costs.values()) for site in problem.sites]
    chosen = least_loss(losses, costs, list(problem.limits.values()))
    return [Pick(index, described(site, index)) for site, index in zip(problem.sites, chosen, strict=True)]
