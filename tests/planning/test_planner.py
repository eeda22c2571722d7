"""Rules on a real network: floors, plans inside plans, the smallest network within a loss, rules that try plans."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from support.nets import Residual, batches_of, lost, make
from support.rank_problems import brief
from torch import nn

from rankwise import (
    FORMATS,
    RULES,
    Plan,
    Planner,
    Rule,
    Statistics,
    choose,
    collect,
    compress,
    evaluate,
    factorise,
    find,
    get_rule,
    pareto,
    profile,
)
from rankwise.formats.weights import site_weight
from rankwise.linalg.evbmf import evbmf
from rankwise.planning.profile import site_metric
from rankwise.ranks import FreeRule, Pick, Problem
from rankwise.ranks.spectra import site_spectra

Net = tuple[nn.Module, Statistics]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trials(net: Net) -> evaluate.Trials:
    model, stats = net
    return evaluate.Trials(model, lambda plan: factorise(model, plan, stats), batches_of(16, 3, 16, 16, seed=7))


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if not rule.needs_budget])
def test_rules_without_a_budget_say_what_came_out(net: Net, curves: Any, name: str) -> None:
    plan = choose(*net, rule=name, curves=curves)
    assert (plan.keep, plan.rule) == ({}, name)
    assert plan.factorised
    assert plan.planned["params"] < plan.dense["params"]
    assert all(row.why.startswith((name, "no format", "the only")) for row in plan.rows)
    assert Plan.from_yaml(plan.to_yaml()) == plan


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if not rule.needs_loss])
def test_every_rule_meets_a_budget_and_can_be_built(net: Net, curves: Any, trials: evaluate.Trials, name: str) -> None:
    if name == "drank":  # formats with one rank
        curves = profile(*net, formats=["svd", "spatial_svd"])
    plan = choose(
        *net, rule=brief(name), keep={"macs": 0.5}, curves=curves, evaluate=trials, ignore="head", pin={"stem": "svd:5"}
    )
    assert 0.3 < plan.planned["macs"] / plan.dense["macs"] <= 0.5
    assert (plan["head"].why, plan["stem"].why) == ("ignored", "pinned by 'stem'")
    small = factorise(net[0], plan, net[1])
    assert find(small, torch.zeros(1, 3, 16, 16)).total_macs == plan.planned["macs"]


def test_by_the_default_the_layers_keep_most_together(net: Net, curves: Any) -> None:
    def total(name: str) -> float:
        return lost(choose(*net, rule=name, keep={"macs": 0.45}, curves=curves))

    assert all(total("knapsack") <= total(name) for name in ("minimax", "uniform", "energy", "effective_rank"))


@pytest.mark.parametrize("unit", ["params", "macs", "bytes"])
def test_a_larger_budget_never_loses_more(net: Net, curves: Any, unit: str) -> None:
    keeps = [{unit: 0.2 + 0.04 * step} for step in range(20)]
    plans = [choose(*net, keep=keep, curves=curves, refine=False) for keep in keeps]
    assert all(plan.planned[unit] <= keep[unit] * plan.dense[unit] for plan, keep in zip(plans, keeps, strict=True))
    assert all(lost(large) <= lost(small) + 1e-12 for small, large in pairwise(plans))
    assert lost(plans[-1]) < lost(plans[0])


@pytest.mark.parametrize("metric", ["input", "weight"])
@pytest.mark.parametrize("name", ["stem", "block2.conv1", "block2.downsample.0", "head"])
def test_spectra_are_those_of_the_unfoldings(net: Net, metric: str, name: str) -> None:
    model, stats = net
    site = stats.sites[name]
    weight, metrics = site_weight(model, site), list(site_metric(stats, site, metric, model).inputs)
    ((svd,),) = site_spectra(site, weight, metrics, FORMATS["svd"])
    root = metrics[0].nested_projection(weight.flatten(1))  # its Gram matrix is W Sigma W^T
    expected = torch.linalg.svdvals(root)[: len(svd.values_K)]
    torch.testing.assert_close(svd.values_K, expected, rtol=1e-6, atol=1e-6)
    assert (svd.rows, svd.columns) == tuple(weight.flatten(1).shape)
    assert len(svd.values_K) == min(svd.rows, svd.columns)
    if len(site.kernel_size) == 2 and min(site.kernel_size) > 1:
        (outputs,), (channels,) = site_spectra(site, weight, metrics, FORMATS["tucker2"])
        ((spatial,),) = site_spectra(site, weight, metrics, FORMATS["spatial_svd"])
        torch.testing.assert_close(outputs.values_K, svd.values_K)
        assert (channels.rows, spatial.rows) == (weight.shape[1], weight.shape[1] * 3)
        if metric == "weight":
            by_channel = weight.transpose(0, 1).flatten(1)
            torch.testing.assert_close(channels.values_K, torch.linalg.svdvals(by_channel), rtol=1e-6, atol=1e-6)
            by_row = weight.permute(1, 2, 0, 3).flatten(0, 1).flatten(1)
            expected = torch.linalg.svdvals(by_row)[: len(spatial.values_K)]
            torch.testing.assert_close(spatial.values_K, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="the ranks of tt cut no singular values"):
        site_spectra(site, weight, metrics, FORMATS["tt"])


def test_evbmf_on_the_weight_and_on_the_whitened_weight() -> None:
    """A planted rank; inputs of different sizes do not hide it."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 40))
    signal = torch.randn(40, 6, generator=generator) @ torch.randn(6, 60, generator=generator)
    with torch.no_grad():
        weight = signal + 0.3 * torch.randn(40, 60, generator=generator)
        model[0].weight.copy_(weight)  # type: ignore[operator]
    assert evbmf(weight).rank == 6
    stats = collect(model, [torch.randn(600, 60, generator=generator) * torch.linspace(0.5, 2, 60)])
    for metric in ("weight", "input"):
        plan = choose(model, stats, rule="evbmf", metric=metric)
        assert plan["0"].ranks == (6,)
        assert plan["0"].why.startswith("evbmf: rank svd 6 of 40, error")


