"""The default rule: all sites together keep as much of their outputs as the budgets allow.

Letters: O options of a site.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Candidates, Pick, Problem, Rule, described
from .solvers import Values, least_loss

LEAST_KEPT = 1e-6  # an option that loses everything gets a finite loss, so that plans that need it can be compared


@dataclass(frozen=True, kw_only=True)
class Knapsack(Rule):
    """`max prod_i (1 - error_i(o_i))  subject to  sum_i cost_iu(o_i) <= limit_u`, the best of all plans.

    The errors are relative squared errors of the sites' outputs; `1 - error` is the share of the energy that a site
    keeps. A signal that passes through all sites keeps about the product. So a site that loses nearly all of its output
    costs more than many that lose a little each; a sum of errors would not tell them apart. The rule never runs the
    network, and works for every format. With several budgets and many sites the plan may only be close to the best.

    Example:
        >>> str(Knapsack())
        'knapsack'
    """

    name: ClassVar[str] = "knapsack"
    summary: ClassVar[str] = "largest product of what the layers keep, within the budgets; the default, for all formats"

    def choose(self, problem: Problem) -> list[Pick]:
        return least(problem, [losses(site) for site in problem.sites])


def losses(site: Candidates) -> Tensor:
    """The loss of every option of a site; for tied sites, whose errors are sums, each has the loss of their mean."""
    errors_O = torch.tensor([option.error for option in site.options], dtype=torch.float64)
    return -site.members * (1 - errors_O / site.members).clamp_min(LEAST_KEPT).log()


def loss(error: float) -> float:
    """`-log(1 - error)`: the sum over sites stands for the product of what they keep.

    Example:
        >>> round(loss(0.5), 3), round(loss(1.0), 3)
        (0.693, 13.816)
    """
    return -math.log(max(1 - error, LEAST_KEPT))


def check_limits(problem: Problem) -> None:
    """Raise a BudgetError if no plan meets the limits."""
    least(problem, [[0.0] * len(site.options) for site in problem.sites])


def least(problem: Problem, losses: Sequence[Values]) -> list[Pick]:
    """Picks with the least sum of losses, within the problem's limits; a BudgetError if there are none."""
    costs = [list(site.costs.values()) for site in problem.sites]
    chosen = least_loss(losses, costs, list(problem.limits.values()))
    return [Pick(index, described(site, index)) for site, index in zip(problem.sites, chosen, strict=True)]
