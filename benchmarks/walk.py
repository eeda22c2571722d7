"""How ranks were chosen within one budget before all plans were looked at: the baseline of `benchmarks.planning`.

A walk along the convex hulls of the sites by descending slope, then the single exchanges that gain most, then exchanges
of two sites.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise

import torch

from rankwise.ranks.solvers.exchanges import ROUNDS, fill
from rankwise.ranks.solvers.fronts import front
from rankwise.ranks.solvers.padding import Tables

SITES_IN_PAIRS = 64
Lists = Sequence[Sequence[float]]


def walked(losses: Lists, costs: Lists, limit: float) -> list[int]:
    """The plan of the walk and the exchanges; the cheapest plan must meet the limit."""
    paths = [front(*columns) for columns in zip(costs, losses, strict=True)]
    kept_costs = [[own[index] for index in path] for own, path in zip(costs, paths, strict=True)]
    kept_losses = [[own[index] for index in path] for own, path in zip(losses, paths, strict=True)]
    chosen = _along_hulls(kept_losses, kept_costs, limit)
    problem = Tables.of(kept_losses, [[own] for own in kept_costs], [limit])
    chosen = fill(problem, torch.tensor(chosen)).tolist()
    if 1 < len(chosen) <= SITES_IN_PAIRS:
        chosen = _exchange_pairs(kept_losses, kept_costs, chosen, limit)
    return [path[index] for path, index in zip(paths, chosen, strict=True)]


def _hull(costs: Sequence[float], losses: Sequence[float]) -> list[int]:
    kept: list[int] = []
    slopes: list[float] = []
    for index, (cost, loss) in enumerate(zip(costs, losses, strict=True)):
        while slopes and slopes[-1] <= (losses[kept[-2]] - loss) / (cost - costs[kept[-2]]):
            kept.pop()
            slopes.pop()
        if kept:
            slopes.append((losses[kept[-1]] - loss) / (cost - costs[kept[-1]]))
        kept.append(index)
    return kept


def _along_hulls(losses: Lists, costs: Lists, limit: float) -> list[int]:
    edges = sorted(
        (
            ((own_losses[a] - own_losses[b]) / (own_costs[b] - own_costs[a]), site, b)
            for site, (own_losses, own_costs) in enumerate(zip(losses, costs, strict=True))
            for a, b in pairwise(_hull(own_costs, own_losses))
        ),
        reverse=True,
    )
    chosen, blocked = [0] * len(costs), set[int]()
    cost = sum(own[0] for own in costs)
    for _, site, index in edges:
        extra = costs[site][index] - costs[site][chosen[site]]
        if site in blocked or cost + extra > limit:
            blocked.add(site)  # a later edge of this site would start from an option it has not reached
            continue
        chosen[site] = index
        cost += extra
    return chosen


def _exchange_pairs(losses: Lists, costs: Lists, chosen: list[int], limit: float) -> list[int]:
    """Choose two sites anew, the best for both with all others fixed, while that lowers the loss."""
    costs_O = [torch.tensor(own, dtype=torch.float64) for own in costs]
    losses_O = [torch.tensor(own, dtype=torch.float64) for own in losses]
    for _ in range(ROUNDS):
        before = list(chosen)
        for a, b in combinations(range(len(costs)), 2):
            others = sum(costs[site][index] for site, index in enumerate(chosen) if site not in (a, b))
            partner = torch.searchsorted(costs_O[b], limit - others - costs_O[a], right=True) - 1
            joint = torch.where(partner < 0, torch.inf, losses_O[a] + losses_O[b][partner.clamp_min(0)])
            best = int(joint.argmin())
            if float(joint[best]) < (losses[a][chosen[a]] + losses[b][chosen[b]]) * (1 - 1e-12):
                chosen[a], chosen[b] = best, int(partner[best])
        if chosen == before:
            break
    return chosen
