"""The default rule: what all sites together keep of their outputs is largest within the budgets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from .base import Candidates, Pick, Problem, Rule, described
from .solvers import least_loss

# An option that loses everything has a finite loss: plans that need it are compared, too.
LEAST_KEPT = 1e-6


@dataclass(frozen=True, kw_only=True)
class Knapsack(Rule):
    """`max prod_i (1 - error_i(o_i))  subject to  sum_i cost_iu(o_i) <= limit_u`: multipliers, then exchanges.

    The errors are relative squared errors of the sites' outputs, and `1 - error` is the share of the energy that a site
    keeps. What passes through one site after the other keeps about the product, so that a site which loses nearly all
    of its output costs more than many that lose a little each; a sum of errors would not tell them apart. It needs
    no run of the network, and every option of every format takes part.

    Example:
        >>> str(Knapsack())
        'knapsack'
    """

    name: ClassVar[str] = "knapsack"
    summary: ClassVar[str] = "largest product of what the layers keep, within the budgets; the default, for all formats"

    def choose(self, problem: Problem) -> list[Pick]:
        return least(problem, [losses(site) for site in problem.sites])


def losses(site: Candidates) -> list[float]:
    """The loss of every option of a site; of tied ones, whose errors are added up, that of their mean."""
    return [site.members * loss(option.error / site.members) for option in site.options]


def loss(error: float) -> float:
    """`-log(1 - error)`, for sums that stand for the product of what sites keep.

    Example:
        >>> round(loss(0.5), 3), round(loss(1.0), 3)
        (0.693, 13.816)
    """
    return -math.log(max(1 - error, LEAST_KEPT))


def least(problem: Problem, losses: Sequence[Sequence[float]]) -> list[Pick]:
    """Picks with the least sum of any losses of the sites' options, within the problem's limits."""
    costs = [list(site.costs.values()) for site in problem.sites]
    chosen = least_loss(losses, costs, list(problem.limits.values()))
    return [Pick(index, described(site, index)) for site, index in zip(problem.sites, chosen, strict=True)]
