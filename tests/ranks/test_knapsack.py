"""The knapsack against brute force and against laws that hold for any input."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankwise.ranks.solvers import one_budget
from rankwise.ranks.solvers.one_budget import front, hull


class Choice(NamedTuple):
    """An option's cost in the budget's unit and its error."""

    cost: float
    error: float


def knapsack(sites: list[list[Choice]], budget: float) -> list[int]:
    return one_budget.knapsack(
        [[choice.cost for choice in site] for site in sites],
        [[choice.error for choice in site] for site in sites],
        budget,
    )


costs, errors = st.integers(0, 60), st.floats(0, 1, allow_subnormal=False).map(lambda value: round(value, 6))
options = st.lists(st.builds(Choice, costs, errors), min_size=1, max_size=7)
problems = st.lists(options, min_size=1, max_size=4)


def total(sites: list[list[Choice]], picked: tuple[int, ...] | list[int]) -> Choice:
    chosen = [site[index] for site, index in zip(sites, picked, strict=True)]
    return Choice(sum(choice.cost for choice in chosen), sum(choice.error for choice in chosen))


def brute_force(sites: list[list[Choice]], budget: float) -> float:
    every = (total(sites, picked) for picked in itertools.product(*(range(len(site)) for site in sites)))
    return min((plan.error for plan in every if plan.cost <= budget), default=math.inf)


def decaying(weight: float, rate: float, count: int = 24, unit: int = 3) -> list[Choice]:
    """A site as networks have them: the error falls with the rank like a spectrum's tail, dense is exact."""
    curve = [Choice(unit * rank, weight * math.exp(-rate * rank)) for rank in range(1, count)]
    return [*curve, Choice(unit * count, 0.0)]


@settings(max_examples=150, deadline=None)
@given(sites=problems, share=st.floats(0, 1.1))
def test_plans_meet_the_budget_and_no_single_exchange_improves_them(sites: list[list[Choice]], share: float) -> None:
    least = sum(min(choice.cost for choice in site) for site in sites)
    most = sum(max(choice.cost for choice in site) for site in sites)
    budget = least + share * (most - least)
    picked = knapsack(sites, budget)
    plan = total(sites, picked)
    assert plan.cost <= budget
    assert plan.error >= brute_force(sites, budget) - 1e-9
    for site, choices in enumerate(sites):
        for choice in choices:
            exchanged = plan.cost - choices[picked[site]].cost + choice.cost
            assert exchanged > budget or choice.error >= choices[picked[site]].error


@settings(max_examples=60, deadline=None)
@given(
    sites=st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.05, 0.6), st.integers(1, 4)), min_size=2, max_size=3),
    share=st.floats(0.15, 0.9),
)
def test_close_to_brute_force_on_decaying_errors(sites: list[tuple[float, float, int]], share: float) -> None:
    made = [decaying(weight, rate, unit=unit) for weight, rate, unit in sites]
    least = sum(site[0].cost for site in made)
    budget = least + share * (sum(site[-1].cost for site in made) - least)
    found, best = total(made, knapsack(made, budget)).error, brute_force(made, budget)
    dense = sum(weight for weight, _, _ in sites)
    assert found <= best * 1.01 + 1e-3 * dense


@settings(max_examples=30, deadline=None)
@given(site=options, budget=st.integers(0, 70))
def test_one_site_is_solved_exactly(site: list[Choice], budget: int) -> None:
    if min(choice.cost for choice in site) > budget:
        with pytest.raises(ValueError, match="cannot be met"):
            knapsack([site], budget)
    else:
        assert total([site], knapsack([site], budget)).error == brute_force([site], budget)


@settings(max_examples=40, deadline=None)
@given(sites=st.lists(options, min_size=2, max_size=2), share=st.floats(0, 1))
def test_two_sites_are_solved_exactly(sites: list[list[Choice]], share: float) -> None:
    least = sum(min(choice.cost for choice in site) for site in sites)
    budget = least + share * (sum(max(choice.cost for choice in site) for site in sites) - least)
    assert total(sites, knapsack(sites, budget)).error == pytest.approx(brute_force(sites, budget), abs=1e-9)


