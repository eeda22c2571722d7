"""The benchmark of planning: its tables, its baseline, and that the solver's plans are the best."""

from __future__ import annotations

import argparse

import pytest
from benchmarks.planning import KINDS, limits_of, network, optimum, total
from benchmarks.walk import walked

pytestmark = pytest.mark.usefixtures("one_thread")


def test_plans_are_the_best_of_all() -> None:
    rows = optimum(argparse.Namespace(quick=True, seed=0))
    assert {row["kind"] for row in rows} == set(KINDS)
    assert all(row["best"] == 1 for row in rows if row["method"] == "now")
    assert any(row["best"] < 1 for row in rows if row["method"] == "walk")


@pytest.mark.parametrize("kind", KINDS)
def test_the_baseline_meets_limits(kind: str) -> None:
    losses, costs = network(kind, 10, 30, 1, seed=1)
    own = [units[0] for units in costs]
    for share in (0.1, 0.5):
        (limit,) = limits_of(costs, [share])
        assert total(own, walked(losses, own, limit)) <= limit
