"""Multiple-choice knapsack by Lagrange multiplier: one option per site, least total error within a budget.

`min sum_i error_i(o_i)  subject to  sum_i cost_i(o_i) <= budget`, over options `o_i` of every site i.

For a multiplier each site decides alone, and only options on the lower convex hull of its (cost, error) points are ever
chosen; lowering the multiplier step by step therefore walks the hull edges in the order of their slope. Slack that the
walk leaves is filled by the single exchange that helps most per step, among all options and not only those on hulls.

Source: Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988 (the multiplier).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch


class Choice(NamedTuple):
    """An option's cost in the budget's unit and its error."""

    cost: float
    error: float


def pareto(options: Sequence[Choice]) -> list[int]:
    """Indices of the options that no other beats in cost and error, by ascending cost."""
    kept: list[int] = []
    for index in sorted(range(len(options)), key=lambda i: (options[i].cost, options[i].error)):
        if not kept or options[index].error < options[kept[-1]].error:
            kept.append(index)
    return kept


def hull(options: Sequence[Choice]) -> list[int]:
    """Indices of the lower convex hull, by ascending cost and descending error."""
    kept: list[int] = []
    for index in pareto(options):
        while len(kept) >= 2 and _slope(options[kept[-2]], options[kept[-1]]) <= _slope(
            options[kept[-2]], options[index]
        ):
            kept.pop()
        kept.append(index)
    return kept


def knapsack(sites: Sequence[Sequence[Choice]], budget: float) -> list[int]:
    """The chosen option of every site.

    Args:
        sites: options of every site; each site needs at least one.
        budget: the largest allowed total cost.

    Returns:
        One option index per site, with total cost at most `budget`.

    Raises:
        ValueError: if even the cheapest options cost more than the budget, with the least that can be had.

    Example:
        >>> knapsack([[Choice(1, 5), Choice(3, 1)], [Choice(1, 2), Choice(3, 1)]], budget=4)
        [1, 0]
    """
    hulls = [hull(options) for options in sites]
    chosen = [path[0] for path in hulls]
    cost = sum(options[index].cost for options, index in zip(sites, chosen, strict=True))
    if cost > budget:
        raise ValueError(f"the budget of {budget:,.0f} cannot be met: the cheapest plan costs {cost:,.0f}")
    edges = sorted(
        (
            (_slope(options[a], options[b]), site, b)
            for site, (options, path) in enumerate(zip(sites, hulls, strict=True))
            for a, b in pairwise(path)
        ),
        reverse=True,
    )
    blocked: set[int] = set()
    for _, site, index in edges:  # per site the slopes fall, so edges of one site come in order
        extra = sites[site][index].cost - sites[site][chosen[site]].cost
        if site in blocked or cost + extra > budget:
            blocked.add(site)  # a later edge of this site would start from an option it has not reached
            continue
        chosen[site] = index
        cost += extra
    return _fill(sites, chosen, budget)


def _fill(sites: Sequence[Sequence[Choice]], chosen: list[int], budget: float) -> list[int]:
    """Exchange single options while one lowers the error within the budget; the largest gain first."""
    tables = [
        (
            torch.tensor([option.cost for option in options], dtype=torch.float64),
            torch.tensor([option.error for option in options], dtype=torch.float64),
        )
        for options in sites
    ]
    cost = sum(options[index].cost for options, index in zip(sites, chosen, strict=True))
    while True:
        best = (0.0, -1, -1)
        for site, (costs, errors) in enumerate(tables):
            gains = errors[chosen[site]] - errors
            gains[costs - costs[chosen[site]] > budget - cost] = 0
            top = int(gains.argmax())
            if float(gains[top]) > best[0]:
                best = (float(gains[top]), site, top)
        if best[1] < 0:
            return chosen
        _, site, index = best
        cost += sites[site][index].cost - sites[site][chosen[site]].cost
        chosen[site] = index


def _slope(a: Choice, b: Choice) -> float:
    """Error removed per cost from option a to the dearer option b."""
    return (a.error - b.error) / (b.cost - a.cost)