def test_convex_curves_are_solved_exactly_at_the_corners() -> None:
    """At budgets that a multiplier reaches, the relaxation is tight and the plan is optimal."""
    made = [decaying(3.0, 0.3, 8)[:-1], decaying(1.0, 0.1, 8)[:-1], decaying(2.0, 0.9, 8)[:-1]]
    for budget in range(9, 3 * 3 * 7 + 1, 3):  # all steps cost the same, so every budget is a corner
        assert total(made, knapsack(made, budget)).error == pytest.approx(brute_force(made, budget))


@settings(max_examples=40, deadline=None)
@given(sites=problems)
def test_unlimited_budget_takes_the_least_error(sites: list[list[Choice]]) -> None:
    plan = total(sites, knapsack(sites, math.inf))
    assert plan.error == pytest.approx(sum(min(choice.error for choice in site) for site in sites))


def test_a_larger_budget_is_hardly_ever_worse() -> None:
    made = [decaying(weight, rate, 16, unit) for weight, rate, unit in ((3, 0.2, 2), (1, 0.4, 5), (2, 0.1, 3))]
    found = [total(made, knapsack(made, budget)).error for budget in range(10, 161)]
    assert max(after - before for before, after in itertools.pairwise(found)) < 0.03 * found[0]
    assert found[-1] == 0


def test_options_off_the_hull_fill_the_slack() -> None:
    """(2, 6) lies above the line from (1, 9) to (4, 0): the multiplier never takes it, the exchange does."""
    sites = [[Choice(1, 9), Choice(2, 6.5), Choice(4, 0)]]
    assert hull(*zip(*sites[0], strict=True)) == [0, 2]
    assert knapsack(sites, 3) == [1]
    assert knapsack(sites, 4) == [2]


def test_an_edge_that_does_not_fit_blocks_only_its_site() -> None:
    sites = [[Choice(0, 100), Choice(50, 0)], [Choice(0, 3), Choice(2, 2), Choice(4, 1)]]
    assert knapsack(sites, 10) == [0, 2]


def test_the_documented_example() -> None:
    assert knapsack([[Choice(1, 5), Choice(3, 1)], [Choice(1, 2), Choice(3, 1)]], budget=4) == [1, 0]


def test_a_budget_that_cannot_be_met_says_what_can() -> None:
    with pytest.raises(ValueError, match=r"budget 0 of 1,500 cannot be met: the cheapest plan costs 2,300"):
        knapsack([[Choice(1000, 0), Choice(2000, 0)], [Choice(1300, 0)]], 1500)


def test_no_sites() -> None:
    assert knapsack([], 0) == []


@settings(max_examples=60, deadline=None)
@given(site=options)
def test_pareto_keeps_what_nothing_beats(site: list[Choice]) -> None:
    kept = [site[index] for index in front(*zip(*site, strict=True))]
    assert all(a.cost < b.cost and a.error > b.error for a, b in itertools.pairwise(kept))
    for choice in site:
        assert any(other.cost <= choice.cost and other.error <= choice.error for other in kept)


@settings(max_examples=60, deadline=None)
@given(site=options)
def test_hull_is_convex_and_below_every_option(site: list[Choice]) -> None:
    kept = [site[index] for index in hull(*zip(*site, strict=True))]
    slopes = [(a.error - b.error) / (b.cost - a.cost) for a, b in itertools.pairwise(kept)]
    assert all(a > b for a, b in itertools.pairwise(slopes))
    for choice in site:
        for a, b in itertools.pairwise(kept):
            if a.cost <= choice.cost <= b.cost:
                line = a.error + (b.error - a.error) * (choice.cost - a.cost) / (b.cost - a.cost)
                assert choice.error >= line - 1e-9


def test_equal_inputs_give_equal_plans() -> None:
    made = [decaying(1.0, 0.2) for _ in range(6)]
    assert knapsack(made, 200) == knapsack([list(site) for site in made], 200)
