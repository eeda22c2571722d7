"""`uniform=True`: hidden layers of one width keep the same number of units, all else stays dense."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rankwise as rw
from rankwise.planning.planner import Planner
from rankwise.planning.request import Request
from rankwise.ranks import get_rule


class Block(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, hidden, bias=False), nn.Linear(hidden, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(torch.tanh(self.a(x)))


def network() -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    return nn.Sequential(Block(24), Block(24), Block(40), nn.Linear(8, 5)).eval(), [
        torch.randn(64, 8) for _ in range(2)
    ]


@pytest.mark.parametrize("rule", ["knapsack", "fisher"])
def test_sites_of_one_width_keep_the_same_and_others_stay_dense(rule: str) -> None:
    model, data = network()
    stats = rw.collect(model, data, joint=True, gradients=True)
    plan = rw.choose(model, stats, keep={"params": 0.7}, uniform=True, rule=rule, round_to=1)
    assert plan.metric == "without_bias"
    assert plan["0.a"].ranks == plan["1.a"].ranks
    assert plan["3"].format == "dense"
    small = rw.factorise(model, plan, stats)
    assert sum(parameter.numel() for parameter in small.parameters()) == plan.planned["params"]
    assert plan.planned["params"] <= 0.7 * plan.dense["params"]


def test_of_all_widths_within_the_budget_the_least_loss_is_chosen() -> None:
    model, data = network()
    stats = rw.collect(model, data, joint=True, gradients=True)
    planner = Planner.of(model, stats, uniform=True, rule="fisher", round_to=1)
    plan = planner.plan(Request(rule=get_rule("fisher"), keep={"params": 0.7}))
    narrow, wide = ({**planner.predicted(name), ("dense", ()): 0.0} for name in ("0.a", "2.a"))
    other = {**planner.predicted("1.a"), ("dense", ()): 0.0}
    assert len(narrow) > 10

    def loss(few: Any, many: Any) -> float:
        return narrow[few] + other[few] + wide[many]

    best = min(
        loss(few, many)
        for few in narrow
        for many in wide
        if 16 * (2 * (*few[1], 24)[0] + (*many[1], 40)[0]) + 45 <= 0.7 * plan.dense["params"]
    )
    chosen = [(plan[name].format, plan[name].ranks) for name in ("0.a", "2.a")]
    assert loss(*chosen) == pytest.approx(best)


@pytest.mark.parametrize(
    ("joint", "wishes", "message"),
    [
        (False, {}, "there are none among the sites: find or collect them with joint=True"),
        (True, {"pin": {"3": "svd:2"}}, "site '3' is pinned, but uniform leaves all but hidden units dense"),
        (True, {"ignore": ["0.a"]}, "are tied by 'uniform', but the second has no choice: ignored"),
        (True, {"tie": ["re:[01].a"]}, "is tied by uniform and 're:"),
    ],
)
def test_what_contradicts_it(joint: bool, wishes: dict[str, Any], message: str) -> None:
    model, data = network()
    sites = rw.find(model, data[0], joint=joint)
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        rw.choose(model, sites, keep={"params": 0.8}, uniform=True, metric="weight", **wishes)


def test_compress_finds_the_hidden_units_itself() -> None:
    model, data = network()
    _, report = rw.compress(model, data, keep={"params": 0.8}, uniform=True)
    assert {row.format for row in report.plan.factorised} == {"nystrom"}
