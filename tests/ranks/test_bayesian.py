"""The search for multipliers: known optima, budgets that are never broken, and studies that go on after a stop."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.rank_problems import problem, site

from rankwise import Plan
from rankwise.ranks import Pick, Problem, get_rule
from rankwise.ranks.bayesian import Bayesian
from rankwise.ranks.studies import minimise, open_study

pytest.importorskip("optuna", reason="the extra search is not installed")
pytestmark = pytest.mark.usefixtures("one_thread")

TYPES = ("q_proj", "k_proj", "up")
SITES = tuple(
    replace(site(f"{block}.{name}", [(0.5 + 0.1 * place) ** k for k in range(12)], cost=3, dense=24), kind="linear")
    for block in range(4)
    for place, name in enumerate(TYPES)
)
WEIGHTS = {"q_proj": 1.0, "k_proj": 6.0, "up": 0.2}


def weighted(plan: Plan) -> float:
    """A network in which the types of layers matter differently."""
    return sum(WEIGHTS[row.site.split(".")[1]] * (row.error or 0.0) for row in plan.rows)


def asked(evaluate: Any = weighted, params: float = 150) -> Problem:
    return problem(*SITES, evaluate=evaluate, params=params)


def loss(given: Problem, picks: Sequence[Pick]) -> float:
    pairs = zip(given.sites, picks, strict=True)
    return weighted(given.plan({site.name: site.options[pick.option] for site, pick in pairs}))


@pytest.mark.parametrize(
    "centre, trials", [((0.5, -0.4), 14), pytest.param((0.5, -0.4, 0.2, -0.6, 0.0), 50, marks=pytest.mark.slow)]
)
def test_the_optimum_of_a_quadratic(centre: tuple[float, ...], trials: int) -> None:
    """Close to it from a first trial that is far, in so many trials."""
    goal = dict(zip("abcde", centre, strict=False))
    seen: list[dict[str, float]] = []

    def bowl(numbers: Mapping[str, float]) -> float:
        seen.append(dict(numbers))
        return sum((math.log(numbers[name]) - each) ** 2 for name, each in goal.items())

    first = dict.fromkeys(goal, 1.0)
    with open_study("", {}) as study:
        best = minimise(study, bowl, first, most=2.0, trials=trials, startup=6, seed=0)
    assert (len(seen), seen[0]) == (trials, first)
    assert all(0.5 <= number <= 2 for numbers in seen for number in numbers.values())
    assert bowl(best) < 0.02 < 0.4 < bowl(first)


def test_what_matters_more_is_found_and_no_budget_is_broken() -> None:
    plans: list[float] = []

    def evaluate(plan: Plan) -> float:
        plans.append(sum(row.params for row in plan.rows))
        return weighted(plan)

    given = asked(evaluate)
    rule = Bayesian(trials=16, depths=1, most=4.0)
    picks = rule.choose(given)
    assert loss(given, picks) < 0.9 * loss(given, get_rule("knapsack").choose(given))
    assert len(plans) == 16
    assert all(150 - 3 < cost <= 150 for cost in plans)  # full to less than one rank
    told = {pick.why.split(",")[0] for pick in picks}
    counted = {why.split(" at ")[0].split()[-1]: float(why.split("count ")[1].split()[0]) for why in told}
    assert counted["k_proj"] > counted["q_proj"] > counted["up"]


def test_the_first_trial_is_the_knapsack_and_nothing_worse_is_returned() -> None:
    known = get_rule("knapsack").choose(asked())
    ranks = [site.options[pick.option].ranks for site, pick in zip(asked().sites, known, strict=True)]

    def far(plan: Plan) -> float:
        """How far a plan is from the knapsack's."""
        return float(sum(row.ranks != own for row, own in zip(plan.rows, ranks, strict=True)))

    picks = Bayesian(trials=4).choose(asked(far))
    assert [pick.option for pick in picks] == [pick.option for pick in known]
    assert [pick.option for pick in Bayesian(trials=1).choose(asked())] == [pick.option for pick in known]


