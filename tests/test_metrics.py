"""Metrics as objects: what they need, what they make, and one from outside the package."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

import rankwise as rw
from rankwise import names
from rankwise.linalg.diagonal import Diagonal
from rankwise.metrics import METRICS, FitMetric, get_metric


@pytest.fixture(scope="module")
def net() -> tuple[nn.Module, rw.Statistics]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 12))
    return model, rw.collect(model, [torch.randn(64, 24) * torch.linspace(0.1, 2, 24)], gradients="weights")


def test_the_names_are_those_that_are_known_without_torch() -> None:
    assert tuple(METRICS) == names.METRICS
    assert all(metric.name == name and metric.summary for name, metric in METRICS.items())
    code = "import sys, rankwise.metrics as m; m.get_metric('input'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_object_stands_for_its_name(net: tuple[nn.Module, rw.Statistics]) -> None:
    for name, metric in METRICS.items():
        assert get_metric(name) is get_metric(metric) is metric
        plan = rw.choose(*net, keep={"params": 0.5}, metric=metric)
        assert plan == rw.choose(*net, keep={"params": 0.5}, metric=name)
        assert (plan.metric, plan.fit_metric) == (name, metric)
        assert rw.Plan.from_yaml(plan.to_yaml()) == plan


def test_what_they_need(net: tuple[nn.Module, rw.Statistics]) -> None:
    model, stats = net
    plain = rw.collect(model, [torch.randn(64, 24)])
    for metric in METRICS.values():
        if metric.needs_statistics:
            with pytest.raises(ValueError, match=f'the "{metric}" metric needs statistics'):
                rw.profile(model, stats.sites, metric=metric)
        if metric.needs_gradients:
            with pytest.raises(ValueError, match="hold no gradients"):
                rw.profile(model, plain, metric=metric)
        assert stats.sites["0"].chain_bias(metric)  # it has one
    bare = nn.Sequential(nn.Linear(8, 8, bias=False))
    site = rw.find(bare, torch.randn(1, 8))["0"]
    assert {name for name in METRICS if site.chain_bias(name)} == {"input", "diagonal", "fisher", "pooled"}


def test_names_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="unknown metric 'inputs'; did you mean input"):
        get_metric("inputs")
    with pytest.raises(ValueError, match="plan: unknown metric 'outputs'"):
        rw.Plan(rows=(), metric="outputs")


@dataclass(frozen=True, kw_only=True)
class Loudest(FitMetric):
    """Only the inputs of the largest variances count."""

    def of(self, moments: Any, shrink: float = 0.0) -> Any:
        two_sided = moments.sided(shrink, diagonal=True)
        (variances,) = [metric.dense().diagonal() for metric in two_sided.inputs]
        return type(two_sided)(inputs=[Diagonal(variances.where(variances > variances.median(), 1e-3 * variances))])


@pytest.fixture
def loudest() -> Iterator[FitMetric]:
    metric = Loudest(name="loudest", summary="error of each layer's output for loud inputs")
    METRICS["loudest"] = metric
    yield metric
    del METRICS["loudest"]


def test_a_metric_from_outside(net: tuple[nn.Module, rw.Statistics], loudest: FitMetric) -> None:
    model, stats = net
    plan = rw.choose(model, stats, keep={"params": 0.5}, metric=loudest)
    assert plan.metric == "loudest"
    assert rw.Plan.from_yaml(plan.to_yaml()) == plan
    small = rw.factorise(model, plan, stats)
    usual = rw.factorise(model, rw.choose(model, stats, keep={"params": 0.5}, metric="input"), stats)
    weight = small[0].weight.detach().double()
    assert not torch.allclose(weight, usual[0].weight.double(), atol=1e-3)
    missed = (weight - model[0].weight.detach().double()).square().sum(0)
    variances = torch.linspace(0.1, 2, 24).square()
    loud = variances > variances.median()
    assert float(missed[loud].sum()) < 0.5 * float(missed[~loud].sum())
