"""The metrics `diagonal` and `fisher` from statistics to a factorised network, one-shot and sequential."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.factorisation_nets import CASES, Words, tokens
from support.nets import Residual, batches_of, chains, make, outputs, plan_of, unchanged
from torch import nn

import rankwise as rw
from rankwise.evaluate import divergence
from rankwise.formats.weights import site_weight

pytestmark = pytest.mark.usefixtures("one_thread")

BATCHES = batches_of(32, 3, 8, 8)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make(Residual)


@pytest.fixture(scope="module")
def stats(model: nn.Module) -> rw.Statistics:
    return rw.collect(model, BATCHES, gradients=True)


def with_identity(stats: rw.Statistics) -> rw.Statistics:
    """Gradients that weigh all outputs alike."""
    moments = {}
    for name, found in stats.items():
        assert found.gradients is not None
        T = found.gradients.second_GTT.shape[1]
        eye = 0.01 * torch.eye(T, dtype=torch.float64).expand_as(found.gradients.second_GTT)
        moments[name] = replace(found, gradients=replace(found.gradients, second_GTT=eye))
    return rw.Statistics(moments, sites=stats.sites, samples=stats.samples)


def same(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = chains(a), chains(b)
    assert ours.keys() == theirs.keys()
    assert ours
    for name, chain in ours.items():
        assert (chain.format.name, chain.ranks) == (theirs[name].format.name, theirs[name].ranks)
        # iterations that end a step earlier or later carry over from site to site
        torch.testing.assert_close(chain.weight, theirs[name].weight, rtol=1e-4, atol=5e-4)
        torch.testing.assert_close(chain.bias, theirs[name].bias, rtol=1e-4, atol=5e-4)


@pytest.mark.parametrize("how", ["one-shot", "sequential"])
def test_with_an_identity_at_the_outputs_fisher_is_input(model: nn.Module, stats: rw.Statistics, how: str) -> None:
    stats, data = with_identity(stats), BATCHES if how == "sequential" else None
    fisher, input = (rw.choose(model, stats, keep={"macs": 0.6}, metric=metric) for metric in ("fisher", "input"))
    assert [row.ranks for row in fisher.rows] == [row.ranks for row in input.rows]
    for ours, theirs in zip(fisher.rows, input.rows, strict=True):
        assert ours.error == pytest.approx(theirs.error, rel=1e-6, abs=1e-9)
    same(rw.factorise(model, fisher, stats, data=data), rw.factorise(model, input, stats, data=data))


@pytest.mark.parametrize("how", ["one-shot", "sequential"])
@pytest.mark.parametrize("metric", ["diagonal", "fisher"])
@pytest.mark.parametrize("case", ["residual", "signals", "volumes", "decoder"])
def test_full_ranks_change_nothing(case: str, metric: str, how: str) -> None:
    build, data = CASES[case] if case in CASES else (Residual, lambda: batches_of(4, 3, 8, 8))
    model, batches = make(build), data()
    loss = None if case in ("residual", "signals") else lambda y: y.square().sum()
    stats = rw.collect(model, batches, gradients=True, loss=loss)
    rows = {name: ("svd", rw.FORMATS["svd"].limits(site)) for name, site in stats.sites.items() if site.taps > 1}
    plan = plan_of(stats.sites, rows, metric)
    with unchanged(model):
        small = rw.factorise(model, plan, stats, data=batches if how == "sequential" else None)
    assert set(chains(small)) == rows.keys()
    torch.testing.assert_close(outputs(small, batches), outputs(model, batches), rtol=2e-3, atol=1e-4)


def test_the_planned_errors_and_counts_are_those_of_the_network(model: nn.Module, stats: rw.Statistics) -> None:
    for metric in ("diagonal", "fisher"):
        plan = rw.choose(model, stats, keep={"macs": 0.5}, metric=metric, formats="svd")
        small = rw.factorise(model, plan, stats)
        found = rw.find(small, BATCHES[0][:1])
        assert (found.total_params, found.total_macs) == (plan.planned["params"], plan.planned["macs"])
        for row in plan.factorised:
            two, site = stats.metric(row.site, metric), stats.sites[row.site]
            W, V = site_weight(model, site), site_weight(small, site)
            assert two.energy(W - V) / two.energy(W) == pytest.approx(row.error, rel=1e-3)


def test_fisher_loses_less_of_the_answers_than_input() -> None:
    """A network whose answers hang on two of sixteen outputs of a layer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))
        with torch.no_grad():
            net[2].weight[:, 2:] *= 0.05
            net[2].weight[:, :2] *= 4
            net[0].weight[2:] *= 2
        batches = [torch.randn(2000, 16)]
    stats = rw.collect(net, batches, gradients=True)
    lost = {}
    for metric in ("weight", "diagonal", "input", "fisher"):
        for data in (None, batches):
            plan = plan_of(stats.sites, {"0": ("svd", (2,))}, metric)
            lost[metric, data is None] = divergence(net, rw.factorise(net, plan, stats, data=data), batches)
    assert lost["fisher", True] < 0.05 * min(lost[other, True] for other in ("weight", "diagonal", "input"))
    assert lost["fisher", False] < 0.05 * min(lost[other, False] for other in ("diagonal", "input"))


