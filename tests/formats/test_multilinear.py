"""What a user gets from thorough fits of the multilinear formats: planted weights, more terms, the plain method."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from benchmarks import formats_laws
from benchmarks.formats_layers import spectral
from benchmarks.formats_plain import best_of
from torch import Tensor, nn

import rankwise as rw
from rankwise.formats import FORMATS
from rankwise.formats.multilinear import QUICK, Multilinear
from rankwise.formats.shape import Shape
from rankwise.linalg.metric import Metric
from rankwise.network.site import Site

pytestmark = pytest.mark.usefixtures("one_thread")

LAYERS = {"convolution": nn.Conv2d(12, 16, 3), "matrix": nn.Linear(24, 36)}
INPUTS = {"convolution": torch.zeros(1, 12, 5, 5), "matrix": torch.zeros(1, 24)}


def site_of(name: str) -> Site:
    return rw.find(nn.Sequential(LAYERS[name]), INPUTS[name])["0"]


def multilinear(name: str) -> Multilinear:
    format = FORMATS[name]
    assert isinstance(format, Multilinear)
    return format


CELLS = [
    (format, layer)
    for layer in LAYERS
    for format in formats_laws.MULTILINEAR
    if not FORMATS[format].refuses(site_of(layer))
]


@pytest.mark.parametrize("format, layer", CELLS)
@pytest.mark.parametrize("metric", ["weight", "input"])
@pytest.mark.parametrize("count", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_weights_of_the_form_are_recovered(format: str, layer: str, metric: str, count: int) -> None:
    site = site_of(layer)
    ranks = formats_laws.planted_ranks(FORMATS[format], site)
    errors = [formats_laws.recovery(format, LAYERS[layer], site, ranks, metric, seed) for seed in range(count)]
    assert max(errors) < formats_laws.RECOVERED


def kernel() -> Tensor:
    """16 x 12 x 3 x 3, with singular values that fall in every direction, as those of trained layers do."""
    return spectral(16, torch.Generator().manual_seed(2))[:, :12].contiguous()


def slow(value: str, *long: str) -> Any:
    """A parameter, among the slow tests if it is one of the long ones."""
    return pytest.param(value, marks=pytest.mark.slow) if value in long else value


def few(format: str) -> list[tuple[int, ...]]:
    """The first ladder that saves anything, thinned."""
    site = site_of("convolution")
    ladder = multilinear(format).ladders(Shape.of_site(site), 1)[0]
    useful = [ranks for ranks in ladder if FORMATS[format].saves(site, ranks)]
    return useful[:: max(1, len(useful) // 6)]


@pytest.mark.parametrize("format", [slow(name, "btd", "str", "tr") for name in formats_laws.MULTILINEAR])
@pytest.mark.parametrize("metric", [slow("weight", "weight"), "input"])
def test_more_terms_are_never_worse(format: str, metric: str) -> None:
    site, metrics = site_of("convolution"), [formats_laws.planted_metric(108, metric)]
    errors = [FORMATS[format].fit(site, kernel(), metrics, ranks).error for ranks in few(format)]
    assert all(after <= before for before, after in pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


@pytest.mark.parametrize("format", formats_laws.MULTILINEAR)
@pytest.mark.parametrize("metric", ["weight", "input"])
def test_no_worse_than_plain_alternating_least_squares(format: str, metric: str) -> None:
    site, sigma = site_of("convolution"), formats_laws.planted_metric(108, metric)
    ranks = few(format)[2]
    network = multilinear(format).network(Shape.of_site(site), ranks)
    shapes = [network.shape(letters) for letters in network.factors]
    equation = ",".join(network.factors) + "->" + network.equation.kernel
    plain = best_of(kernel().flatten(1), sigma.dense(), equation, shapes)
    assert FORMATS[format].fit(site, kernel(), [sigma], ranks).error <= plain * (1 + 1e-4)


@pytest.mark.parametrize("metric", ["weight", "input"])
@pytest.mark.parametrize("format", formats_laws.MULTILINEAR)
def test_several_layers_are_fitted_as_each_alone(format: str, metric: str) -> None:
    """Quick fits of three weights with two groups each."""
    convolution = nn.Conv2d(12, 16, 3, groups=2)
    site = rw.find(nn.Sequential(convolution), INPUTS["convolution"])["0"]
    targets: list[tuple[Tensor, list[Metric]]] = []
    for seed in range(3):
        weight = torch.randn(16, 6, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        targets.append((weight, [formats_laws.planted_metric(54, metric)] * 2))
    ranks = tuple(max(1, limit // 2) for limit in FORMATS[format].limits(site))
    together = multilinear(format).fit_many(site, targets, ranks, QUICK)
    for target, found in zip(targets, together, strict=True):
        (alone,) = multilinear(format).fit_many(site, [target], ranks, QUICK)
        assert found.error == pytest.approx(alone.error, rel=1e-3)
        assert found.ranks == ranks
        missed = (target[0] - found.dense()).reshape(2, 8, -1)
        direct = sum(metric.energy(part) for metric, part in zip(target[1], missed, strict=True))
        total = sum(m.energy(part) for m, part in zip(target[1], target[0].reshape(2, 8, -1), strict=True))
        assert found.error == pytest.approx(direct / total, rel=1e-6)
