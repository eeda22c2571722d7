"""The best plan of all, by searches among the few options that plans better than one at hand can have.

The dual function is at most the loss of every plan within the limits. So is, for every site, the least of the lower
bounds of its options. The floor is the largest of these. A search with some spare finds the best of all plans that lose
at most the floor and the spare, and looks only at options whose bounds are no larger. It begins with a small spare,
which leaves a few options of a few sites, and raises it until the best plan known lies within it: then none is better.

If a search takes too much work, the best plan known is returned, with the gap between it and what was proven.

Letters: S sites, O options, U units.

Source: Pisinger, "A minimal algorithm for the multiple-choice knapsack problem", 1995 (a core that grows as needed).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .bounds import Bounds
from .padding import Tables
from .search import Search

# Pairs of states and options that one search looks at, at most: some seconds. With several units a pair takes longer.
WORK, WORK_SEVERAL = 1 << 24, 1 << 21
FIRST = 2.0**-12  # the first spare, as a share of the gap between the plan at hand and the floor
CHEAP = 1000  # pairs of a search that takes a millisecond or two: then the spare grows faster
EPS = torch.finfo(torch.float64).eps


class Solution(NamedTuple):
    """One option of every site, and by how much another plan can lose less, at most: 0 if none is better."""

    chosen_S: Tensor
    gap: float


def best_plan(problem: Tables, chosen_S: Tensor, multipliers_U: Tensor, work: int | None = None) -> Solution:
    """The plan with the least loss within the limits, of equal ones the cheapest.

    Args:
        problem: options and limits.
        chosen_S: a plan that meets the limits.
        multipliers_U: those that maximise the dual function, or nearly.
        work: pairs that one search looks at, at most; by default as many as take some seconds.
    """
    if work is None:
        work = WORK if len(multipliers_U) == 1 else WORK_SEVERAL
    # Sums of losses and costs are exact up to this, relative to their size.
    share = 4 * EPS * (len(chosen_S) + 8)
    bounds = Bounds.around(multipliers_U, problem.limits_U + share * problem.limits_U.abs())
    least = problem.loss(chosen_S)
    rounding = share * (abs(least) + float(multipliers_U @ problem.limits_U.abs()))
    reduced_SO, floor = bounds.reduced(problem)
    # In a better plan no option lies further above the least of its site than this.
    near, near_SO = problem.only(reduced_SO <= least - floor + rounding)
    bounds_SO = bounds.options(near)
    floor = min(max(floor, float(bounds_SO.amin(1).max())), least)
    spare, proven = max((least - floor) * FIRST, rounding), floor
    while True:
        most = floor + spare + rounding
        core, core_SO = near.only(bounds_SO <= most)
        search = Search(core, bounds, most, work)
        if (found_S := search.best()) is not None:
            found_S = near_SO.gather(1, core_SO.gather(1, found_S[:, None]))[:, 0]
            chosen_S = min(chosen_S, found_S, key=lambda plan_S: (problem.loss(plan_S), *problem.cost(plan_S).tolist()))
            least = problem.loss(chosen_S)
        if not search.is_whole:
            return Solution(chosen_S, max(least - proven, 0.0))
        if least - floor <= spare:
            return Solution(chosen_S, 0.0)
        proven, spare = floor + spare, min((4 if work - search.work < CHEAP else 2) * spare, least - floor)
