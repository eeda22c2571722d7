"""The multiplier of one budget.

`dual(lambda) = min_o sum_i loss_i(o_i) + lambda (cost(o) - limit)` is at most the loss of any plan within the limit,
and concave. Every plan is a line in `lambda`. The lines of two plans, one over the limit and one within it, meet at a
third multiplier; its best plan replaces one of them, until no plan lies below the point where they meet.

Letters: S sites, O options, padded with infinite losses.

Source: Handler and Zang, "A dual algorithm for the constrained shortest path problem", 1980 (the search); Shoham and
Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988 (multipliers for such choices).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .padding import Tables

ROUNDING = 1e-14  # lines that are lower by this share are not


def multiplier(problem: Tables, within_S: Tensor) -> tuple[float, Tensor]:
    """The multiplier that maximises the dual function, and a plan within the limit that is the best one for it.

    Args:
        problem: of one unit; its plan of least loss exceeds the limit.
        within_S: the cheapest plan, which does not.

    Example:
        >>> problem = Tables.of([[5, 1], [2, 1]], [[[1, 3]], [[1, 3]]], [4])
        >>> multiplier(problem, torch.tensor([0, 0]))
        (0.5, tensor([1, 0]))
    """
    losses_SO, costs_SO, limit = problem.losses_SO, problem.costs_USO[0], float(problem.limits_U)
    rows_S = torch.arange(len(losses_SO))

    def line(chosen_S: Tensor) -> tuple[float, float]:
        return problem.loss(chosen_S), float(costs_SO[rows_S, chosen_S].sum())

    over, within = line(losses_SO.argmin(1)), line(within_S)
    while True:
        slope = (within[0] - over[0]) / (over[1] - within[1])
        chosen_S = (losses_SO + slope * costs_SO).argmin(1)
        loss, cost = line(chosen_S)
        meet = min(own_loss + slope * own_cost for own_loss, own_cost in (over, within))
        if loss + slope * cost >= meet - ROUNDING * (abs(loss) + slope * abs(cost)):
            return slope, within_S
        if cost <= limit:
            within, within_S = (loss, cost), chosen_S
        else:
            over = loss, cost