def test_a_format_that_a_rule_does_not_apply_to_is_named(net: Net) -> None:
    with pytest.raises(ValueError, match="rule 'stable_rank': site 'stem': the ranks of cp3 cut no singular values"):
        choose(*net, rule="stable_rank", formats=["cp3"], include="stem")
    with pytest.raises(ValueError, match="rule 'drank': site 'stem': tucker2 has 2 ranks"):
        choose(*net, rule="drank", keep={"macs": 0.9}, formats=["tucker2"], include="stem")


# ---- floors


def test_a_floor_rule_holds_under_any_budget(net: Net, curves: Any) -> None:
    free = choose(*net, keep={"macs": 0.3}, curves=curves)
    plan = choose(*net, keep={"macs": 0.3}, curves=curves, floor_rule="stable_rank")
    assert plan.planned["macs"] <= 0.3 * plan.dense["macs"]
    assert plan.rows != free.rows
    floor = get_rule("stable_rank")
    assert isinstance(floor, FreeRule)
    for site in Planner.of(*net, curves=curves).problem({}).sites:
        enough = floor.enough(site)
        allowed = [(o.format, o.ranks) for o, kept in zip(site.options, enough, strict=True) if kept]
        assert (plan[site.name].format, plan[site.name].ranks) in allowed


def test_a_floor_that_no_budget_has_room_for(net: Net, curves: Any) -> None:
    with pytest.raises(ValueError, match="cannot be met"):
        choose(*net, keep={"macs": 0.1}, curves=curves, floor_rule="energy:share=0.9")
    with pytest.raises(ValueError, match=r"'stem': the floor of rule 'energy:share=0\.999', caps .* leave no option"):
        choose(*net, keep={"macs": 0.9}, curves=curves, floor_rule="energy:share=0.999", cap={"stem": 1})


# ---- the smallest network within a loss


