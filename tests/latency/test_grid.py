"""What an engine computes at once: told from times, stored once, and turned into steps between ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.machine import store_grid
from torch import nn

import rankwise as rw
from rankwise.formats.ladders import Step, proportional, steps
from rankwise.latency import Latency, Work, at_hand, get_engine
from rankwise.latency.grid import RANKS, Grid, block_of, grid_of
from rankwise.latency.roofline import Device, RooflineEngine
from rankwise.network.site import Site


def times(block: int, noise: float = 0.0) -> dict[int, Latency]:
    found = {}
    for place, rank in enumerate(RANKS):
        seconds = -(-rank // block) * block * (1 + noise * (-1) ** place)
        found[rank] = Latency(median=seconds, low=seconds, high=seconds)
    return found


@pytest.mark.parametrize("block", [4, 8, 16, 32])
@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_the_block_is_told_from_times(block: int, noise: float) -> None:
    assert block_of(times(block, noise)) == block


def test_time_that_grows_with_every_rank() -> None:
    assert block_of(times(1)) == 4


@pytest.mark.parametrize("tile", [4, 8, 16])
def test_it_is_measured_once(tile: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path))
    asked: list[str] = []

    class Counting(RooflineEngine):
        def times(self, works: Mapping[str, Work], **options: Any) -> dict[str, Latency]:
            asked.extend(works)
            return super().times(works, **options)

    engine = Counting(Device(name="paper", peak=1e9, bandwidth=1e14, tile=tile))
    assert grid_of(engine, nn.Linear(2, 2)).convolution == tile
    assert len(asked) == len(set(asked)) == 2 * len(RANKS)
    assert grid_of(engine, nn.Linear(2, 2)) == grid_of(engine, nn.Linear(4, 4))
    assert len(asked) == 2 * len(RANKS)


def conv(outputs: int, channels: int, groups: int = 1) -> Site:
    shape = (outputs, channels // groups, 3, 3)
    return Site(name="conv", kind="conv2d", weight_shape=shape, groups=groups)


@pytest.mark.parametrize(
    "site, fine, block",
    [
        (conv(16, 16), 4, 4),
        (conv(16, 3), 1, 1),  # the first layer of a network
        (conv(32, 64), 8, 8),
        (conv(64, 64), 8, 8),
        (conv(128, 256), 8, 16),
        (conv(512, 512), 8, 16),
        (conv(64, 64, groups=8), 2, 2),
        (Site(name="fc", kind="linear", weight_shape=(512, 512)), 4, 8),
        (Site(name="fc", kind="linear", weight_shape=(10, 64)), 1, 1),
    ],
)
def test_narrow_layers_have_finer_steps(site: Site, fine: int, block: int) -> None:
    step = Grid(convolution=16, linear=4).step(site)
    assert (int(step), step.block) == (fine, block)


def test_ladders_are_fine_below_a_block() -> None:
    assert steps(64, Step(4, block=16)) == [1, 2, 4, 8, 12, 16, 32, 48, 64]
    assert steps(3, Step(4, block=16)) == [1, 2, 3]
    assert steps(64, 16) == [16, 32, 48, 64]
    assert all(rank % 16 == 0 or rank <= 16 for ranks in proportional((128, 64), Step(8, block=16)) for rank in ranks)


def test_the_engine_at_hand() -> None:
    assert at_hand(nn.Linear(2, 2)) in ("onnxruntime", "torch")
    assert at_hand(nn.Linear(2, 2, device="meta")) == "torch"


def test_plans_differ_by_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same budget in engines that compute 4 and 32 channels at once."""
    model = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1)).eval()
    import torch

    sites = rw.find(model, torch.randn(1, 256, 4, 4))
    ranks = {}
    for block in (4, 32):
        monkeypatch.setenv("RANKWISE_CACHE", str(tmp_path / str(block)))
        store_grid(block)
        plan = rw.choose(model, sites, keep={"macs": 0.37}, metric="weight", engine="torch")
        ranks[block] = [rank for row in plan.factorised for rank in row.ranks]
    assert all(rank % 32 == 0 for rank in ranks[32])
    assert any(rank % 32 for rank in ranks[4])
    assert str(get_engine("torch")) == "torch, 1 thread"
