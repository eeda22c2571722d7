"""Choices of one option per site within limits, and ways to solve them that share nothing with the solvers."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

import numpy as np

Losses = Sequence[Sequence[float]]  # [site][option]
Costs = Sequence[Sequence[Sequence[float]]]  # [site][unit][option]


def uniform(sites: int, options: int, seed: int) -> tuple[list[list[float]], list[list[float]]]:
    """Losses and costs of one unit that have nothing to do with each other."""
    draw = random.Random(seed)
    losses = [[draw.random() for _ in range(options)] for _ in range(sites)]
    return losses, [[draw.randint(1, 1000) for _ in range(options)] for _ in range(sites)]


def decaying(sites: int, options: int, seed: int) -> tuple[list[list[float]], list[list[float]]]:
    """One rank for each option: losses fall with it like the tail of a spectrum, not smoothly; dense is exact."""
    draw = random.Random(seed)
    losses, costs = [], []
    for _ in range(sites):
        weight, rate, size = draw.uniform(0.3, 3), draw.uniform(1, 9), draw.randint(50, 500)
        losses.append([weight * math.exp(-rate * r / options) * draw.uniform(1, 1.01) for r in range(1, options)])
        losses[-1].append(0.0)
        costs.append([float(size * r) for r in range(1, options + 1)])
    return losses, costs


def two_ranks(sites: int, options: int, seed: int) -> tuple[list[list[float]], list[list[float]]]:
    """Two ranks for each option, as in partial Tucker, and microseconds; every third site is like the one before."""
    draw, side = random.Random(seed), math.isqrt(options)
    losses, costs = [], []
    for site in range(sites):
        if site % 3 == 2:
            losses.append(losses[-1])
            costs.append(costs[-1])
            continue
        (a, b), (i, o) = (draw.uniform(1, 6), draw.uniform(1, 6)), (draw.choice([16, 64, 128]), draw.choice([16, 64]))
        own = [(0.0, 9.0 * i * o)]
        for p, q in itertools.product(range(1, side + 1), repeat=2):
            kept = (1 - math.exp(-a * p / side) * (1 - p / side)) * (1 - math.exp(-b * q / side) * (1 - q / side))
            r, s = max(i * p // side, 1), max(o * q // side, 1)
            own.append((-math.log(max(kept, 1e-6)), i * r + 9.0 * r * s + s * o))
        losses.append([loss for loss, cost in own if cost <= own[0][1]])
        costs.append([20 + cost**0.8 * draw.uniform(0.95, 1.05) / 37 for _, cost in own if cost <= own[0][1]])
    return losses, costs


KINDS: dict[str, Callable[[int, int, int], tuple[list[list[float]], list[list[float]]]]] = {
    "uniform": uniform,
    "decaying": decaying,
    "two_ranks": two_ranks,
}


def between(costs: Sequence[Sequence[float]], share: float) -> float:
    """A limit at a share of the way from the cheapest plan to the most expensive one."""
    least = sum(map(min, costs))
    return least + share * (sum(map(max, costs)) - least)


def total(values: Sequence[Sequence[float]], chosen: Sequence[int]) -> float:
    return sum(own[index] for own, index in zip(values, chosen, strict=True))


def of_unit(costs: Costs, unit: int) -> list[Sequence[float]]:
    return [units[unit] for units in costs]


def meets(costs: Costs, limits: Sequence[float], chosen: Sequence[int]) -> bool:
    return all(total(of_unit(costs, unit), chosen) <= limit for unit, limit in enumerate(limits))


def brute_force(losses: Losses, costs: Costs, limits: Sequence[float]) -> float:
    """The least loss of all combinations within the limits; infinite if there is none."""
    every = itertools.product(*(range(len(own)) for own in losses))
    return min((total(losses, chosen) for chosen in every if meets(costs, limits, chosen)), default=math.inf)


def by_whole_costs(losses: Losses, costs: Sequence[Sequence[float]], limit: float) -> float:
    """The least loss by a dynamic programme over all costs up to the limit, which are whole numbers."""
    least = np.full(int(limit) + 1, np.inf)
    least[0] = 0.0
    for own_losses, own_costs in zip(losses, costs, strict=True):
        after = np.full_like(least, np.inf)
        for loss, cost in zip(own_losses, map(int, own_costs), strict=True):
            if cost <= limit:
                after[cost:] = np.minimum(after[cost:], least[: len(least) - cost] + loss)
        least = after
    return float(least.min())


def by_milp(losses: Losses, costs: Costs, limits: Sequence[float]) -> float:
    """The least loss by branch and cut (HiGHS)."""
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_array

    sites = [site for site, own in enumerate(losses) for _ in own]
    ones = np.ones(len(sites))
    one_each = coo_array((ones, (sites, range(len(sites)))))
    flat = [[cost / limit for own in of_unit(costs, unit) for cost in own] for unit, limit in enumerate(limits)]
    found = milp(
        np.concatenate([np.asarray(own, dtype=float) for own in losses]),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(np.array(flat), -np.inf, 1)],
        integrality=ones,
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    assert found.success
    taken = iter(found.x.round())
    chosen = [[next(taken) for _ in own].index(1) for own in losses]
    return total(losses, chosen)