def test_groups_are_types_at_depths() -> None:
    fixed = replace(SITES[0], name="stem", options=SITES[0].options[:1])
    groups = Bayesian(depths=2).groups([fixed, *SITES])
    assert groups[:2] == ["", "linear q_proj at depth 1 of 2"]
    assert groups[-1] == "linear up at depth 2 of 2"
    assert len(set(groups[1:])) == 6


def test_one_group_needs_no_trials() -> None:
    alone = problem(SITES[0], evaluate=lambda plan: pytest.fail("nothing to try"), params=10)
    assert Bayesian().choose(alone) == get_rule("knapsack").choose(alone)


class Stopped(BaseException):
    """As a kill does, it leaves a running trial behind."""


@pytest.mark.parametrize("stop", [0, 4])
def test_a_stopped_search_goes_on(tmp_path: Path, stop: int) -> None:
    """With the plans that it would have tried without the stop."""
    calls: list[float] = []

    def stopping(plan: Plan) -> float:
        if len(calls) == stop:
            raise Stopped
        calls.append(weighted(plan))
        return calls[-1]

    def counting(plan: Plan) -> float:
        calls.append(weighted(plan))
        return calls[-1]

    rule = Bayesian(trials=6, startup=3, depths=1, study=str(tmp_path / "study.db"))
    with pytest.raises(Stopped):
        rule.choose(asked(stopping))
    picks = rule.choose(asked(counting))
    resumed, calls[:] = list(calls), []
    assert picks == Bayesian(trials=6, startup=3, depths=1).choose(asked(counting))
    assert resumed == pytest.approx(calls)
    assert len(calls) == 6
    calls.clear()
    assert rule.choose(asked(counting)) == picks  # nothing is left to try
    assert calls == []
    replace(rule, trials=7).choose(asked(counting))
    assert len(calls) == 1


def test_a_study_of_something_else_is_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "study.db")
    rule = Bayesian(trials=2, study=path)
    rule.choose(asked())

    def refused(what: str, given: Problem, other: Bayesian = rule) -> None:
        with pytest.raises(ValueError, match=f"study {path!r} is of other {what} than asked for; name another file"):
            other.choose(given)

    refused("budget", asked(params=149))
    refused("settings", asked(), replace(rule, depths=2))
    refused("network", replace(asked(), plan=lambda chosen: replace(asked().plan(chosen), fingerprint="another")))
    refused("sites and candidates and errors", problem(*SITES[:-1], evaluate=weighted, params=150))
    noisy = [replace(own, options=tuple(replace(o, error=1.5 * o.error) for o in own.options)) for own in asked().sites]
    refused("errors", replace(asked(), sites=tuple(noisy)))
    rounded = [
        replace(own, options=tuple(replace(o, error=o.error * (1 + 1e-7)) for o in own.options))
        for own in asked().sites
    ]
    rule.choose(replace(asked(), sites=tuple(rounded)))


def test_files_that_are_no_studies(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("not a database, but a text of some length" * 50)
    with pytest.raises(ValueError, match=r"notes\.db' is not a study, or damaged: .*; name another"):
        Bayesian(trials=2, study=str(tmp_path / "notes.db")).choose(asked())
    with pytest.raises(ValueError, match=r"there is no folder '.*nowhere'; make it first"):
        Bayesian(trials=2, study=str(tmp_path / "nowhere" / "study.db")).choose(asked())


def test_a_loss_that_is_no_number_and_settings_that_are_none() -> None:
    with pytest.raises(ValueError, match="the loss of trial 0 is nan; evaluate must give finite numbers"):
        Bayesian(trials=2).choose(asked(lambda plan: math.nan))
    for text, message in (("trials=0", "trials is 0; at least 1"), ("most=1", r"most is 1\.0; it must be above 1")):
        with pytest.raises(ValueError, match=message):
            get_rule(f"bayesian:{text}")
    assert str(get_rule("bayesian:trials=5,study=a/b.db")) == "bayesian:trials=5,study=a/b.db"


def test_without_its_packages_the_rule_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankwise.ranks.bayesian.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"rule 'bayesian' needs optuna: pip install 'rankwise\[search\]'"):
        get_rule("bayesian")


def test_a_budget_that_cannot_be_met_makes_no_study(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be met"):
        Bayesian(study=str(tmp_path / "study.db")).choose(asked(params=10))
    assert not (tmp_path / "study.db").exists()