def test_graph_and_hooks_agree(model: nn.Module, stats: rw.Statistics) -> None:
    plan = rw.choose(model, stats, keep={"macs": 0.5}, metric="fisher")
    same(*(rw.factorise(model, plan, stats, data=BATCHES, engine=engine) for engine in ("graph", "hooks")))


def test_diagonal_is_svd_with_weighted_columns(model: nn.Module, stats: rw.Statistics) -> None:
    name, rank = "block2.conv1", 3
    site, found = stats.sites[name], stats[name]
    plan = plan_of(stats.sites, {name: ("svd", (rank,))}, "diagonal")
    chain = chains(rw.factorise(model, plan, stats))[name]
    W = site_weight(model, site).flatten(1)
    (metric,) = found.metrics(diagonal=True)
    (whole,) = found.metrics(damping=0)
    scale = metric.dense().diagonal().sqrt()
    torch.testing.assert_close(scale.square(), whole.dense().diagonal(), rtol=1e-4, atol=1e-6)
    P, s, Q = torch.linalg.svd(W * scale, full_matrices=False)
    expected = (P[:, :rank] * s[:rank]) @ Q[:rank] / scale
    torch.testing.assert_close(chain.weight.flatten(1).double(), expected, rtol=1e-4, atol=1e-5)
    mean = found.bias(W.reshape(site.weight_shape), chain.weight.double(), None)
    torch.testing.assert_close(chain.bias.double(), mean, rtol=1e-4, atol=1e-5)


def test_an_embedding_and_its_tied_calls() -> None:
    model, batches = make(Words), tokens()
    stats = rw.collect(model, batches, gradients=True)
    name = next(name for name, site in stats.sites.items() if not site.multiplies)
    for metric in ("diagonal", "fisher"):
        plan = plan_of(stats.sites, {name: ("svd", (3,))}, metric)
        for data in (None, batches):
            chain = chains(rw.factorise(model, plan, stats, data=data))[name]
            two, W = stats.metric(name, metric), site_weight(model, stats.sites[name])
            U = torch.linalg.svd(two.forth(W) * two.inputs[0].dense().diagonal().sqrt())[0][:, :3]
            expected = two.back(U @ U.mT @ two.forth(W))
            torch.testing.assert_close(chain.weight.mT.double(), expected, rtol=1e-3, atol=1e-4)


def test_compress_collects_what_it_needs(model: nn.Module) -> None:
    for options in ({"metric": "fisher"}, {"rule": "fisher", "metric": "weight"}):
        for method in ("sequential", "one-shot"):
            small, report = rw.compress(
                model,
                BATCHES[:2],
                keep={"macs": 0.6},
                method=method,
                formats="svd",
                **options,  # type: ignore
            )
            assert report.compressed.macs <= 0.6 * report.dense.macs
            assert (report.plan.metric, report.plan.rule) == (
                options.get("metric", "input"), options.get("rule", "knapsack")
            )  # fmt: skip
            assert chains(small)


