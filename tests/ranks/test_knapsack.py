"""One budget: plans are the best of all, by brute force, by dynamic programmes and by branch and cut."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.knapsacks import KINDS, between, brute_force, by_milp, by_whole_costs, decaying, total

from rankwise.ranks.solvers import BudgetError, Solution, Tables, least_loss, solve
from rankwise.ranks.solvers.bounds import Bounds
from rankwise.ranks.solvers.exchanges import fill
from rankwise.ranks.solvers.fronts import front, unbeaten
from rankwise.ranks.solvers.multiplier import multiplier

pytestmark = pytest.mark.usefixtures("one_thread")

Lists = list[list[float]]

whole, tenths = st.integers(0, 60).map(float), st.integers(0, 10).map(lambda tenth: tenth / 10)
fractions = st.floats(-1, 5, allow_subnormal=False)


def tables(values: st.SearchStrategy[float], most: int = 5, size: int = 7) -> st.SearchStrategy[tuple[Lists, Lists]]:
    """Losses and costs of up to `most` sites with up to `size` options."""
    option = st.tuples(values, values)
    sites = st.lists(st.lists(option, min_size=1, max_size=size), min_size=1, max_size=most)
    return sites.map(lambda sites: tuple([[pair[k] for pair in site] for site in sites] for k in range(2)))  # type: ignore[return-value]


def solved(losses: Lists, costs: Lists, limit: float, work: int | None = None) -> Solution:
    return solve(Tables.of(losses, [[own] for own in costs], [limit]), work)


def knapsack(losses: Lists, costs: Lists, limit: float) -> list[int]:
    """The plan, which is proven to be the best and meets the limit."""
    solution = solved(losses, costs, limit)
    chosen = solution.chosen_S.tolist()
    assert solution.gap == 0
    assert total(costs, chosen) <= limit
    return chosen


# ---- the best plan


@settings(max_examples=150, deadline=None)
@given(made=st.one_of(tables(whole), tables(tenths), tables(fractions)), share=st.floats(-0.1, 1.1), data=st.data())
def test_no_combination_is_better(made: tuple[Lists, Lists], share: float, data: st.DataObject) -> None:
    """Also with limits that some plan just meets, where costs are fractions that do not add up exactly."""
    losses, costs = made
    limit = between(costs, share)
    if data.draw(st.booleans()):
        limit = total(costs, [data.draw(st.integers(0, len(own) - 1)) for own in costs])
    best = brute_force(losses, [[own] for own in costs], [limit])
    if best == math.inf:
        with pytest.raises(BudgetError) as caught:
            knapsack(losses, costs, limit)
        assert caught.value.least == pytest.approx(sum(map(min, costs)))
        return
    assert total(losses, knapsack(losses, costs, limit)) == pytest.approx(best, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("sites, options, share", [(6, 40, 0.2), (14, 30, 0.5), (40, 12, 0.1), (40, 12, 0.8)])
@pytest.mark.parametrize("seed", range(3))
def test_no_sum_of_whole_costs_has_a_better_plan(sites: int, options: int, share: float, seed: int) -> None:
    draw = random.Random(seed)
    losses = [[draw.random() ** 3 for _ in range(options)] for _ in range(sites)]
    costs = [[float(draw.randint(1, 50)) for _ in range(options)] for _ in range(sites)]
    limit = float(int(between(costs, share)))
    found = total(losses, knapsack(losses, costs, limit))
    assert found == pytest.approx(by_whole_costs(losses, costs, limit), rel=1e-12)


@pytest.mark.parametrize("sites, options", [(14, 60), (14, 200), (40, 60), (100, 30)])
@pytest.mark.parametrize("kind", KINDS)
def test_branch_and_cut_finds_nothing_better(kind: str, sites: int, options: int) -> None:
    losses, costs = KINDS[kind](sites, options, seed=sites + options)
    limit = between(costs, 0.3)
    found = total(losses, knapsack(losses, costs, limit))
    assert found == pytest.approx(by_milp(losses, [[own] for own in costs], [limit]), rel=1e-9)


def test_losses_that_fall_by_the_same_for_every_cost() -> None:
    """Then no multiplier says more than another: the best plan is the one that fills the limit most."""
    draw = random.Random(0)
    costs = [[float(draw.randint(1, 30)) for _ in range(12)] for _ in range(20)]
    losses = [[30 - cost for cost in own] for own in costs]
    for limit in (101.0, 207.0, 350.0):
        assert total(costs, knapsack(losses, costs, limit)) == limit


# ---- laws


@settings(max_examples=60, deadline=None)
@given(made=st.one_of(tables(whole), tables(fractions)), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_the_order_of_sites_and_options_does_not_matter(made: tuple[Lists, Lists], share: float, seed: int) -> None:
    losses, costs = made
    limit, draw = between(costs, share) + 1e-9, random.Random(seed)
    chosen = knapsack(losses, costs, limit)
    sites = draw.sample(range(len(losses)), len(losses))
    orders = [draw.sample(range(len(losses[site])), len(losses[site])) for site in sites]
    mixed_losses, mixed_costs = (
        [[values[site][option] for option in order] for site, order in zip(sites, orders, strict=True)]
        for values in (losses, costs)
    )
    mixed = knapsack(mixed_losses, mixed_costs, limit)
    for values, others in ((losses, mixed_losses), (costs, mixed_costs)):
        assert total(values, chosen) == pytest.approx(total(others, mixed), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_larger_budget_is_never_worse(kind: str) -> None:
    losses, costs = KINDS[kind](14, 100, seed=1)
    found = [total(losses, knapsack(losses, costs, between(costs, step / 60))) for step in range(61)]
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(found))
    assert found[-1] == pytest.approx(sum(map(min, losses)))


@settings(max_examples=60, deadline=None)
@given(made=tables(whole, most=3, size=4), share=st.floats(0, 1.1))
def test_of_equally_good_plans_the_cheapest(made: tuple[Lists, Lists], share: float) -> None:
    losses, costs = made
    limit = between(costs, share)
    chosen = knapsack(losses, costs, limit)
    every = itertools.product(*(range(len(own)) for own in losses))
    equal = [plan for plan in every if total(losses, plan) == total(losses, chosen)]
    assert total(costs, chosen) == min(total(costs, plan) for plan in equal)


def test_of_equal_options_the_first() -> None:
    assert knapsack([[3, 1, 1], [2, 2, 0]], [[1, 2, 2], [1, 1, 5]], 3) == [1, 0]
    assert knapsack([[3, 1, 1], [2, 2, 0]], [[1, 2, 2], [1, 1, 5]], math.inf) == [1, 2]


def test_equal_inputs_give_equal_plans() -> None:
    losses, costs = decaying(20, 30, seed=4)
    limit = between(costs, 0.4)
    assert knapsack(losses, costs, limit) == knapsack([list(own) for own in losses], costs, limit)


# ---- special cases


def test_no_sites_no_limit_and_one_site() -> None:
    assert least_loss([], [], [0]) == []
    assert knapsack([[9, 6, 0]], [[1, 2, 4]], 3) == [1]  # above the line between the others
    assert knapsack([[9, 6, 0]], [[1, 2, 4]], 4) == [2]
    assert knapsack([[9, 6, 0], [1, 0, 2]], [[1, 2, 4], [7, 7, 7]], math.inf) == [2, 1]


def test_a_budget_that_cannot_be_met_says_what_can() -> None:
    with pytest.raises(BudgetError, match=r"budget 0 of 1,500 cannot be met: the cheapest plan costs 2,300"):
        knapsack([[0, 0], [0]], [[1000, 2000], [1300]], 1500)


def test_an_infinite_loss_is_avoided_where_it_can_be() -> None:
    losses, costs = [[math.inf, 5, 1], [math.inf, 3, 2]], [[1.0, 3, 4], [1.0, 3, 4]]
    assert knapsack(losses, costs, 6) == [1, 1]
    assert knapsack(losses, costs, 5) == [2, 0]  # one must be infinite, so the other one decides
    assert knapsack(losses, costs, 4) == [0, 1]
    with pytest.raises(ValueError, match="the loss of an option is not a number"):
        knapsack([[math.nan, 1.0]], [[1.0, 2.0]], 5)


def test_losses_of_very_different_size() -> None:
    """A site that hardly matters is still decided well."""
    losses, costs = [[1e6, 1e3, 0], [2e-3, 1e-3, 0], [3e-3, 1e-3, 0]], [[1.0, 5, 20]] * 3
    limit = 22.0
    assert total(losses, knapsack(losses, costs, limit)) == brute_force(losses, [[own] for own in costs], [limit])


# ---- work that is cut short


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("work", [0, 10, 100, 1000])
def test_the_gap_is_an_upper_bound(kind: str, work: int) -> None:
    losses, costs = KINDS[kind](30, 60, seed=7)
    limit = between(costs, 0.3)
    best = total(losses, knapsack(losses, costs, limit))
    solution = solved(losses, costs, limit, work)
    chosen = solution.chosen_S.tolist()
    assert total(costs, chosen) <= limit
    assert best * (1 - 1e-12) <= total(losses, chosen) <= best + solution.gap + 1e-12
    assert solution.gap > 0 or total(losses, chosen) == pytest.approx(best, rel=1e-12)


def test_work_is_cut_short_and_said() -> None:
    losses, costs = decaying(30, 60, seed=7)
    gaps = [solved(losses, costs, between(costs, 0.3), work).gap for work in (10, 1000, 100_000)]
    assert gaps[0] >= gaps[1] >= gaps[2] == 0 < gaps[0]


def test_too_many_sums_to_look_at() -> None:
    """All plans with the same cost lose the same, and hardly two cost the same: no bound helps, only luck."""
    draw = random.Random(0)
    costs = [[float(draw.randint(1, 10**9)) for _ in range(60)] for _ in range(14)]
    losses = [[10**9 - cost for cost in own] for own in costs]
    limit = between(costs, 0.3)
    solution = solved(losses, costs, limit, 1 << 16)
    chosen = solution.chosen_S.tolist()
    missing = limit - total(costs, chosen)
    assert 0 <= missing == pytest.approx(solution.gap, abs=2)
    assert solution.gap < 1e-5 * limit


# ---- parts


@settings(max_examples=60, deadline=None)
@given(made=tables(whole, most=4))
def test_a_front_keeps_what_nothing_beats(made: tuple[Lists, Lists]) -> None:
    losses, costs = made
    problem = Tables.of(losses, [[own] for own in costs], [0.0])
    kept_SO = unbeaten(problem.costs_USO[0], problem.losses_SO)
    for site, (own_losses, own_costs) in enumerate(zip(losses, costs, strict=True)):
        kept = front(own_costs, own_losses)
        assert sorted(kept) == kept_SO[site].nonzero()[:, 0].tolist()
        points = [(own_costs[index], own_losses[index]) for index in kept]
        assert all(a[0] < b[0] and a[1] > b[1] for a, b in itertools.pairwise(points))
        for point in zip(own_costs, own_losses, strict=True):
            assert any(cost <= point[0] and loss <= point[1] for cost, loss in points)


@settings(max_examples=60, deadline=None)
@given(made=tables(fractions), share=st.floats(0, 0.99))
def test_no_multiplier_gives_a_larger_bound(made: tuple[Lists, Lists], share: float) -> None:
    losses, costs = made
    problem = Tables.of(losses, [[own] for own in costs], [between(costs, share) + 1e-9])
    problem, _ = problem.only(unbeaten(problem.costs_USO[0], problem.losses_SO))
    if problem.fits(problem.losses_SO.argmin(1)):
        return
    cheapest_S = problem.costs_USO[0].where(problem.losses_SO < math.inf, math.inf).argmin(1)

    def dual(value: float) -> float:
        return float((problem.losses_SO + value * problem.costs_USO[0]).amin(1).sum() - value * problem.limits_U)

    found, within_S = multiplier(problem, cheapest_S)
    assert problem.fits(within_S)
    size = max(abs(dual(found)), found * abs(float(problem.limits_U)), 1e-300)
    for factor in (0, 0.5, 0.9, 0.999, 1.001, 1.1, 2, 10):
        assert dual(found * factor) <= dual(found) + 1e-9 * size


@settings(max_examples=60, deadline=None)
@given(
    made=tables(fractions, most=4, size=4), room=st.floats(-5, 20), units=st.integers(1, 2), best=st.floats(0.01, 10)
)
def test_bounds_lie_below_every_plan(made: tuple[Lists, Lists], room: float, units: int, best: float) -> None:
    losses, costs = made
    twice = [[own, [2 - cost for cost in own]][:units] for own in costs]
    problem = Tables.of(losses, twice, [room] * units)
    bounds = Bounds.around(torch.full((units,), best, dtype=torch.float64), problem.limits_U)
    bound = float(bounds.rest(bounds.least(problem).sum(1), torch.zeros(units, 1, dtype=torch.float64)))
    assert bound <= brute_force(losses, twice, [room] * units) + 1e-9


def test_single_exchanges_fill_the_slack() -> None:
    problem = Tables.of([[100, 0], [3, 2, 1]], [[[0, 50]], [[0, 2, 4]]], [10])
    assert fill(problem, torch.tensor([0, 0])).tolist() == [0, 2]
