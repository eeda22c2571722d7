"""One option per site with the least total loss within any number of budgets.

`min sum_i loss_i(o_i)  subject to  sum_i cost_iu(o_i) <= limit_u` for every unit u
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .ellipsoid import several_budgets
from .errors import BudgetError
from .exact import Solution, best_plan
from .exchanges import least_shares
from .one_budget import knapsack
from .padding import Costs, Tables, Values

logger = logging.getLogger("rankwise")


def least_loss(losses: Sequence[Values], costs: Sequence[Costs], limits: Sequence[float]) -> list[int]:
    """The index of the chosen option of every site.

    Args:
        losses: `losses[site][option]`.
        costs: `costs[site][unit][option]`.
        limits: one for each unit; may be empty.

    Raises:
        BudgetError: for the first budget that no plan meets together with those before it, with the least possible.

    Example:
        >>> least_loss([[5, 1, 0], [2, 1, 0]], [[[1, 2, 4], [1, 4, 2]], [[1, 2, 4], [1, 4, 2]]], [5, 6])
        [2, 0]
    """
    if not limits or not losses:
        return [min(range(len(site)), key=site.__getitem__) for site in losses]
    solution = solve(Tables.of(losses, costs, limits))
    if solution.gap:
        logger.debug("ranks: the plan found may lose up to %.3g more than the best one", solution.gap)
    return solution.chosen_S.tolist()


def solve(problem: Tables, work: int | None = None) -> Solution:
    """The plan with the least loss within all limits, and how much less another may lose.

    Args:
        problem: options and limits, at least one.
        work: as for `exact.best_plan`.

    Raises:
        BudgetError: as for `least_loss`.
    """
    # An infinite limit becomes one that every plan meets.
    unlimited_U = 1 + 2 * problem.costs_USO.abs().amax(2).sum(1)
    problem = replace(problem, limits_U=torch.minimum(problem.limits_U, unlimited_U))
    if len(problem.limits_U) == 1:
        return knapsack(problem, work)
    start_S = least_shares(problem)
    if not problem.fits(start_S):
        start_S = _cheapest(problem)
    for unit in range(len(problem.limits_U)):  # often one limit is the only one that matters
        solution = knapsack(problem.of_units([unit]), work)
        if not solution.gap and problem.fits(solution.chosen_S):
            return solution
    chosen_S, multipliers_U = several_budgets(problem, start_S)
    return best_plan(problem, chosen_S, multipliers_U, work)


def _cheapest(problem: Tables) -> Tensor:
    """A plan within all limits: with the least cost in the last unit that the other limits allow."""
    *earlier, last = range(len(problem.limits_U))
    last_SO = problem.costs_USO[last].where(problem.losses_SO < torch.inf, torch.inf)
    chosen_S = solve(replace(problem.of_units(earlier), losses_SO=last_SO)).chosen_S
    if not problem.fits(chosen_S):
        raise BudgetError(last, float(problem.limits_U[last]), float(problem.cost(chosen_S)[last]))
    return chosen_S


__all__ = ["BudgetError", "Solution", "Tables", "Values", "least_loss", "solve"]
