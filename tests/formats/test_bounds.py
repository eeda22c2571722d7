"""No fit of a form has a smaller error than its bound, which is that of a Tucker-2 that contains it."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from benchmarks.grid_layers import LAYERS
from torch import nn

from rankwise import FORMATS, find
from rankwise.formats.bounds import Bounds
from rankwise.formats.multilinear import Multilinear
from rankwise.formats.network import Network
from rankwise.formats.shape import Shape
from rankwise.formats.weights import site_weight
from rankwise.linalg import tucker2
from rankwise.linalg.equation import compose
from rankwise.linalg.metric import Dense, Identity, Metric

SHAPE = Shape(groups=1, outputs=8, channels=6, kernel=(3, 3))
MATRIX = Shape(groups=1, outputs=8, channels=12, kernel=())
FITTED = [format for format in FORMATS.values() if isinstance(format, Multilinear)]
# How far the error of a start may lie above the least one of a Tucker-2: here of random kernels, the hardest.
START = 0.1


def networks() -> list[tuple[str, Network]]:
    return [
        (f"{format.name} {shape.kernel} {ranks}", format.network(shape, ranks))
        for format in FITTED
        for shape in (SHAPE, MATRIX)
        if shape.kernel or format.name not in ("cp3", "cp", "tucker")
        for ladder in format.ladders(shape, 1)
        for ranks in ladder[:: max(1, len(ladder) // 4)]
    ]


@pytest.mark.parametrize("network", [pytest.param(network, id=name) for name, network in networks()])
def test_unfoldings_have_the_rank_of_the_least_cut(network: Network) -> None:
    """Kernels of random factors have the largest rank that the form allows."""
    generator = torch.Generator().manual_seed(0)
    shapes = [network.shape(letters) for letters in network.factors]
    factors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    kernel = compose(network.equation, factors)
    letters = network.equation.kernel
    for rows in (network.outputs, network.channels, network.spatial):
        order = sorted(range(len(letters)), key=lambda place: letters[place] not in rows)
        unfolded = kernel.permute(order).reshape(network.count(rows), -1)
        assert torch.linalg.matrix_rank(unfolded) == network.unfolding_rank(rows)


def test_ranks_that_are_known() -> None:
    def ranks(name: str, *ranks: int) -> tuple[int, int]:
        network = FORMATS[name].network(SHAPE, ranks)  # type: ignore[attr-defined]
        return network.unfolding_rank(network.outputs), network.unfolding_rank(network.channels)

    assert ranks("cp", 5) == ranks("cp3", 5) == (5, 5)
    assert ranks("cp", 20) == (8, 6)
    assert ranks("tt", 5, 9, 4) == (5, 4)
    assert ranks("btd", 2, 3, 1) == (6, 2)
    assert ranks("ht", 5, 4, 7) == (5, 4)
    assert ranks("tucker", 5, 4, 2, 2) == (5, 4)
    assert ranks("tr", 2, 2, 8, 2) == (4, 4)
    assert ranks("stt", 2, 8, 2) == (4, 4)


def metrics_of(kind: str, dim: int) -> list[Metric]:
    if kind == "weight":
        return [Identity(dim)]
    rows = torch.randn(3 * dim, dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = (rows + 0.7 * rows.roll(1, 1)).relu()
    return [Dense((rows - rows.mean(0)).mT @ (rows - rows.mean(0)) / len(rows))]


@pytest.mark.parametrize("kind", ["weight", "input"])
@pytest.mark.parametrize("taps", [1, 9])
def test_a_bound_is_the_error_of_a_tucker2(kind: str, taps: int) -> None:
    build, example = (lambda: nn.Conv2d(6, 8, 3), (1, 6, 5, 5)) if taps > 1 else (lambda: nn.Linear(12, 8), (1, 12))
    torch.manual_seed(0)
    model = nn.Sequential(build())
    site = find(model, torch.zeros(example))["0"]
    weight, metrics = site_weight(model, site), metrics_of(kind, site.in_features)
    bounds = Bounds(site, weight, metrics, 1)
    shape = Shape.of_site(site)
    W_TCQ = weight.reshape(site.out_features, -1, site.taps)
    total = metrics[0].energy(W_TCQ.flatten(1))
    for R, S in product(range(1, 9), range(1, shape.channels + 1)):
        sizes = {"g": 1, "t": 8, "c": shape.channels, "q": site.taps, "a": R, "b": S}
        bound = bounds(Network(("bc", "abq", "ta"), "c", "t", "q", sizes, shape.kernel))
        fitted = tucker2.fit(W_TCQ, metrics[0], R, S, sweeps=40).error / total
        assert bound <= fitted / (1 - START) + 1e-9
        assert bound >= fitted * (1 - 1e-6) - 1e-9 or max(R, S) > min(R, S) * taps
    assert bounds(Network(("bc", "abq", "ta"), "c", "t", "q", sizes, shape.kernel)) == 0


@pytest.mark.parametrize(
    "name", ["linear", pytest.param("5 x 3, all uneven", marks=pytest.mark.slow), "groups 4, all uneven"]
)
def test_no_fit_is_below_its_bound(name: str) -> None:
    build, example = LAYERS[name]
    torch.manual_seed(0)
    model = nn.Sequential(build().double())
    site = find(model, torch.zeros(example, dtype=torch.float64))["0"]
    weight = site_weight(model, site)
    metrics = metrics_of("input", site.in_features) * site.groups
    bounds, shape, seen = Bounds(site, weight, metrics, 1), Shape.of_site(site), 0
    for format in FITTED:
        if format.refuses(site):
            continue
        for ladder in format.ladders(shape, 1):
            ranks = ladder[len(ladder) // 2]
            bound = bounds(format.network(shape, ranks))
            assert format.fit(site, weight, metrics, ranks).error >= bound * (1 - START)
            seen += bound > 0
    assert seen
