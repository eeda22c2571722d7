"""One option per site with the least total loss within any number of budgets.

`min sum_i loss_i(o_i)  subject to  sum_i cost_iu(o_i) <= limit_u` for every unit u
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .ellipsoid import several_budgets
from .enumeration import improved
from .errors import BudgetError
from .exchanges import least_shares
from .one_budget import knapsack, multiplier
from .padding import Costs, Tables

# With more sites, exchanges come near enough to the best plan within one budget: a single site leaves little slack.
FEW_SITES = 8


def least_loss(losses: Sequence[Sequence[float]], costs: Sequence[Costs], limits: Sequence[float]) -> list[int]:
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
    if not limits:
        return [min(range(len(site)), key=site.__getitem__) for site in losses]
    if len(limits) == 1:
        own, (limit,) = [units[0] for units in costs], limits
        chosen = knapsack(own, losses, limit)
        if len(losses) > FEW_SITES or limit == math.inf:
            return chosen
        chosen_S = torch.tensor(chosen)
        multipliers_U = torch.tensor([multiplier(own, losses, limit)], dtype=torch.float64)
        problem = Tables.of(losses, costs, limits)
    else:
        problem = Tables.of(losses, costs, limits)
        start_S = least_shares(problem)
        if not problem.fits(start_S):
            start_S = torch.tensor(_cheapest(costs, limits))
        chosen_S, multipliers_U = several_budgets(problem, start_S)
    return improved(problem, chosen_S, multipliers_U).tolist()


def _cheapest(costs: Sequence[Costs], limits: Sequence[float]) -> list[int]:
    """A plan within all limits: with the least cost in the last unit that the other limits allow."""
    last = len(limits) - 1
    chosen = least_loss([units[last] for units in costs], [units[:last] for units in costs], limits[:last])
    least = sum(units[last][index] for units, index in zip(costs, chosen, strict=True))
    if least > limits[last]:
        raise BudgetError(last, limits[last], least)
    return chosen


__all__ = ["BudgetError", "least_loss"]
