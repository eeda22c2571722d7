"""Sites that are tied get one format and the same ranks, under every rule, and contradictions are refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.nets import batches_of
from support.rank_problems import brief
from torch import nn

from rankwise import RULES, Statistics, choose, evaluate, factorise, find, pareto
from rankwise.planning.profile import profile

Net = tuple[nn.Module, Statistics]
PAIR = ("block1.conv1", "block1.conv2")  # 12 x 12
TRIPLE = ("block2.conv2", "block3.conv1", "block3.conv2")  # 16 x 16
TIE = ("block1.conv?", r"re:block2\.conv2|block3\.conv.")

pytestmark = pytest.mark.usefixtures("one_thread")


def form(plan: Any, name: str) -> tuple[str, tuple[int, ...]]:
    return plan[name].format, plan[name].ranks


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if not rule.needs_loss])
def test_tied_sites_are_alike_under_every_rule(net: Net, curves: Any, name: str) -> None:
    model, stats = net
    if name == "drank":
        curves = profile(*net, formats=["svd", "spatial_svd"])
    trials = evaluate.Trials(model, lambda plan: factorise(model, plan, stats), batches_of(8, 3, 16, 16, seed=7)[:2])
    plan = choose(*net, rule=brief(name), keep={"macs": 0.5}, curves=curves, evaluate=trials, tie=TIE)
    assert len({form(plan, name) for name in PAIR}) == len({form(plan, name) for name in TRIPLE}) == 1
    assert any(plan[names[0]].ranks for names in (PAIR, TRIPLE))
    assert list(plan) == list(stats.sites)
    assert 0.3 < plan.planned["macs"] / plan.dense["macs"] <= 0.5
    assert find(factorise(model, plan, stats), torch.zeros(1, 3, 16, 16)).total_macs == plan.planned["macs"]
    assert all(plan[name].why.startswith("tied by 'block1.conv?', of 2 layers together: ") for name in PAIR)


def test_a_group_is_the_sum_of_its_sites(net: Net, curves: Any) -> None:
    """A network whose only free sites are one group: the best plan is the best of those with equal ranks."""
    plan = choose(*net, keep={"params": 0.75}, curves=curves, include=TRIPLE, tie=[TIE[1]])
    rest = plan.dense["params"] - sum(curves[name][0].params for name in TRIPLE)
    sums: dict[Any, list[float]] = {}
    for option in itertools.chain.from_iterable(curves[name] for name in TRIPLE):
        count, params, error = sums.get((option.format, option.ranks), [0, rest, 0.0])
        sums[option.format, option.ranks] = [count + 1, params + option.params, error + option.error]
    limit = 0.75 * plan.dense["params"]
    best = min(error for count, params, error in sums.values() if count == 3 and params <= limit)
    assert sum(plan[name].error or 0.0 for name in TRIPLE) == pytest.approx(best)
    for name in TRIPLE:
        assert (plan[name].error, plan[name].params) in [(option.error, option.params) for option in curves[name]]


@settings(max_examples=15, deadline=None)
@given(keep=st.floats(0.3, 1.0), unit=st.sampled_from(["params", "macs", "bytes"]))
def test_budgets_are_met_and_ties_cost_error(net: Net, curves: Any, keep: float, unit: str) -> None:
    tied = choose(*net, keep={unit: keep}, curves=curves, tie=TIE)
    free = choose(*net, keep={unit: keep}, curves=curves)
    assert tied.planned[unit] <= keep * tied.dense[unit]
    assert len({form(tied, name) for name in TRIPLE}) == 1
    slack = 1e-3  # single exchanges are no proof of the optimum
    assert sum(r.error or 0 for r in free.rows) <= sum(r.error or 0 for r in tied.rows) * (1 + slack) + slack


def test_plans_inside_each_other_and_floors(net: Net, curves: Any) -> None:
    keeps = [{"macs": share} for share in (0.8, 0.6, 0.4)]
    for plan in pareto(*net, keeps=keeps, curves=curves, tie=TIE):
        assert len({form(plan, name) for name in TRIPLE}) == 1
    floor = choose(*net, keep={"macs": 0.5}, curves=curves, tie=TIE, floor_rule="stable_rank")
    assert len({form(floor, name) for name in PAIR}) == 1


def test_pins_and_bounds_hold_for_the_group(net: Net, curves: Any) -> None:
    pins = dict.fromkeys(PAIR, "svd:5")
    plan = choose(*net, keep={"macs": 0.7}, curves=curves, tie=TIE, pin=pins)
    assert {form(plan, name) for name in PAIR} == {("svd", (5,))}
    assert plan[PAIR[1]].why == f"pinned by '{PAIR[1]}'"
    capped = choose(*net, keep={"macs": 0.9}, curves=curves, tie=TIE, cap={PAIR[1]: 3}, floor={PAIR[0]: 2})
    assert len({form(capped, name) for name in PAIR}) == 1
    assert all(2 <= rank <= 3 for rank in capped[PAIR[0]].ranks)
    ignored = choose(*net, keep={"macs": 0.9}, curves=curves, tie=TIE, ignore=PAIR)
    assert [ignored[name].why for name in PAIR] == ["ignored", "ignored"]


@pytest.mark.parametrize(
    "constraints, message",
    [
        ({"tie": "blok1.conv1"}, "pattern 'blok1.conv1' matches no site; near names are: block1.conv1"),
        ({"tie": "head"}, "tie 'head' matches only site 'head'; a group needs two or more"),
        ({"tie": ["block1.*", "*.conv2"]}, "'block1.conv2' is tied by 'block1.*' and '*.conv2'; keep one"),
        (
            {"tie": "*.conv1"},
            "'block1.conv1' and 'block2.conv1' cannot be tied by '*.conv1': one is conv2d [12, 12, 3, 3], the other "
            "conv2d [16, 12, 3, 3]",
        ),
        (
            {"tie": TIE, "ignore": PAIR[1]},
            "'block1.conv1' and 'block1.conv2' are tied by 'block1.conv?', but the second has no choice: ignored",
        ),
        ({"tie": TIE, "pin": {PAIR[0]: "svd:4"}}, "the second has no choice: pinned by 'block1.conv1'"),
        (
            {"tie": TIE, "pin": {PAIR[0]: "svd:4", PAIR[1]: "svd:5"}},
            "'block1.conv1' and 'block1.conv2' are tied by 'block1.conv?', but no format and ranks are allowed",
        ),
        (
            {"tie": TIE, "cap": {TRIPLE[0]: 2}, "floor": {TRIPLE[2]: 3}},
            f"sites 'block2.conv2' and 'block3.conv2' are tied by {TIE[1]!r}, but no format and ranks are allowed",
        ),
    ],
)
def test_contradictions(net: Net, curves: Any, constraints: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        choose(*net, keep={"macs": 0.6}, curves=curves, **constraints)
    assert message in str(error.value)