def test_the_smallest_network_within_a_loss(net: Net, curves: Any) -> None:
    tried: list[float] = []

    def drop(plan: Plan) -> float:
        tried.append(plan.planned["macs"] / plan.dense["macs"])
        return 10 * (1 - tried[-1]) ** 2

    plan = choose(*net, target_drop=2.5, drop=drop, curves=curves)  # 10 (1 - s)^2 <= 2.5 from s = 0.5 on
    share = plan.planned["macs"] / plan.dense["macs"]
    assert 0.5 - 1e-9 <= share <= 0.5 + 0.015
    assert len(tried) <= 10
    assert plan.keep["macs"] >= share
    small = choose(*net, target_drop=2.5, drop=drop, curves=curves, minimise="params", keep={"macs": 0.8})
    assert small.planned["macs"] <= 0.8 * small.dense["macs"]
    assert choose(*net, target_drop=0, drop=drop, curves=curves).factorised == ()
    anything = choose(*net, target_drop=100, drop=drop, curves=curves)
    least = Planner.of(*net, curves=curves).least("macs")
    assert least <= anything.planned["macs"] / anything.dense["macs"] <= least + 0.01


def test_the_target_is_kept_on_data(net: Net, curves: Any) -> None:
    model, stats = net
    held_out = batches_of(32, 3, 16, 16, seed=3)
    agreement = evaluate.Trials(model, lambda plan: factorise(model, plan, stats), held_out, "agreement")
    plan = choose(*net, target_drop=10, drop=agreement, curves=curves)
    assert plan.factorised
    assert evaluate.agreement(model, factorise(model, plan, stats), held_out) >= 90


@pytest.mark.parametrize(
    "options, message",
    [
        ({"target_drop": 1}, "target_drop and drop go together"),
        ({"drop": lambda plan: 0.0}, "target_drop and drop go together"),
        ({"target_drop": -1, "drop": lambda plan: 0.0}, "must be a number of at least 0, not -1"),
        ({"target_drop": "1", "drop": lambda plan: 0.0}, "must be a number of at least 0, not '1'"),
        ({"target_drop": 1, "drop": lambda plan: 5.0, "keep": {"macs": 0.6}}, r"with macs of 0\.600 .* loses 5, more"),
        ({"target_drop": 1, "drop": lambda plan: 0.0, "minimise": "flops"}, "minimise is 'flops'; it is one of params"),
        ({"rule": "sensitivity", "keep": {"macs": 0.5}}, "rule 'sensitivity' has to try plans: pass evaluate="),
        ({"rule": "minimax"}, "rule 'minimax' needs a budget"),
        ({"rule": "energy", "floor_rule": "knapsack"}, "rule 'knapsack' cannot be a floor"),
    ],
)
def test_complaints(net: Net, curves: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose(*net, curves=curves, **options)


# ---- trials


def test_trials_build_a_plan_once(net: Net, curves: Any) -> None:
    model, stats = net
    built: list[Plan] = []

    def build(plan: Plan) -> nn.Module:
        built.append(plan)
        return factorise(model, plan, stats)

    data = batches_of(16, 3, 16, 16, seed=5)
    labels = [model(batch).argmax(1) for batch in data]
    plan = choose(*net, keep={"macs": 0.25}, curves=curves)
    small = factorise(model, plan, stats)
    divergence = evaluate.Trials(model, build, data)
    assert divergence(plan) == divergence(plan) == pytest.approx(evaluate.divergence(model, small, data))
    assert len(built) == 1
    assert divergence(choose(*net, keep={"macs": 1.0}, curves=curves)) == 0
    agreement = evaluate.Trials(model, build, data, "agreement")(plan)
    assert agreement == pytest.approx(100 - evaluate.agreement(model, small, data))
    pairs = list(zip(data, labels, strict=True))
    assert evaluate.Trials(model, build, pairs, "accuracy")(plan) == pytest.approx(agreement)
    with pytest.raises(ValueError, match="unknown measure 'loss'; the measures are auto, accuracy, agreement"):
        evaluate.Trials(model, build, data, "loss")


class Fixed(nn.Module):
    """The same scores for every sample."""

    def __init__(self, scores: torch.Tensor) -> None:
        super().__init__()
        self.scores = scores

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores.expand(len(x), -1)


def test_divergence() -> None:
    p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.3, 0.3, 0.4]])
    found = evaluate.divergence(Fixed(p.log()), Fixed(q.log() + 3), [torch.zeros(2, 1), torch.zeros(5, 1)])
    assert found == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-6)
    with pytest.raises(ValueError, match="there are no samples"):
        evaluate.divergence(Fixed(p), Fixed(q), [])
    with pytest.raises(ValueError, match="batch 0: one model gives scores of shape"):
        evaluate.divergence(Fixed(p), Fixed(q[:, :2]), [torch.zeros(1, 1)])


