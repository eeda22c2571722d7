"""Every rule on spectra with a known answer, with and without a budget, and the laws that all rules share."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from support.rank_problems import brief, problem, site

from rankwise import Plan
from rankwise.ranks import RULES, FreeRule, Problem, Rule, get_floor, get_rule
from rankwise.ranks.budgeted import losses
from rankwise.ranks.drank import DRank, allocate
from rankwise.ranks.energy import Energy
from rankwise.ranks.entropy import EffectiveRank, StableRank
from rankwise.ranks.minimax import Minimax
from rankwise.ranks.noise import Evbmf, GavishDonoho
from rankwise.ranks.sensitivity import Sensitivity, interpolated
from rankwise.ranks.spectra import Unfolding
from rankwise.ranks.uniform import Uniform

pytestmark = pytest.mark.usefixtures("one_thread")

SITES = (
    site("steep", [2.0**-k for k in range(16)], cost=3, dense=30),
    site("flat", [1.0] * 16, cost=3, dense=30),
    site("middle", [0.8**k for k in range(24)], cost=5, dense=80),
)


WEIGHTS = {"steep": 300, "flat": 1, "middle": 1}


def losses_of(plan: Plan) -> float:
    """A network in which one site matters far more than the others."""
    return sum(WEIGHTS[row.site] * (row.error or 0.0) for row in plan.rows)


def chosen(rule: Rule, asked: Problem) -> list[tuple[int, ...]]:
    return [site.options[pick.option].ranks for site, pick in zip(asked.sites, rule.choose(asked), strict=True)]


def cost(asked: Problem, rule: Rule, unit: str) -> float:
    picks = rule.choose(asked)
    return sum(site.costs[unit][pick.option] for site, pick in zip(asked.sites, picks, strict=True))


# ---- what all rules share


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("limits", [{"params": 70}, {"params": 100, "macs": 600}, {"macs": 1400}])
def test_budgets_are_met_and_every_site_gets_a_reason(name: str, limits: dict[str, float]) -> None:
    asked = problem(*SITES, evaluate=losses_of, **limits)
    rule = brief(name)
    picks = rule.choose(asked)
    assert len(picks) == len(SITES)
    for unit, limit in limits.items():
        assert cost(asked, rule, unit) <= limit
    assert all(pick.why for pick in picks)
    assert picks == rule.choose(asked)


@pytest.mark.parametrize("name", RULES)
def test_costs_grow_with_the_budget(name: str) -> None:
    used = [cost(problem(*SITES, evaluate=losses_of, params=limit), brief(name), "params") for limit in (30, 60, 100)]
    assert used == sorted(used)
    assert used[0] < used[-1]


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if not rule.needs_budget])
def test_rules_without_a_budget_can_be_floors(name: str) -> None:
    rule = get_floor(name)
    assert isinstance(rule, FreeRule)
    for asked in problem(*SITES).sites:
        enough = rule.enough(asked)
        assert enough[0]  # dense
        kept = [option.ranks for option, own in zip(asked.options, enough, strict=True) if own and option.ranks]
        every = [option.ranks for option in asked.options[1:]]
        assert kept == every[len(every) - len(kept) :]  # all from one rank on


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if not issubclass(rule, FreeRule)] + ["minimax"])
def test_others_are_no_floors(name: str) -> None:
    with pytest.raises(ValueError, match=f"rule '{name}' cannot be a floor: .* floors are uniform, energy"):
        get_floor(name)


@pytest.mark.parametrize("name", RULES)
def test_what_cannot_be_met_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be met: the cheapest plan costs 11"):
        get_rule(name).choose(problem(*SITES, evaluate=losses_of, params=10))


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_its_text(name: str) -> None:
    rule = get_rule(name)
    assert (str(rule), get_rule(str(rule))) == (name, rule)
    assert get_rule(rule) is rule


def test_settings_in_the_text() -> None:
    rule = get_rule("energy:share=0.99, squared=false")
    assert rule == Energy(share=0.99, squared=False)
    assert str(rule) == "energy:share=0.99,squared=false"
    assert get_rule(str(rule)) == rule
    assert get_rule("evbmf:empty=one,weakening=0.5") == Evbmf(empty="one", weakening=0.5)


@pytest.mark.parametrize(
    "text, message",
    [
        ("energie", "unknown rule 'energie'; did you mean energy"),
        ("zebra", "unknown rule 'zebra'; the rules are"),
        ("energy:sharp=1", "no setting 'sharp'; its settings are share, squared"),
        ("energy:share=much", "share is 'much', which is not of type float"),
        ("energy:squared=maybe", "squared is 'maybe', which is not true or false"),
        ("energy:share=1.5", "share is 1.5; it must be above 0 and at most 1"),
        ("uniform:ratio=0", "ratio is 0.0; it must be above 0"),
        ("evbmf:weakening=2", "weakening is 2.0"),
        ("evbmf:empty=zero", "empty is 'zero'; it must be dense or one"),
        ("sensitivity:probes=0", "probes is 0; at least 1"),
    ],
)
def test_rules_that_do_not_exist(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_rule(text)


@pytest.mark.parametrize("name", ["energy", "effective_rank", "stable_rank", "evbmf", "gavish_donoho", "drank"])
def test_a_rule_that_does_not_apply_to_a_format_says_so(name: str) -> None:
    from dataclasses import replace

    other = replace(SITES[0], options=tuple(replace(option, format="cp") for option in SITES[0].options[1:]))
    with pytest.raises(ValueError, match=f"rule '{name}': site 'steep': the ranks of cp cut no singular values"):
        get_rule(name).choose(problem(replace(other, costs={"params": [1] * 9, "macs": [1] * 9}), params=50))


# ---- each by itself


def unfolding(*values: float) -> list[Unfolding]:
    return [Unfolding(values_K=torch.tensor(values, dtype=torch.float64), rows=len(values), columns=4 * len(values))]


def test_energy() -> None:
    assert [Energy(share=share).rank(unfolding(3, 2, 1)) for share in (0.5, 9 / 14, 0.65, 13 / 14, 0.95, 1)] == [
        1, 1, 2, 2, 3, 3
    ]  # fmt: skip
    assert [Energy(share=share, squared=False).rank(unfolding(3, 2, 1)) for share in (0.5, 0.55, 0.84)] == [1, 2, 3]
    both = [*unfolding(3, 1), *unfolding(1, 1)]  # groups share one rank: 10 of 12 by the first
    assert [Energy(share=share).rank(both) for share in (10 / 12, 0.9)] == [1, 2]


def test_energy_of_squares_is_the_error() -> None:
    asked = problem(*SITES)
    for pick, own in zip(Energy(share=0.9).choose(asked), asked.sites, strict=True):
        assert own.options[pick.option].error <= 0.1 + 1e-9
        smaller = [o for o in own.options if o.ranks and o.params < own.options[pick.option].params]
        assert all(option.error > 0.1 for option in smaller)


def test_effective_and_stable_rank() -> None:
    assert EffectiveRank().rank(unfolding(1, 1, 1, 1)) == pytest.approx(4)
    assert EffectiveRank().rank(unfolding(2, 1)) == pytest.approx(3 / 2 ** (2 / 3))
    assert StableRank().rank(unfolding(2, 2, 0)) == pytest.approx(2)
    assert StableRank().rank([*unfolding(1, 1), *unfolding(5, 0)]) == pytest.approx(1.5)
    for rule in (EffectiveRank(), StableRank()):
        assert rule.rank(unfolding(0, 0)) == 1
    (steep, flat, _) = chosen(StableRank(), problem(*SITES))
    assert steep == (2,)
    assert flat == ()  # all 16 are needed, which costs more than dense


def test_noise_rules_find_a_planted_rank_and_leave_noise_dense() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(40, 120, generator=generator, dtype=torch.float64)
    signal = 0.5 * torch.randn(40, 4, generator=generator).double() @ torch.randn(4, 120, generator=generator).double()
    for matrix, found in ((noise + 4 * signal, 4), (noise, 0)):
        values_K = torch.linalg.svdvals(matrix)
        for rule in (Evbmf(), GavishDonoho()):
            assert rule.rank([Unfolding(values_K=values_K, rows=40, columns=120)]) == found
    planted = Unfolding(values_K=torch.linalg.svdvals(noise + 4 * signal), rows=40, columns=120)
    assert Evbmf(weakening=0.5).rank([planted]) == 22
    pick = GavishDonoho().choose(problem(SITES[1]))[0]
    assert (pick.option, pick.why) == (0, "gavish_donoho: rank svd 0 of 16: dense, as nothing cheaper is enough")


@pytest.mark.parametrize("rule", ["evbmf", "gavish_donoho"])
def test_noise_under_a_budget_is_cut_last_and_meets_it_closely(rule: str) -> None:
    generator = torch.Generator().manual_seed(1)
    noise = torch.linalg.svdvals(torch.randn(64, 128, generator=generator, dtype=torch.float64)).tolist()
    planted = [400.0, 350.0, 300.0, 250.0, *noise[4:]]
    sites = [site("planted", planted, 3, 128), *(site(f"noise{i}", noise, 3, 128) for i in range(3))]
    for budget, dense in ((400, 3), (300, 0), (200, 0), (60, 0)):
        asked = problem(*sites, params=budget)
        ranks = chosen(get_rule(rule), asked)
        params = [
            own.options[pick.option].params for own, pick in zip(asked.sites, get_rule(rule).choose(asked), strict=True)
        ]
        assert budget - 12 <= sum(params) <= budget or dense
        assert ranks[1:].count(()) == dense
        assert all(len(own) == 0 or own[0] > 4 for own in ranks[1:])  # none of them before the planted one
        assert ranks[0] <= (6,)  # EVBMF finds a sixth


def test_uniform_keeps_the_same_share_of_every_site() -> None:
    asked = problem(*SITES)
    for pick, own in zip(Uniform(ratio=0.5).choose(asked), asked.sites, strict=True):
        share = own.options[pick.option].params / own.dense.params
        assert 0.4 < share <= 0.5
    spread = [
        own.options[pick.option].params / own.dense.params
        for pick, own in zip(Uniform().choose(problem(*SITES, params=70)), asked.sites, strict=True)
    ]
    assert max(spread) - min(spread) <= 0.1


@pytest.mark.parametrize("limit", range(20, 140, 15))
def test_minimax_has_the_least_largest_error(limit: int) -> None:
    asked = problem(*SITES, params=limit)

    def worst(indices: tuple[int, ...]) -> float:
        return max(own.options[index].error for own, index in zip(asked.sites, indices, strict=True))

    every = itertools.product(*(range(len(own.options)) for own in asked.sites))
    best = min(worst(indices) for indices in every if asked.fits(indices))
    assert worst(tuple(pick.option for pick in Minimax().choose(asked))) == pytest.approx(best)


@pytest.mark.parametrize("limit", range(20, 140, 15))
def test_minimax_counts_the_mean_of_tied_sites(limit: int) -> None:
    """Three tied layers come as one site with the sum of their errors, of which each has a third."""
    first, *others = SITES
    threefold = tuple(replace(option, error=3 * option.error) for option in first.options)
    alone = Minimax().choose(problem(first, *others, params=limit))
    tied = Minimax().choose(problem(replace(first, options=threefold, members=3), *others, params=limit))
    assert [pick.option for pick in tied] == [pick.option for pick in alone]


def test_closed_form_of_drank() -> None:
    ranks = allocate([100, 50, 400], [8192, 8192, 15104], 3e6)
    assert ranks == pytest.approx([82.80, 58.55, 121.96], abs=0.01)
    assert sum(k * omega for k, omega in zip(ranks, [8192, 8192, 15104], strict=True)) == pytest.approx(3e6)
    ratios = [R / (k * k * w) for R, k, w in zip([100, 50, 400], ranks, [8192, 8192, 15104], strict=True)]
    assert ratios == pytest.approx([1.7805e-6] * 3, rel=1e-4)


def test_drank_is_the_closed_form_where_nothing_is_clipped() -> None:
    sites = [site(str(n), [0.9 ** (k * n) for k in range(200)], cost=n + 1, dense=10**6) for n in (1, 2, 3)]
    information = [math.exp(-sum(p * math.log(p) for p in _shares(own))) for own in sites]
    exact = allocate(information, [2, 3, 4], 300)
    ranks = [ranks[0] for ranks in chosen(DRank(), problem(*sites, params=300))]
    assert all(abs(rank - real) <= 1 for rank, real in zip(ranks, exact, strict=True))


def _shares(own: object) -> list[float]:
    values = own.spectra("svd")[0][0].values_K.square()  # type: ignore[attr-defined]
    return (values / values.sum()).tolist()


def test_sensitivity_tries_sites_one_at_a_time_and_favours_those_that_matter() -> None:
    tried: list[Plan] = []

    def evaluate(plan: Plan) -> float:
        tried.append(plan)
        return losses_of(plan)

    asked = problem(*SITES, evaluate=evaluate, params=70)
    picks = Sensitivity(probes=3).choose(asked)
    assert all(len(plan.factorised) == 1 for plan in tried)
    assert {site: sum(plan.rows[0].site == site for plan in tried) for site in ("steep", "flat", "middle")} == {
        "steep": 3, "flat": 3, "middle": 3
    }  # fmt: skip
    # the losses are proportional to the errors, so all are predicted and the plan is the best there is
    every = itertools.product(*(range(len(own.options)) for own in asked.sites))

    def loss(indices: tuple[int, ...]) -> float:
        pairs = zip(asked.sites, indices, strict=True)
        return sum(WEIGHTS[own.name] * own.options[index].error for own, index in pairs)

    best = min(loss(indices) for indices in every if asked.fits(indices))
    assert loss(tuple(pick.option for pick in picks)) == pytest.approx(best)
    assert loss(tuple(pick.option for pick in get_rule("knapsack").choose(asked))) > best


@pytest.mark.parametrize("limit", [30, 70, 100])
def test_the_knapsack_is_the_best_of_all_products(limit: float) -> None:
    asked = problem(*SITES, params=limit)

    def kept(indices: Iterable[int]) -> float:
        pairs = zip(asked.sites, indices, strict=True)
        return math.prod(1 - own.options[index].error for own, index in pairs)

    every = itertools.product(*(range(len(own.options)) for own in asked.sites))
    best = max(kept(indices) for indices in every if asked.fits(indices))
    assert kept(pick.option for pick in get_rule("knapsack").choose(asked)) == pytest.approx(best)


def test_tied_sites_keep_what_one_of_them_keeps_twice() -> None:
    one = SITES[0]
    pair = replace(one, members=2, options=tuple(replace(o, error=2 * o.error) for o in one.options))
    assert losses(pair).tolist() == pytest.approx((2 * losses(one)).tolist())


@pytest.mark.parametrize("power", [1.0, 0.5, 0.0])
def test_fisher_weighs_errors_by_the_energy_of_each_site(power: float) -> None:
    sites = [replace(own, importance=lambda own=own: float(WEIGHTS[own.name])) for own in SITES]
    asked = problem(*sites, params=70)
    picks = get_rule(f"fisher:power={power}").choose(asked)
    every = itertools.product(*(range(len(own.options)) for own in asked.sites))

    def loss(indices: tuple[int, ...]) -> float:
        pairs = zip(asked.sites, indices, strict=True)
        return sum(WEIGHTS[own.name] ** power * own.options[index].error for own, index in pairs)

    best = min(loss(indices) for indices in every if asked.fits(indices))
    assert loss(tuple(pick.option for pick in picks)) == pytest.approx(best)
    unweighted = loss(tuple(pick.option for pick in get_rule("knapsack").choose(asked)))
    assert unweighted > best if power else unweighted >= best * (1 - 1e-12)
    steep = asked.sites[0].options[picks[0].option]
    assert picks[0].why.startswith(f"fisher: predicted loss {WEIGHTS['steep'] * steep.error:.2g}, ")


@pytest.mark.parametrize("power", [-0.1, 1.5, float("nan")])
def test_fisher_refuses_a_power_that_trusts_energies_more_than_they_say(power: float) -> None:
    with pytest.raises(ValueError, match=r"power is .*; it must be from 0 to 1"):
        get_rule(f"fisher:power={power}")


def test_interpolation() -> None:
    tried = [(0.01, 1.0), (0.1, 0.5), (0.4, 8.0)]  # the second loss is noise: losses do not fall with the error
    assert interpolated(tried, 0.1) == pytest.approx(1.0)
    assert interpolated(tried, 0.2) == pytest.approx(8**0.5)
    assert interpolated(tried, 0.005) == pytest.approx(0.5)
    assert interpolated(tried, 0.8) == pytest.approx(16)
    assert 0 <= interpolated([(0.0, -1.0)], 0.0) < 1e-9
