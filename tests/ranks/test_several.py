"""Several budgets at once, against brute force, branch and cut and the bound that any multipliers give."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.knapsacks import by_milp

from rankwise.ranks.solvers import BudgetError, Tables, least_loss, solve

pytestmark = pytest.mark.usefixtures("one_thread")

Losses, Costs = list[list[float]], list[list[list[float]]]


def made(seed: int, sites: int, options: int, units: int) -> tuple[Losses, Costs]:
    """Sites as networks have them: the loss falls with the rank; units weigh the ranks differently; dense is exact."""
    draw = random.Random(seed)
    losses, costs = [], []
    for _ in range(sites):
        weight, rate = draw.uniform(0.3, 3), draw.uniform(2, 9)
        twist = [draw.uniform(0.6, 1.6) for _ in range(options)]
        losses.append([weight * math.exp(-rate * r / options) * draw.uniform(0.9, 1.1) for r in range(1, options)])
        losses[-1].append(0.0)
        sizes = [draw.randint(5, 50) for _ in range(units)]
        costs.append(
            [
                [sizes[u] * (r + 1) * (twist[r], 1 / twist[r], 1)[u] for r in range(options - 1)]
                + [0.8 * sizes[u] * options]
                for u in range(units)
            ]
        )
    return losses, costs


def shares(costs: Costs, fractions: list[float]) -> list[float]:
    return [fraction * sum(site[unit][-1] for site in costs) for unit, fraction in enumerate(fractions)]


def loss(losses: Losses, chosen: list[int]) -> float:
    return sum(site[index] for site, index in zip(losses, chosen, strict=True))


def cost(costs: Costs, chosen: list[int], unit: int) -> float:
    return sum(site[unit][index] for site, index in zip(costs, chosen, strict=True))


def brute_force(losses: Losses, costs: Costs, limits: list[float]) -> float:
    total = torch.zeros(1, dtype=torch.float64)
    used = [torch.zeros(1, dtype=torch.float64) for _ in limits]
    for site, units in zip(losses, costs, strict=True):
        total = (total[:, None] + torch.tensor(site, dtype=torch.float64)).flatten()
        used = [(u[:, None] + torch.tensor(c, dtype=torch.float64)).flatten() for u, c in zip(used, units, strict=True)]
    fits = torch.stack([u <= limit for u, limit in zip(used, limits, strict=True)]).all(0)
    return float(total.where(fits, math.inf).min())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(2, 60), (3, 40), (4, 24)]),
    fractions=st.lists(st.floats(0.2, 0.9), min_size=2, max_size=3),
)
def test_few_sites_are_solved_exactly(seed: int, shape: tuple[int, int], fractions: list[float]) -> None:
    losses, costs = made(seed, *shape, units=len(fractions))
    limits = shares(costs, fractions)
    best = brute_force(losses, costs, limits)
    if best == math.inf:
        with pytest.raises(BudgetError):
            least_loss(losses, costs, limits)
        return
    solution = solve(Tables.of(losses, costs, limits))
    chosen = solution.chosen_S.tolist()
    assert all(cost(costs, chosen, unit) <= limit for unit, limit in enumerate(limits))
    assert solution.gap == 0
    assert loss(losses, chosen) == pytest.approx(best, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("sites, options, units", [(10, 20, 2), (10, 20, 3), (30, 20, 2)])
@pytest.mark.parametrize("seed", range(2))
def test_branch_and_cut_finds_nothing_better(sites: int, options: int, units: int, seed: int) -> None:
    losses, costs = made(seed, sites, options, units)
    limits = shares(costs, [0.5, 0.55, 0.45][:units])
    solution = solve(Tables.of(losses, costs, limits))
    chosen = solution.chosen_S.tolist()
    assert all(cost(costs, chosen, unit) <= limit for unit, limit in enumerate(limits))
    best = by_milp(losses, costs, limits)
    assert best * (1 - 1e-9) <= loss(losses, chosen) <= best + solution.gap + 1e-9 * best
    assert solution.gap == 0 or units == 3


@pytest.mark.parametrize("work", [0, 100, 10_000])
def test_with_little_work_it_is_close_and_says_how_close(work: int) -> None:
    """Multipliers, repair and exchanges, and what little work adds to them."""
    ratios = []
    for seed in range(40):
        losses, costs = made(seed, 3, 30, 2)
        limits = shares(costs, [0.5, 0.55])
        solution = solve(Tables.of(losses, costs, limits), work)
        chosen, best = solution.chosen_S.tolist(), brute_force(losses, costs, limits)
        assert all(cost(costs, chosen, unit) <= limit for unit, limit in enumerate(limits))
        assert best * (1 - 1e-12) <= loss(losses, chosen) <= best + solution.gap + 1e-12
        ratios.append(loss(losses, chosen) / best)
    assert sum(ratios) / len(ratios) < 1.01
    assert max(ratios) < 1.1


def test_a_larger_budget_is_never_worse() -> None:
    losses, costs = made(2, 8, 30, 2)
    found = [
        loss(losses, least_loss(losses, costs, shares(costs, [0.3 + step / 40, 0.3 + step / 50]))) for step in range(20)
    ]
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(found))


def test_many_sites_come_close_to_the_bound() -> None:
    """No plan is better than the dual function, so little can be missing."""
    losses, costs = made(0, 60, 50, 2)
    limits = shares(costs, [0.5, 0.5])
    chosen = least_loss(losses, costs, limits)
    bound = max(
        sum(
            min(e + a * c + b * d for e, c, d in zip(site, *units, strict=True))
            for site, units in zip(losses, costs, strict=True)
        )
        - a * limits[0]
        - b * limits[1]
        for a in (0, *(10 ** (k / 8) * 1e-4 for k in range(24)))
        for b in (0, *(10 ** (k / 8) * 1e-4 for k in range(24)))
    )
    assert bound <= loss(losses, chosen) <= 1.02 * bound
    assert all(cost(costs, chosen, unit) <= limit for unit, limit in enumerate(limits))


def test_a_budget_that_does_not_bind_changes_nothing() -> None:
    losses, costs = made(3, 4, 20, 2)
    (limit, _) = shares(costs, [0.4, 1])
    alone = least_loss(losses, [site[:1] for site in costs], [limit])
    both = least_loss(losses, costs, [limit, 10 * sum(max(site[1]) for site in costs)])
    assert loss(losses, both) == pytest.approx(loss(losses, alone))


def test_an_infinite_limit_is_none() -> None:
    losses, costs = made(3, 4, 20, 2)
    (limit, _) = shares(costs, [0.4, 1])
    alone = least_loss(losses, [site[:1] for site in costs], [limit])
    assert loss(losses, least_loss(losses, costs, [limit, math.inf])) == pytest.approx(loss(losses, alone), rel=1e-12)
    free = least_loss(losses, costs, [math.inf, math.inf])
    assert loss(losses, free) == 0


def test_no_budget_takes_the_least_loss() -> None:
    assert least_loss([[3, 1, 2], [0, 5]], [[], []], []) == [1, 0]


def test_what_cannot_be_met_is_named_with_the_least_that_can() -> None:
    """Two ways to build a site, each cheap in one unit only."""
    losses, costs = [[1.0, 1.0, 0.0]], [[[1.0, 9.0, 10.0], [9.0, 1.0, 10.0]]]
    assert least_loss(losses, costs, [9, 1]) == [1]
    for limits, unit, least in (([0.5, 10], 0, 1), ([10, 0.5], 1, 1), ([1, 8], 1, 9)):
        with pytest.raises(BudgetError) as caught:
            least_loss(losses, costs, limits)
        assert (caught.value.unit, caught.value.least) == (unit, least)


def test_equal_inputs_give_equal_plans() -> None:
    losses, costs = made(5, 12, 30, 3)
    limits = shares(costs, [0.5, 0.6, 0.55])
    assert least_loss(losses, costs, limits) == least_loss(losses, costs, limits)