def test_sensitivity_lowers_the_divergence(net: Net, curves: Any, trials: evaluate.Trials) -> None:
    """On the data that it tries plans on, at a budget where sites differ in what they do to the output."""
    known = choose(*net, keep={"macs": 0.4}, curves=curves)
    plan = choose(*net, rule="sensitivity", keep={"macs": 0.4}, curves=curves, evaluate=trials)
    assert plan.rows != known.rows
    assert trials(plan) < trials(known)
    assert any("loss" in row.why for row in plan.factorised)


def test_compress_takes_a_rule() -> None:
    model = make(Residual)
    small, report = compress(model, batches_of(8, 3, 16, 16), rule="energy:share=0.8", formats=["svd"])
    assert report.plan.rule == "energy:share=0.8"
    assert report.compressed.params == report.plan.planned["params"] < report.dense.params
    assert all((row.error or 0) <= 0.2 + 1e-9 for row in report.plan.rows)
    assert small.training == model.training


# ---- plans for many budgets


def test_nested_plans_lie_inside_each_other(net: Net, curves: Any) -> None:
    keeps = [{"macs": share} for share in (0.9, 0.7, 0.5, 0.35, 0.25)]
    plans = pareto(*net, keeps=keeps, curves=curves)
    for plan, keep in zip(plans, keeps, strict=True):
        assert keep["macs"] - 0.06 < plan.planned["macs"] / plan.dense["macs"] <= keep["macs"]
    for large, small in pairwise(plans):
        for row in large.factorised:
            assert small[row.site].format == row.format
            assert all(a <= b for a, b in zip(small[row.site].ranks, row.ranks, strict=True))
    alone = pareto(*net, keeps=keeps, curves=curves, nested=False)
    assert alone == [choose(*net, keep=keep, curves=curves) for keep in keeps]
    for own, nested in zip(alone, plans, strict=True):
        assert lost(own) <= lost(nested) * 1.002  # of nine sites a plan is not always the best of all


# ---- a rule of the user's own


@dataclass(frozen=True, kw_only=True)
class Boldest(Rule):
    name = "boldest"
    summary = "the largest error everywhere"

    def choose(self, problem: Problem) -> list[Pick]:
        worst = [max(range(len(site.options)), key=lambda o: site.options[o].error) for site in problem.sites]
        return [Pick(option, "the worst there is") for option in worst]


def test_a_rule_of_the_users_own(net: Net, curves: Any) -> None:
    plan = choose(*net, rule=Boldest(), keep={"macs": 0.5}, curves=curves, ignore="head")
    assert plan.rule == "boldest"
    assert {row.why for row in plan.rows} == {"the worst there is", "ignored"}
    assert all(row.error == max(option.error for option in curves[row.site]) for row in plan.factorised)


def test_pareto_takes_what_choose_takes(net: Net, curves: Any) -> None:
    keeps = [{"macs": 0.7}, {"macs": 0.4}]
    wishes: dict[str, Any] = {"rule": "minimax", "curves": curves, "ignore": "head", "floor_rule": "stable_rank"}
    plans = pareto(*net, keeps=keeps, nested=False, **wishes)
    assert plans == [choose(*net, keep=keep, **wishes) for keep in keeps]
    large, small = pareto(*net, keeps=keeps, **wishes)
    assert large == plans[0]
    assert all(small[row.site].format in (row.format, "dense") for row in large.factorised)
    with pytest.raises(TypeError, match="pareto takes no 'keep': keeps holds the budgets"):
        pareto(*net, keeps=keeps, keep={"macs": 0.5})  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="no argument 'format'"):
        pareto(*net, keeps=keeps, format="svd")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="pattern 'neck' matches no site"):
        pareto(*net, keeps=keeps, ignore="neck")
