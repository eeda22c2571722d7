"""The helpers of the benchmark of sparse low rank, on numbers with known answers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.slr import frontier, magnitude, shares
from benchmarks.slr_layer import spearman


def point(method: str, params: float, top1: float) -> dict[str, object]:
    return {"network": "n", "method": method, "metric": "weight", "params_ratio": params, "top1": top1}


DENSE = {"network": "n", "method": "dense", "params_ratio": 1.0, "top1": 98.0}
POINTS = [DENSE, point("svd", 0.1, 95.0), point("svd", 0.2, 97.0), point("svd", 0.4, 97.5), point("slr", 0.15, 97.4)]


def test_share_is_of_the_least_svd_that_is_as_accurate() -> None:
    rows = {row["method"]: row for row in shares(POINTS)}
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
