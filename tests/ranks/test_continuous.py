"""The descent over softmax weights: it ends at the budgets, near the best plan, to the single rank."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.rank_problems import problem, site

from rankwise.ranks import Problem, Rule, get_rule
from rankwise.ranks.budgeted import least
from rankwise.ranks.continuous import Continuous
from rankwise.ranks.solvers.padding import Tables

pytestmark = pytest.mark.usefixtures("one_thread")


def error(asked: Problem, rule: Rule) -> float:
    picks = rule.choose(asked)
    return sum(own.options[pick.option].error for own, pick in zip(asked.sites, picks, strict=True))


def geometric(count: int, ranks: int = 30) -> list[float]:
    return [(0.7 + 0.02 * count) ** k for k in range(ranks)]


def largest(asked: Problem, rule: Continuous) -> list[float]:
    """What the options of the largest weights cost, as shares of the limits, before any exchange."""
    costs = [list(own.costs.values()) for own in asked.sites]
    errors = [[option.error for option in own.options] for own in asked.sites]
    tables = Tables.of(errors, costs, list(asked.limits.values()))
    chosen_S = rule.largest(asked, tables)
    return (tables.cost(chosen_S) / tables.limits_U).tolist()


@pytest.mark.parametrize("limits", [{"params": 300}, {"params": 500}, {"params": 400, "macs": 3500}])
def test_the_multipliers_lead_to_the_budgets_and_the_product_does_not(limits: dict[str, float]) -> None:
    asked = problem(*(site(str(n), geometric(n), cost=3, dense=90) for n in range(10)), **limits)
    assert max(largest(asked, Continuous())) == pytest.approx(1, abs=0.05)
    twice = problem(*asked.sites, **{unit: 2 * limit for unit, limit in limits.items()})
    blind = Continuous(loss="product")
    assert [2 * share for share in largest(twice, blind)] == pytest.approx(largest(asked, blind))


def test_from_coarse_to_fine_down_to_one_rank() -> None:
    """200 ranks, 3 at a time."""
    flat = site("flat", [1.0] * 200, cost=3, dense=700)
    for limit, rank in ((100, 33), (300, 100), (599, 199)):
        (pick,) = Continuous(candidates=3, steps=40).choose(problem(flat, params=limit))
        assert flat.options[pick.option].ranks == (rank,)
    (pick,) = Continuous().choose(problem(flat, params=700))
    assert flat.options[pick.option].error == 0


@settings(max_examples=8, deadline=None)
@given(
    rates=st.lists(st.floats(0.5, 0.97), min_size=2, max_size=6),
    share=st.floats(0.2, 0.9),
    loss=st.sampled_from(["budget", "product"]),
)
def test_close_to_the_least_sum_of_errors_and_within_the_budget(rates: list[float], share: float, loss: str) -> None:
    sites = [site(str(n), [rate**k for k in range(20)], cost=2 + n, dense=20 * (2 + n)) for n, rate in enumerate(rates)]
    asked = problem(*sites, params=share * sum(own.dense.params for own in sites))
    rule = Continuous(loss=loss, steps=60)
    assert asked.fits([pick.option for pick in rule.choose(asked)])
    best = least(asked, [[option.error for option in own.options] for own in sites])
    smallest = sum(own.options[pick.option].error for own, pick in zip(sites, best, strict=True))
    assert smallest * (1 - 1e-9) <= error(asked, rule) <= 1.15 * smallest + 0.01


def test_reasons_and_settings() -> None:
    asked = problem(*(site(str(n), geometric(n), cost=3, dense=90) for n in range(4)), params=150)
    picks = Continuous().choose(asked)
    assert all(pick.why.startswith(("continuous: the largest weight, ", "continuous: exchanged")) for pick in picks)
    for text, message in (
        ("loss=sum", "loss is 'sum'; it must be budget or product"),
        ("candidates=2", "candidates is 2; at least 3"),
        ("steps=0", "steps is 0; at least 1"),
        ("beta=0", r"beta is 0\.0; it must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            get_rule(f"continuous:{text}")
