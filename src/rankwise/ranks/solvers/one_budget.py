"""One budget: multiple-choice knapsack by a Lagrange multiplier, one option per site, least total error.

`min sum_i error_i(o_i)  subject to  sum_i cost_i(o_i) <= budget`, over options `o_i` of every site i.

For a given multiplier each site decides alone, and chooses an option on the lower convex hull of its (cost, error)
points. Lowering the multiplier step by step therefore walks the hull edges in the order of their slope. The slack that
the walk leaves is filled by the single exchange that gains most, among all options and not only those on hulls; with
few sites, each of which can leave much slack, also by exchanges of two sites. Few combinations are simply enumerated.

Source: Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988 (the multiplier).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations, pairwise

import torch

from .errors import BudgetError
from .exchanges import ROUNDS, fill
from .padding import Tables

SITES_IN_PAIRS = 64  # with more sites one leaves so little slack that exchanges of two do not matter
ENUMERABLE = 20_000  # combinations that are enumerated, at most


def knapsack(costs: Sequence[Sequence[float]], errors: Sequence[Sequence[float]], budget: float) -> list[int]:
    """The index of the chosen option of every site; a BudgetError if even the cheapest ones exceed the budget.

    Args:
        costs, errors: `[site][option]`; each site has at least one option.
        budget: the largest allowed total cost.

    Example:
        >>> knapsack([[1, 3], [1, 3]], [[5, 1], [2, 1]], budget=4)
        [1, 0]
    """
    paths = [front(*columns) for columns in zip(costs, errors, strict=True)]
    # Options that another beats are left out; the others go by ascending cost and so by descending error.
    kept = [
        ([site_costs[index] for index in path], [site_errors[index] for index in path])
        for site_costs, site_errors, path in zip(costs, errors, paths, strict=True)
    ]
    hulls = [hull(*columns, range(len(columns[0]))) for columns in kept]
    chosen = [path[0] for path in hulls]
    cost = sum(site_costs[index] for (site_costs, _), index in zip(kept, chosen, strict=True))
    if cost > budget:
        raise BudgetError(0, budget, cost)
    if math.prod(map(len, paths)) <= ENUMERABLE:
        chosen = _exact(kept, budget)
    else:
        chosen = _walk(kept, hulls, chosen, cost, budget)
        problem = Tables.of([errors for _, errors in kept], [[costs] for costs, _ in kept], [budget])
        chosen = fill(problem, torch.tensor(chosen)).tolist()
        if 1 < len(kept) <= SITES_IN_PAIRS:
            chosen = _exchange_pairs(kept, chosen, budget)
    return [path[index] for path, index in zip(paths, chosen, strict=True)]


def multiplier(costs: Sequence[Sequence[float]], errors: Sequence[Sequence[float]], budget: float) -> float:
    """The multiplier that maximises the dual function: the slope of the hull edge on which the walk meets the budget.

    It is 0 if even the least errors cost no more than the budget.

    Example:
        >>> multiplier([[1, 3], [1, 3]], [[5, 1], [2, 1]], budget=4)
        0.5
    """
    paths = [hull(*columns) for columns in zip(costs, errors, strict=True)]
    left = budget - sum(own[path[0]] for own, path in zip(costs, paths, strict=True))
    edges = [
        ((own_errors[a] - own_errors[b]) / (own_costs[b] - own_costs[a]), own_costs[b] - own_costs[a])
        for own_costs, own_errors, path in zip(costs, errors, paths, strict=True)
        for a, b in pairwise(path)
    ]
    for slope, extra in sorted(edges, reverse=True):
        left -= extra
        if left < 0:
            return slope
    return 0.0


Columns = tuple[list[float], list[float]]  # costs of a site's options, ascending, and their errors, descending


def front(costs: Sequence[float], errors: Sequence[float]) -> list[int]:
    """Indices of the options that no other beats in cost and error, by ascending cost."""
    kept: list[int] = []
    pairs = list(zip(costs, errors, strict=True))
    for index in sorted(range(len(pairs)), key=pairs.__getitem__):
        if not kept or errors[index] < errors[kept[-1]]:
            kept.append(index)
    return kept


def hull(costs: Sequence[float], errors: Sequence[float], path: Sequence[int] | None = None) -> list[int]:
    """Indices of the lower convex hull, by ascending cost and descending error; `path` is the result of `front`."""
    kept: list[int] = []
    slopes: list[float] = []  # errors removed per cost on the edge that ends at each kept option but the first
    for index in front(costs, errors) if path is None else path:
        cost, error = costs[index], errors[index]
        while slopes and slopes[-1] <= (errors[kept[-2]] - error) / (cost - costs[kept[-2]]):
            kept.pop()
            slopes.pop()
        if kept:
            slopes.append((errors[kept[-1]] - error) / (cost - costs[kept[-1]]))
        kept.append(index)
    return kept


def _walk(
    sites: Sequence[Columns], hulls: Sequence[list[int]], chosen: list[int], cost: float, budget: float
) -> list[int]:
    """Walk the edges of all hulls in the order of their slopes, as far as the budget allows."""
    edges = sorted(
        (
            ((errors[a] - errors[b]) / (costs[b] - costs[a]), site, b)
            for site, ((costs, errors), path) in enumerate(zip(sites, hulls, strict=True))
            for a, b in pairwise(path)
        ),
        reverse=True,
    )
    blocked: set[int] = set()
    for _, site, index in edges:  # per site the slopes fall, so edges of one site come in order
        costs = sites[site][0]
        extra = costs[index] - costs[chosen[site]]
        if site in blocked or cost + extra > budget:
            blocked.add(site)  # a later edge of this site would start from an option it has not reached
            continue
        chosen[site] = index
        cost += extra
    return chosen


def _exact(sites: Sequence[Columns], budget: float) -> list[int]:
    """The best of all combinations, site by site; combinations that another beats in cost and error are dropped."""
    costs = errors = torch.zeros(1, dtype=torch.float64)
    steps: list[tuple[list[int], int]] = []  # per site, the combinations that are kept, and its number of options
    for site_costs, site_errors in sites:
        costs = (costs[:, None] + torch.tensor(site_costs, dtype=torch.float64)).flatten()
        errors = (errors[:, None] + torch.tensor(site_errors, dtype=torch.float64)).flatten()
        kept = front(costs.tolist(), errors.tolist())
        steps.append((kept, len(site_costs)))
        costs, errors = costs[kept], errors[kept]
    place = int((costs <= budget).sum()) - 1  # the most expensive one that fits has the least error
    chosen = []
    for kept, count in reversed(steps):
        place, index = divmod(kept[place], count)
        chosen.append(index)
    return chosen[::-1]


def _exchange_pairs(sites: Sequence[Columns], chosen: list[int], budget: float) -> list[int]:
    """Choose two sites anew, the best for both with all others fixed, while that lowers the error.

    Errors fall as costs rise, so the best partner of an option of one site is the other's most expensive one that fits.
    """
    costs = [torch.tensor(site_costs, dtype=torch.float64) for site_costs, _ in sites]
    errors = [torch.tensor(site_errors, dtype=torch.float64) for _, site_errors in sites]
    chosen = list(chosen)
    for _ in range(ROUNDS):
        improved = False
        for a, b in combinations(range(len(sites)), 2):
            others = sum(sites[i][0][chosen[i]] for i in range(len(sites)) if i not in (a, b))
            partner = torch.searchsorted(costs[b], budget - others - costs[a], right=True) - 1
            joint = torch.where(partner < 0, torch.inf, errors[a] + errors[b][partner.clamp_min(0)])
            best = int(joint.argmin())
            now = sites[a][1][chosen[a]] + sites[b][1][chosen[b]]
            if float(joint[best]) < now * (1 - 1e-12):
                chosen[a], chosen[b], improved = best, int(partner[best]), True
        if not improved:
            break
    return chosen
