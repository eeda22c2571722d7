"""The helpers of the benchmark of sparse low rank, on numbers with known answers."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from benchmarks.slr import frontier, magnitude, measured, points, shares
from benchmarks.slr_cases import Case, LeNet5, SmallVGG
from benchmarks.slr_layer import criterion, spearman
from support.nets import make
from torch import nn

import rankwise as rw


def point(method: str, params: float, top1: float) -> dict[str, object]:
    return {"network": "n", "method": method, "metric": "weight", "params_ratio": params, "top1": top1}


DENSE = {"network": "n", "method": "dense", "params_ratio": 1.0, "top1": 98.0}
POINTS = [DENSE, point("svd", 0.1, 95.0), point("svd", 0.2, 97.0), point("svd", 0.4, 97.5), point("slr", 0.15, 97.4)]


def test_share_is_of_the_least_svd_that_is_as_accurate() -> None:
    rows = {row["method"]: row for row in shares(POINTS, below=3.0)}
    assert rows["slr"]["share"] == pytest.approx(0.15 / 0.4)
    assert rows["slr"]["strict"] == pytest.approx(0.15 / 0.2)
    assert rows["svd"]["strict"] == 1.0


def test_frontier_holds_what_nothing_beats() -> None:
    kept = [(row["method"], row["params_ratio"]) for row in frontier(POINTS)]
    assert kept == [("svd", 0.1), ("slr", 0.15), ("svd", 0.4), ("dense", 1.0)]


def test_magnitude_keeps_the_largest() -> None:
    assert magnitude(torch.tensor([[1.0, -3.0], [2.0, 0.5]]), 2).tolist() == [[0.0, -3.0], [2.0, 0.0]]


def test_rank_correlation() -> None:
    a = torch.tensor([1.0, 5.0, 3.0, 9.0])
    assert spearman(a, a.exp()) == pytest.approx(1.0)
    assert spearman(a, -a) == pytest.approx(-1.0)
    assert spearman(torch.tensor([1.0, 1.0, 2.0]), torch.tensor([1.0, 2.0, 3.0])) == pytest.approx(3**0.5 / 2)


@pytest.mark.parametrize("build, shape, layer", [(LeNet5, (1, 28, 28), "fc"), (SmallVGG, (3, 32, 32), "fc6")])
def test_networks_that_are_trained_here_are_small(
    build: Callable[[], nn.Module], shape: tuple[int, ...], layer: str
) -> None:
    sites = rw.find(build().eval(), torch.zeros(1, *shape))
    assert sites.total_macs < 20e6
    assert sites[layer].weight_shape == {"fc": (120, 400), "fc6": (512, 512)}[layer]


def case(**options: object) -> Case:
    x = torch.randn(64, 12, generator=torch.Generator().manual_seed(0))
    model = make(lambda: nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4)))
    y = model(x).argmax(1)
    return Case(network="n", model=model, names=("0", "2"), inputs=x, labels=y, calibration=x, answers=y, **options)  # type: ignore[arg-type]


@torch.no_grad()
def test_what_is_counted_of_a_case() -> None:
    """Parameters are those of the factors; a layer that stays dense counts as it is; bytes hold the indices."""
    two = case(ks=(0.5,), grid=(0.5,), shares=(0.5,))
    assert (two.rank("0", 0.5), two.rank("2", 0.5), two.rank("0", 3)) == (5, 2, 3)
    assert two.budgets() == [80]
    dense = 12 * 10 + 10 * 4
    row = measured(two, "slr", "weight", {"0": ("slr", (2, 2, 6, 5))})
    factors = 2 * 22 + 2 * 11
    assert row["params"] == row["nonzeros"] == factors + 40
    assert row["params_ratio"] == pytest.approx((factors + 40) / dense)
    assert row["bytes_ratio"] == pytest.approx((factors + 40 + 6 + 10) / dense)
    assert row["whole"] == pytest.approx((factors + 40 + 14) / (dense + 14))
    assert 0 <= row["top1"] <= 100
    assert measured(two, "svd", "input", {"0": ("svd", (10,)), "2": ("svd", (4,))})["top1"] == 100


@torch.no_grad()
def test_every_method_of_the_grid() -> None:
    rows = list(points(case(ks=(2,), grid=(3,), rates=((0.5,), (0.5,)))))
    methods = {row["method"] for row in rows}
    assert {"dense", "svd", "slr-w", "slr-a", "slr-c", "slr-a, refit", "pruning", "slr, by curve"} <= methods
    by_method = {row["method"]: row for row in rows if row.get("metric", "weight") == "weight"}
    assert by_method["pruning"]["params"] == by_method["slr-w"]["params"]
    assert by_method["dense"]["top1"] == 100


@pytest.mark.slow
@torch.no_grad()
def test_one_pass_ranks_neurons_as_the_exact_change_does(networks: ModuleType) -> None:
    """On the trained LeNet-300-100."""
    exact, first, second, corrected = criterion(networks, quick=True, cache=None)
    assert min(row["inputs"] for row in (first, second, corrected)) > 0.9
    assert corrected["outputs"] > second["outputs"] > 0.8
    assert all(row["seconds"] > 0 for row in (exact, first, second, corrected))
