"""A session's verbs one by one: statistics once and only where they are needed, shares, trials, times."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.nets import Residual, batches_of, chains, make, outputs

import rankwise as rw
from rankwise.session import Clock, Sampling, Session

KEEP = {"keep": {"macs": 0.6}}
WEIGHT = {**KEEP, "metric": "weight"}


def session(**options: Any) -> Session:
    model, batches = make(Residual), batches_of(8, 3, 8, 8)
    example = batches[0][:1]
    return Session(model=model, sites=rw.find(model, example), example=example, **{"data": batches, **options})


def test_statistics_are_collected_once_and_handed_on() -> None:
    collected: list[rw.Statistics] = []
    one = session(collected=collected.append, sampling=Sampling(positions=5, seed=3))
    plans = [one.plan({"keep": {"macs": share}}) for share in (0.7, 0.5)]
    assert len(collected) == 1
    assert collected[0] is one.statistics
    expected = rw.collect(one.model, one.data, positions=5, seed=3)
    assert plans == [rw.choose(one.model, expected, keep={"macs": share}) for share in (0.7, 0.5)]
    one.release()
    assert one.statistics is not collected[0]


def test_the_weight_metric_needs_no_data() -> None:
    def refused() -> rw.Statistics:
        raise AssertionError("nobody needs statistics")

    one = session(data=None, given=refused, method="one-shot")
    small = one.factorise(one.plan(WEIGHT))
    assert chains(small)
    assert set(one.clock.seconds) == {"choose", "factorise"}


def test_plans_for_a_list_of_budgets_lie_in_one_another() -> None:
    one = session()
    large, small = one.plans({"formats": ("svd",)}, [{"macs": 0.7}, {"macs": 0.4}], nested=True)
    assert all(small[row.site].ranks <= row.ranks for row in large.factorised if small[row.site].ranks)
    assert [plan.keep for plan in (large, small)] == [{"macs": 0.7}, {"macs": 0.4}]


@pytest.mark.parametrize(
    "wanted, given, method, chosen",
    [
        (0.3, True, "one-shot", False),
        (None, True, "one-shot", True),
        (None, True, "sequential", False),
        (None, False, "one-shot", False),
        ("auto", True, "sequential", True),
    ],
)
def test_who_chooses_the_share(wanted: Any, given: bool, method: str, chosen: bool) -> None:
    model, others = make(Residual), [batch * 2 for batch in batches_of(8, 3, 8, 8)]
    stats = rw.collect(model, others)
    one = session(given=(lambda: stats) if given else None, method=method)
    plan = one.plan(KEEP, wanted)
    assert ("shrinkage" in one.clock.seconds) == chosen
    if not chosen:
        assert plan.shrink == (wanted or 0.0)


def test_a_trial_is_what_is_built_in_the_end() -> None:
    one = session()
    plan = one.plan(KEEP)
    tried = {method: outputs(one.trial(plan, method), one.data) for method in ("sequential", "one-shot")}
    assert torch.equal(outputs(one.factorise(plan), one.data), tried["sequential"])
    assert not torch.equal(tried["sequential"], tried["one-shot"])


def test_a_clock_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 3.0, 10.0, 11.0, 20.0, 25.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(times))
    clock = Clock()
    for verb in ("choose", "collect", "choose"):
        with clock(verb):
            pass
    assert clock.seconds == {"choose": 7.0, "collect": 1.0}
