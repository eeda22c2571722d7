"""Forecasts: more work never takes less, and each part is there only if it is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rankwise import find
from rankwise.describe import forecast
from rankwise.describe.forecast import Forecast, Probe, compression, training

KINDS: dict[str, Any] = {
    "samples": 64, "tested": 64, "batch": 8, "positions": "auto", "sequential": True, "builds": 1, "engines": 1,
}  # fmt: skip


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A network on a machine whose speed is known."""
    monkeypatch.setattr(Probe, "of", lambda model, batch: Probe(forward=1.0, product=1e9, decomposition=0.1))
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))


def made(network: nn.Module, **changed: Any) -> Forecast:
    batches = [torch.randn(8, 32)]
    return compression(network, find(network, batches[0]), batches, **{**KINDS, **changed})


def test_the_parts_follow_from_the_probe(network: nn.Module) -> None:
    found = made(network)
    assert (found.sites, found.free) == (2, 2)
    assert found.seconds["collect statistics"] == pytest.approx(8.0, abs=0.01)  # 8 batches, a second each
    assert found.seconds["judge"] == 24.0
    assert found.seconds["measure times"] == forecast.ENGINE_SECONDS
    assert found.disk >= 4 * (32 * 64 + 64 + 64 * 8 + 8)
    assert found.memory > 0
    assert found.total == sum(found.seconds.values())


@pytest.mark.parametrize("more", [{"samples": 128}, {"tested": 128}, {"builds": 3}, {"engines": 2}])
def test_more_takes_longer(network: nn.Module, more: dict[str, int]) -> None:
    assert made(network, **more).total > made(network).total


def test_nothing_is_built_for_a_plan(network: nn.Module) -> None:
    assert made(network, builds=0).seconds.keys() == {"collect statistics", "choose formats and ranks"}


def test_a_training_is_counted_in_steps(network: nn.Module) -> None:
    assert training(network, [torch.randn(8, 32)], samples=20, batch=8, epochs=2) == 3 * forecast.BACKWARD * 2


def test_the_probe_measures() -> None:
    probe = Probe.of(nn.Linear(4, 4), torch.randn(2, 4))
    assert min(probe.forward, probe.product, probe.decomposition) > 0
