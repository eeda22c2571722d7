"""One budget: the multiple-choice knapsack problem, one option per site, least total loss.

`min sum_i loss_i(o_i)  subject to  sum_i cost_i(o_i) <= limit`, over options `o_i` of every site i.

Options that another of their site beats are left out. A Lagrange multiplier gives a plan near the best one and a bound
on what any plan loses; single exchanges fill the slack of that plan. A search then looks at all plans that can be
better.
"""

from __future__ import annotations

import torch

from .errors import BudgetError
from .exact import Solution, best_plan
from .exchanges import fill
from .fronts import unbeaten
from .multiplier import multiplier
from .padding import Tables


def knapsack(problem: Tables, work: int | None = None) -> Solution:
    """The plan with the least loss within one limit, of equal ones the cheapest.

    Args:
        problem: of one unit.
        work: as for `exact.best_plan`.

    Raises:
        BudgetError: if the cheapest plan exceeds the limit.

    Example:
        >>> knapsack(Tables.of([[5, 1], [2, 1]], [[[1, 3]], [[1, 3]]], [4])).chosen_S
        tensor([1, 0])
    """
    limit = float(problem.limits_U)
    front, places_SO = problem.only(unbeaten(problem.costs_USO[0], problem.losses_SO))
    chosen_S = front.losses_SO.argmin(1)
    solution = Solution(chosen_S, 0.0)
    if not front.fits(chosen_S):
        cheapest_S = front.costs_USO[0].where(front.losses_SO < torch.inf, torch.inf).argmin(1)
        if not front.fits(cheapest_S):
            raise BudgetError(0, limit, float(front.cost(cheapest_S)))
        slope, chosen_S = multiplier(front, cheapest_S)
        solution = best_plan(front, fill(front, chosen_S), torch.tensor([slope], dtype=torch.float64), work)
    return solution._replace(chosen_S=places_SO.gather(1, solution.chosen_S[:, None])[:, 0])
