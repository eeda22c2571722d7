"""Multiple-choice knapsack by Lagrange multiplier: one option per site, least total error within a budget.

`min sum_i error_i(o_i)  subject to  sum_i cost_i(o_i) <= budget`, over options `o_i` of every site i.

For a multiplier each site decides alone, and only options on the lower convex hull of its (cost, error) points are ever
chosen; lowering the multiplier step by step therefore walks the hull edges in the order of their slope. Slack that the
walk leaves is filled by the single exchange that helps most per step, among all options and not only those on hulls,
and with few sites, where one of them can leave much slack, by exchanges of two sites at once.
Few combinations are simply enumerated.

Source: Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988 (the multiplier).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import NamedTuple

import torch

# With more sites than this the slack that one of them leaves is too small a part for exchanges of two to matter.
SITES_IN_PAIRS = 64
ROUNDS = 8


# Up to this many combinations are enumerated.
ENUMERABLE = 20_000


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
    if math.prod(len(pareto(options)) for options in sites) <= ENUMERABLE:
        return _exact(sites, budget)
    chosen = _fill(sites, chosen, budget)
    return _exchange_pairs(sites, chosen, budget) if 1 < len(sites) <= SITES_IN_PAIRS else chosen


def _exact(sites: Sequence[Sequence[Choice]], budget: float) -> list[int]:
    """The best of all combinations, site by site; a combination that another beats in cost and error is dropped."""
    costs = errors = torch.zeros(1, dtype=torch.float64)
    steps: list[tuple[list[int], list[int]]] = []  # per site: the combination before, and the option added to it
    for options in sites:
        path = pareto(options)
        more = torch.tensor([options[index] for index in path], dtype=torch.float64)
        costs = (costs[:, None] + more[:, 0]).flatten()
        errors = (errors[:, None] + more[:, 1]).flatten()
        kept = pareto([Choice(*pair) for pair in zip(costs.tolist(), errors.tolist(), strict=True)])
        steps.append(([index // len(path) for index in kept], [path[index % len(path)] for index in kept]))
        costs, errors = costs[kept], errors[kept]
    place = int((costs <= budget).sum()) - 1  # the dearest that fits has the least error
    chosen = []
    for before, option in reversed(steps):
        chosen.append(option[place])
        place = before[place]
    return chosen[::-1]


def _exchange_pairs(sites: Sequence[Sequence[Choice]], chosen: list[int], budget: float) -> list[int]:
    """Choose two sites anew, all others kept, while that lowers the error: two sites alone are solved exactly."""
    paths = [pareto(options) for options in sites]
    costs = [torch.tensor([sites[i][j].cost for j in path], dtype=torch.float64) for i, path in enumerate(paths)]
    errors = [torch.tensor([sites[i][j].error for j in path], dtype=torch.float64) for i, path in enumerate(paths)]
    chosen = list(chosen)
    for _ in range(ROUNDS):
        improved = False
        for a, b in combinations(range(len(sites)), 2):
            others = sum(sites[i][chosen[i]].cost for i in range(len(sites)) if i not in (a, b))
            partner = torch.searchsorted(costs[b], budget - others - costs[a], right=True) - 1
            joint = torch.where(partner < 0, torch.inf, errors[a] + errors[b][partner.clamp_min(0)])
            best = int(joint.argmin())
            now = sites[a][chosen[a]].error + sites[b][chosen[b]].error
            if float(joint[best]) < now * (1 - 1e-12):
                chosen[a], chosen[b], improved = paths[a][best], paths[b][int(partner[best])], True
        if not improved:
            break
    return chosen


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
