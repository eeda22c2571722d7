"""The benchmark of orthogonal training on few pictures: two rows with as many parameters."""

from __future__ import annotations

import math

import pytest
import torch
from benchmarks.orthogonal import COLUMNS, Case, ResNet8, compressed, orthogonal, tuned

pytestmark = pytest.mark.usefixtures("one_thread")


def test_two_ways_to_as_many_parameters() -> None:
    torch.manual_seed(0)
    labels = torch.randint(10, (80,))
    images = torch.randn(80, 3, 32, 32)
    case = Case(
        build=ResNet8,
        hidden=("*conv*",),
        images=images,
        labels=labels,
        test=images[:20],
        test_labels=labels[:20],
        augment="flip",
    )
    model = ResNet8().eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 75290  # 464 + 4672 + 13952 + 55552 + 650
    how = {"rate": 1e-3, "batch": 20, "seed": 0}
    row, params = orthogonal(case, model, "soft:1", 1, {**how, "rule": "evbmf:weakening=0.5"})
    dense = tuned(case, model, 0.75, how)
    other = compressed(case, dense, params, 1, 0.0, how)
    assert row["params"] == params
    assert 0.9 * params < other["params"] <= params
    assert set(COLUMNS) <= {*row, "network", "seed", "epochs"}
    assert all(math.isfinite(value) for value in (*row.values(), *other.values()) if isinstance(value, float))
