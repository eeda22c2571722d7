"""Rules as they were published: components that leave by first-order changes, ratios of types, probes with depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from support.rank_problems import problem, site

from rankwise import Plan
from rankwise.ranks import Candidates, get_rule
from rankwise.ranks.sensitivity import depths

pytestmark = pytest.mark.usefixtures("one_thread")
TYPES = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")


def sloped(name: str, slopes: Sequence[float], cost: int = 2) -> Candidates:
    """A site whose components leave with these changes of the loss."""
    own = site(name, [2.0**-k for k in range(len(slopes))], cost=cost, dense=cost * len(slopes) // 2)
    return replace(own, slopes=lambda: list(slopes))


def test_changes_cancel() -> None:
    """Ranks from 8 down; below 4 something is saved."""
    up, down = [9.0, 8, 7, 6, 0.1, 0.1, 0.1, 0.1], [-9.0, -8, -7, -0.2, -0.1, -0.1, -0.1, -0.1]
    sites = sloped("up", up), sloped("down", down)
    picks = get_rule("zero_sum").choose(problem(*sites, params=14))
    ranks = [s.options[pick.option].ranks for s, pick in zip(sites, picks, strict=True)]
    # All small changes of "up" leave (0.4); against them those of "down" (-0.4); then -0.2, which saves 2 of 16.
    assert ranks == [(), (3,)]
    assert "3 of 8 components" in picks[1].why


def test_a_floor_and_what_cannot_be() -> None:
    sites = sloped("a", [1.0] * 8), sloped("b", [-1.0] * 8)
    low = get_rule("zero_sum:floor=0.5").choose(problem(*sites, params=10))
    assert all(s.options[pick.option].params >= 0.5 * 8 for s, pick in zip(sites, low, strict=True))
    with pytest.raises(ValueError, match=r"with a floor of 0\.9 no plan meets the budgets"):
        get_rule("zero_sum:floor=0.9").choose(problem(*sites, params=10))
    with pytest.raises(ValueError, match="floor is 2"):
        get_rule("zero_sum:floor=2.0")
    with pytest.raises(ValueError, match="'a' is tied to others"):
        get_rule("zero_sum").choose(problem(replace(sites[0], members=2), params=10))


SITES = tuple(
    replace(site(f"layers.{block}.{name}", [0.8**k for k in range(16)], cost=3, dense=36), kind="linear")
    for block in range(4)
    for name in TYPES
)
WEIGHTS = {"q_proj": 0.1, "k_proj": 0.1, "v_proj": 9.0, "o_proj": 1.0, "up_proj": 3.0, "down_proj": 0.5}


def weighted(plan: Plan) -> float:
    return sum(WEIGHTS[row.site.rpartition(".")[2]] * (row.error or 0.0) for row in plan.rows)


@pytest.mark.parametrize("depth", [1, 4])
def test_one_ratio_for_each_type_within_the_budget(depth: int) -> None:
    costs: list[float] = []

    def evaluate(plan: Plan) -> float:
        costs.append(sum(row.params for row in plan.rows))
        return weighted(plan)

    whole, limit = 36 * len(SITES), 0.75 * 36 * len(SITES)
    picks = get_rule(f"bolaco:trials=14,startup=5,depths={depth}").choose(
        problem(*SITES, evaluate=evaluate, params=limit)
    )
    assert len(costs) == 14
    assert all(limit - 0.1 * whole <= cost <= limit for cost in costs)
    ranks = {s.name: s.options[pick.option].ranks for s, pick in zip(SITES, picks, strict=True)}
    assert all(not rank for name, rank in ranks.items() if name.endswith("v_proj"))
    for place, each in ((0, "q_proj"), (1, "k_proj"), (4, "up_proj")):
        shared = {ranks[f"layers.{block}.{each}"] for block in range(4)}
        assert depth > 1 or len(shared) == 1, place
    assert all(ranks[f"layers.{block}.q_proj"] == ranks[f"layers.{block}.k_proj"] for block in range(4))


def test_the_first_trial_has_the_published_ratios() -> None:
    """0.5 in attention and 0.8 in the MLP, scaled to the budget; the best tried plan is returned."""
    tried: list[dict[str, float]] = []

    def evaluate(plan: Plan) -> float:
        tried.append({row.site: row.params / 36 for row in plan.rows})
        return float(len(tried))

    picks = get_rule("bolaco:trials=3").choose(problem(*SITES, evaluate=evaluate, params=0.7 * 36 * len(SITES)))
    first = tried[0]
    assert first["layers.0.v_proj"] == 1
    assert first["layers.0.q_proj"] / first["layers.0.up_proj"] == pytest.approx(0.5 / 0.8, abs=0.09)
    for s, pick in zip(SITES, picks, strict=True):
        assert s.options[pick.option].params / 36 == first[s.name]
    assert "bolaco: ratio" in picks[0].why
    with pytest.raises(ValueError, match="no plan meets the budgets"):
        get_rule("bolaco").choose(problem(*SITES, evaluate=evaluate, params=0.26 * 36 * len(SITES)))


def test_early_blocks_count_more() -> None:
    names = [f"layers.{block}.{each}" for block in range(3) for each in ("a", "b")]
    assert depths(names, 5.0) == [6, 6, 3.5, 3.5, 1, 1]
    assert depths(["0"], 5.0) == [1]
    pair = [site(f"layers.{block}.x", [1, 0.5, 0.25, 0.1], dense=7) for block in range(2)]

    def evaluate(plan: Plan) -> float:
        return sum(row.error or 0.0 for row in plan.rows)

    def ranks(rule: str, params: float) -> list[tuple[int, ...]]:
        picks = get_rule(rule).choose(problem(*pair, evaluate=evaluate, params=params))
        return [s.options[pick.option].ranks for s, pick in zip(pair, picks, strict=True)]

    early, late = ranks("sensitivity:probes=1,depth=5.0", 8)
    assert early > late
    assert all(rank >= (2,) for rank in ranks("sensitivity:probes=1,floor=0.5", 8))
