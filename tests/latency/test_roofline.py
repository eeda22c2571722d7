"""A device of four numbers: what operators take follows by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rankwise.latency import Work, get_engine
from rankwise.latency.engine import Engine
from rankwise.latency.roofline import Device, RooflineEngine
from rankwise.latency.roofline_fit import CHANNELS, measured_device

BOUND_BY_MACS = {"peak": 1e6, "bandwidth": 1e15}
BOUND_BY_BYTES = {"peak": 1e15, "bandwidth": 1e6}


def seconds(module: nn.Module, x: torch.Tensor, **numbers: Any) -> float:
    return RooflineEngine(Device(name="paper", **numbers)).times({"a": Work(module.eval(), ((x,), {}))})["a"].median


@pytest.mark.parametrize(
    "module, x, macs",
    [
        (nn.Linear(6, 4), torch.zeros(5, 6), 5 * 6 * 4),
        (nn.Linear(6, 4, bias=False), torch.zeros(2, 5, 6), 10 * 6 * 4),
        (nn.Conv2d(4, 6, 3, padding=1, groups=2), torch.zeros(1, 4, 5, 7), 5 * 7 * 2 * 3 * 2 * 9),
        (nn.ConvTranspose2d(4, 6, 3, stride=2), torch.zeros(1, 4, 5, 5), 25 * 4 * 6 * 9),
        (nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(1, 6), 24 + 8),
    ],
)
def test_multiplications(module: nn.Module, x: torch.Tensor, macs: int) -> None:
    assert seconds(module, x, **BOUND_BY_MACS) == pytest.approx(macs / 1e6)


def test_channels_count_in_tiles() -> None:
    assert seconds(nn.Linear(9, 17), torch.zeros(3, 9), tile=16, **BOUND_BY_MACS) == pytest.approx(3 * 16 * 32 / 1e6)


def test_bytes_and_overhead() -> None:
    moved = 4 * (3 * 6 + 6 * 4 + 4 + 3 * 4)
    assert seconds(nn.Linear(6, 4), torch.zeros(3, 6), **BOUND_BY_BYTES) == pytest.approx(moved / 1e6)
    assert seconds(nn.Linear(6, 4), torch.zeros(3, 6), overhead=2.0, **BOUND_BY_BYTES) == pytest.approx(2 + moved / 1e6)


def test_a_lookup_reads_its_rows_and_not_the_table() -> None:
    moved = 8 * 5 + 2 * 4 * 5 * 16
    assert seconds(nn.Embedding(1000, 16), torch.arange(5), **BOUND_BY_BYTES) == pytest.approx(moved / 1e6)


def test_channels_of_a_depthwise_convolution_are_its_groups() -> None:
    layer = nn.Conv2d(12, 12, 3, padding=1, groups=12)
    assert seconds(layer, torch.zeros(1, 12, 5, 5), tile=8, **BOUND_BY_MACS) == pytest.approx(25 * 16 * 9 / 1e6)


def test_normalisation_and_activations_are_fused() -> None:
    plain, x = nn.Conv2d(4, 4, 3), torch.zeros(1, 4, 6, 6)
    fused = nn.Sequential(plain, nn.BatchNorm2d(4), nn.ReLU())
    numbers = {"overhead": 1.0, **BOUND_BY_BYTES}
    assert seconds(fused, x, **numbers) == seconds(plain, x, **numbers)


def test_attention_is_counted_whatever_path_torch_takes() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    linear = 5 * (8 * 24 + 8 * 8 + 2 * 8 * 16)
    assert seconds(layer, torch.zeros(1, 5, 8), **BOUND_BY_MACS) == pytest.approx((linear + 2 * 25 * 8) / 1e6)


def test_file(tmp_path: Path) -> None:
    device = Device(name="phone", peak=2e10, bandwidth=8e9, tile=8, overhead=3e-6)
    device.save(tmp_path / "phone.yaml")
    engine = get_engine(f"roofline:{tmp_path / 'phone.yaml'}")
    assert isinstance(engine, RooflineEngine)
    assert engine.description == device
    assert (engine.device(nn.Linear(2, 2)), str(engine)) == ("phone", "roofline of phone")


@pytest.mark.parametrize(
    "text, message",
    [
        ("peak: 1e9", "a roofline needs peak .* and bandwidth"),
        ("{peak: 1.0e+9, bandwidth: 1.0e+9, cores: 4}", "may have name, tile .* and overhead"),
        ("{peak: 0, bandwidth: 1.0e+9}", "peak must be a number above 0, not 0"),
        ("{peak: 1.0e+9, bandwidth: fast}", "bandwidth must be a number above 0, not 'fast'"),
        ("{peak: 1.0e+9, bandwidth: 1.0e+9, tile: 2.5}", "tile must be a whole number above 0, not 2.5"),
        ("{peak: 1.0e+9, bandwidth: 1.0e+9, overhead: -1}", "overhead must be a number above 0, not -1"),
    ],
)
def test_files_that_describe_no_device(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "device.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        get_engine(f"roofline:{path}")


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(ValueError, match=r"cannot read the roofline file 'nowhere.yaml'"):
        get_engine("roofline:nowhere.yaml")


def test_a_device_is_found_again_by_its_measurements() -> None:
    """The device that is measured is a roofline itself, so all four numbers are known."""
    device = Device(name="paper", peak=4e10, bandwidth=1e10, tile=8, overhead=5e-6)
    engine: Engine = RooflineEngine(device)
    found = measured_device(engine)
    assert found.tile == 8
    assert found.peak == pytest.approx(device.peak, rel=0.01)
    assert found.bandwidth == pytest.approx(device.bandwidth, rel=0.01)
    assert found.overhead == pytest.approx(device.overhead, rel=0.1)
    assert {count % 8 for count in CHANNELS} == {0, 4}