def test_round_trips(model: nn.Module, stats: rw.Statistics, tmp_path: Any) -> None:
    plan = rw.choose(model, stats, keep={"macs": 0.6}, metric="fisher", rule="fisher")
    plan.save(tmp_path / "plan.yaml")
    again = rw.Plan.load(tmp_path / "plan.yaml")
    assert again == plan
    stored = rw.Statistics.load(stats.save(tmp_path / "s"))
    small, other = rw.factorise(model, plan, stats), rw.factorise(model, again, stored)
    rw.save(small, tmp_path / "out", plan=plan)
    loaded = rw.load(make(Residual), tmp_path / "out")
    wanted = outputs(small, BATCHES)
    assert torch.equal(outputs(other, BATCHES), wanted)
    assert torch.equal(outputs(loaded, BATCHES), wanted)


def test_the_rule_weighs_sites_in_any_metric(model: nn.Module, stats: rw.Statistics) -> None:
    for metric in ("weight", "diagonal", "input", "fisher"):
        plan = rw.choose(model, stats, keep={"macs": 0.5}, metric=metric, rule="fisher", formats="svd")
        assert plan.planned["macs"] <= 0.5 * plan.dense["macs"]
        assert all("fisher: predicted loss" in row.why for row in plan.factorised)


def test_shrunk_to_the_end_it_is_the_weight_metric(model: nn.Module, stats: rw.Statistics) -> None:
    plan = rw.choose(model, stats, keep={"macs": 0.6}, metric="fisher", shrink=1.0, formats="svd")
    for row in plan.factorised:
        singular = torch.linalg.svdvals(site_weight(model, stats.sites[row.site]).flatten(1)).square()
        assert row.error == pytest.approx(float(singular[row.ranks[0] :].sum() / singular.sum()), rel=1e-6)
    assert rw.choose_shrinkage(model, replace(plan, shrink=0.0), stats, BATCHES[:1]) in (0.0, 0.01, 0.03, 0.1, 0.3)


def test_complaints(model: nn.Module, stats: rw.Statistics) -> None:
    plain = rw.collect(model, BATCHES[:1])
    first = "conv1" if "conv1" in plain else next(iter(plain))
    for how, message in (
        ({"metric": "fisher"}, f"site '{first}': the statistics hold no gradients at its output; collect them with"),
        ({"rule": "fisher"}, "the statistics hold no gradients at its output"),
        (
            {"metric": "fischer"},
            "unknown metric 'fischer'; did you mean fisher",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            rw.choose(model, plain, keep={"macs": 0.6}, **how)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Fisher energies need statistics with gradients, also in the weight metric"):
        rw.choose(model, plain.sites, keep={"macs": 0.6}, metric="weight", rule="fisher")
    for metric in ("diagonal", "fisher"):
        with pytest.raises(ValueError, match=f'the "{metric}" metric needs statistics'):
            rw.choose(model, plain.sites, keep={"macs": 0.6}, metric=metric)
    plan = rw.choose(model, stats, keep={"macs": 0.6}, metric="fisher")
    with pytest.raises(ValueError, match="a plan in the fisher metric needs statistics also with data="):
        rw.factorise(model, plan, data=BATCHES)
    for data in (None, BATCHES):
        with pytest.raises(ValueError, match="the statistics hold no gradients"):
            rw.factorise(model, plan, plain, data=data)
    with pytest.raises(ValueError, match="cannot have format 'kronecker': kronecker has no factor that alone holds"):
        rw.factorise(model, plan_of(stats.sites, {first: ("kronecker", (1,))}, "fisher"), stats)


def test_a_real_network(networks: Any) -> None:
    """ResNet-20 at nine tenths of its MACs, where second derivatives still hold: what is lost is what was predicted."""
    model = networks.resnet20()
    images = networks.cifar10_lossless("train")[0][:128]
    batches = list(networks.normalise_imagenet(images).split(64))
    stats = rw.collect(model, batches, gradients=True)
    lost = {}
    for metric in ("input", "fisher"):
        plan = rw.choose(model, stats, keep={"macs": 0.9}, metric=metric, rule="fisher", formats="svd")
        lost[metric] = divergence(model, rw.factorise(model, plan, stats), batches)
    predicted = sum(float(row.why.split("loss ")[1].split(",")[0]) for row in plan.factorised)
    assert 0.3 < predicted / lost["fisher"] < 3
    assert lost["fisher"] < lost["input"]
