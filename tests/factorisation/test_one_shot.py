"""One-shot factorisation: from statistics, or from the weights alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.factorisation_nets import CASES, Chain, Grouped
from support.nets import Residual, batches_of, chains, make, outputs, plan_of, unchanged
from torch import nn

import rankwise as rw
from rankwise.formats.weights import site_weight

PLANS: dict[str, Any] = {
    "conv1": ("tucker2", (5, 2)),
    "conv2": ("svd", (4,)),
    "conv3": ("spatial_svd", (9,)),
    "head": ("svd", (2,)),
}


def test_each_site_is_fitted_to_its_own_input() -> None:
    """The error in the metric is the error on the calibration rows, and the mean output stays."""
    model, batches = make(Chain), batches_of(3000, 20)
    stats = rw.collect(model, batches)
    plan = plan_of(stats.sites, {name: ("svd", (5,)) for name in ("net.0", "net.2", "net.4")})  # noqa: C420
    with unchanged(model):
        small = rw.factorise(model, plan, stats)
    x = torch.cat(batches)
    with torch.no_grad():
        for name in ("net.0", "net.2", "net.4"):
            layer = model.get_submodule(name)
            y, got = layer(x).double(), small.get_submodule(name)(x).double()
            torch.testing.assert_close(got.mean(0), y.mean(0), rtol=1e-5, atol=1e-5)
            y_c = y - y.mean(0)
            _, values, _ = torch.linalg.svd(y_c, full_matrices=False)
            assert (got - y).square().sum() == pytest.approx(float(values[5:].square().sum()), rel=1e-3)
            x = model.net[int(name[-1]) + 1](layer(x))


@pytest.mark.parametrize("metric", ["input", "weight"])
def test_full_ranks_change_nothing(metric: str) -> None:
    model, batches = make(Grouped), batches_of(8, 3, 10, 10)
    stats = rw.collect(model, batches)
    full = {name: rw.FORMATS[format].limits(stats.sites[name]) for name, (format, _) in PLANS.items()}
    plan = plan_of(stats.sites, {name: (PLANS[name][0], ranks) for name, ranks in full.items()}, metric)
    small = rw.factorise(model, plan, stats if metric == "input" else stats.sites)
    assert set(chains(small)) == set(PLANS)
    torch.testing.assert_close(outputs(small, batches), outputs(model, batches), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", ["svd", "tucker2"])
@pytest.mark.parametrize("case", ["signals", "volumes", "decoder"])
def test_full_ranks_of_other_convolutions_change_nothing(case: str, format: str) -> None:
    build, data = CASES[case]
    model, batches = make(build), data()
    stats = rw.collect(model, batches)
    rows = {name: (format, rw.FORMATS[format].limits(site)) for name, site in stats.sites.items() if site.taps > 1}
    small = rw.factorise(model, plan_of(stats.sites, rows), stats)
    assert set(chains(small)) == rows.keys()
    assert len(rows) == 3
    torch.testing.assert_close(outputs(small, batches), outputs(model, batches), rtol=1e-4, atol=1e-5)


def test_the_weight_metric_needs_no_data_and_no_new_bias() -> None:
    model, example = make(Residual), torch.zeros(1, 3, 8, 8)
    sites = rw.find(model, example)
    plan = rw.choose(model, sites, keep={"macs": 0.6}, metric="weight")
    small = rw.factorise(model, plan, sites)
    for name, chain in chains(small).items():
        assert (chain.bias is None) == (model.get_submodule(name).bias is None)
        if chain.bias is not None:
            assert torch.equal(chain.bias, model.get_submodule(name).bias)
    found = rw.find(small, example)
    assert (found.total_params, found.total_macs) == (plan.planned["params"], plan.planned["macs"])


def test_svd_in_the_weight_metric_is_the_truncated_svd() -> None:
    model = make(Chain)
    plan = plan_of(rw.find(model, torch.zeros(1, 20)), {"net.2": ("svd", (7,))}, "weight")
    small = rw.factorise(model, plan, rw.find(model, torch.zeros(1, 20)))
    U, S, V = torch.linalg.svd(model.net[2].weight.detach())
    torch.testing.assert_close(small.net[2].weight, U[:, :7] * S[:7] @ V[:7], rtol=1e-4, atol=1e-5)


def test_counts_with_the_bias_that_the_correction_needs() -> None:
    model, batches = make(Residual), batches_of(8, 3, 8, 8)
    stats = rw.collect(model, batches)
    plan = rw.choose(model, stats, keep={"params": 0.5})
    small = rw.factorise(model, plan, stats)
    assert all(chain.bias is not None for chain in chains(small).values())
    found = rw.find(small, batches[0][:1])
    assert (found.total_params, found.total_macs) == (plan.planned["params"], plan.planned["macs"])


def test_dead_inputs_and_zero_weights() -> None:
    model = make(Chain)
    with torch.no_grad():
        model.net[2].weight.zero_()
        model.net[0].bias[:5] = -1e3  # never fire
    batches = batches_of(100, 20)
    stats = rw.collect(model, batches)
    plan = plan_of(stats.sites, {"net.0": ("svd", (4,)), "net.2": ("svd", (3,)), "net.4": ("svd", (3,))})
    for options in ({}, {"data": batches}):
        small = rw.factorise(model, plan, stats, **options)
        assert all(value.isfinite().all() for value in small.state_dict().values())
        torch.testing.assert_close(outputs(small, batches), outputs(model, batches), rtol=1e-3, atol=1e-3)


def test_in_place() -> None:
    model, batches = make(Residual), batches_of(8, 3, 8, 8)
    stats = rw.collect(model, batches)
    plan = rw.choose(model, stats, keep={"macs": 0.6})
    expected = outputs(rw.factorise(model, plan, stats), batches)
    stem = model.stem
    assert rw.factorise_(model, plan, stats) is model
    assert torch.equal(outputs(model, batches), expected)
    assert set(chains(model)) == {row.site for row in plan.factorised}
    assert model.stem is stem or isinstance(model.stem, rw.LowRank)


def test_in_place_keeps_what_is_shared() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(12, 12)
            self.b = nn.ModuleList([self.a, nn.Linear(12, 12)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b[1](self.b[0](self.a(x)))

    model, batches = make(Shared), batches_of(32, 12)
    stats = rw.collect(model, batches)
    plan = plan_of(stats.sites, {"a": ("svd", (3,)), "b.1": ("svd", (3,))})
    for data in (None, batches):
        small = rw.factorise_(make(Shared), plan, stats, data=data)
        assert small.a is small.b[0]
        assert isinstance(small.a, rw.LowRank)
        assert isinstance(small.b[1], rw.LowRank)


def test_a_network_that_is_one_layer_needs_a_holder() -> None:
    layer = nn.Linear(12, 12)
    batches = batches_of(32, 12)
    stats = rw.collect(layer, batches)
    plan = plan_of(stats.sites, {"": ("svd", (3,))})
    for options in ({}, {"data": batches}, {"data": batches, "engine": "hooks"}):
        with unchanged(layer), pytest.raises(ValueError, match=r"wrap it first: model = nn\.Sequential"):
            rw.factorise(layer, plan, stats, **options)


def test_the_predicted_error_of_a_transposed_convolution_is_that_of_its_overlapping_output() -> None:
    build, data = CASES["decoder"]
    model, batches = make(build), data()
    stats = rw.collect(model, batches, positions="all")
    x = torch.relu(torch.cat([model.down(batch) for batch in batches]))
    x = torch.relu(x + model.norm(model.up1(x))).detach().double()
    layer = model.up2.double()
    weight = site_weight(model, stats.sites["up2"])
    metrics = stats["up2"].metrics(damping=0.0)
    factors = rw.FORMATS["svd"].fit(stats.sites["up2"], weight, metrics, (2,))
    chain = rw.FORMATS["svd"].build(layer, (2,), bias=True)
    rw.FORMATS["svd"].fill(chain, factors, stats["up2"].bias(weight, factors.dense(), layer.bias))
    with torch.no_grad():
        y, got = layer(x), chain(x)
    torch.testing.assert_close(got.mean((0, 2, 3)), y.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    spread = (y - y.mean((0, 2, 3), keepdim=True)).square().sum()
    assert float((got - y).square().sum() / spread) == pytest.approx(factors.error, rel=1e-4)
