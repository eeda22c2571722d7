"""What is asked of one plan."""

from __future__ import annotations

from typing import Any

import pytest

from rankwise import get_rule
from rankwise.planning.request import Request


def test_budgets_are_plain_numbers_and_may_be_missing() -> None:
    rule = get_rule("knapsack")
    assert Request(rule=rule, keep={"latency": "8ms", "macs": 0.5}).amounts == {"latency": 8000, "macs": 0.5}
    assert Request(rule=rule).amounts == {}
    assert Request(rule=rule, keep={"macs": 0.5}) == Request(rule=rule, keep={"macs": 0.5})


@pytest.mark.parametrize(
    ("keep", "text"),
    [({"mac": 0.5}, "unknown budget 'mac'"), ({"macs": -1}, "must be a fraction up to 1"), ({}, "needs")],
)
def test_a_budget_that_is_none(keep: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Request(rule=get_rule("knapsack"), keep=keep)


def test_rules_that_lack_what_they_need() -> None:
    with pytest.raises(ValueError, match="rule 'knapsack' needs a budget"):
        Request(rule=get_rule("knapsack")).check(None)
    with pytest.raises(ValueError, match="rule 'sensitivity' has to try plans: pass evaluate="):
        Request(rule=get_rule("sensitivity"), keep={"macs": 0.5}).check(None)
    Request(rule=get_rule("sensitivity"), keep={"macs": 0.5}).check(lambda plan: 0.0)
    Request(rule=get_rule("energy")).check(None)
