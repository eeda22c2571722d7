"""Files in 16 and 8 bits: how far the outputs go, and what an engine does not have."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankwise import export
from rankwise.export.runners import runner
from rankwise.formats import FORMATS
from rankwise.network.replacing import replace

WRITERS: dict[str, Callable[..., Path]] = {
    "onnx": export.onnx,
    "executorch": export.executorch,
    "pt2": export.pt2,
}
PACKAGES = {"onnx": "onnxruntime", "executorch": "executorch", "pt2": "torch"}
SUFFIXES = {"onnx": ".onnx", "executorch": ".pte", "pt2": ".pt2"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3), keepdim=True).flatten(1))


def need(engine: str) -> None:
    pytest.importorskip(PACKAGES[engine], reason=f"the extra [{engine}] is not installed")


def compressed() -> nn.Module:
    torch.manual_seed(0)
    model = Net().eval()
    for name, format, ranks in (("conv", "tucker2", (8, 3)), ("head", "svd", (8,))):
        replace(model, [name], FORMATS[format].build(model.get_submodule(name), ranks, True))
    return model


def images(samples: int) -> Tensor:
    return torch.randn(samples, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "engine, dtype, least, most",
    [
        ("onnx", "fp16", 1e-5, 1e-2),
        ("onnx", "int8", 1e-3, 0.2),
        ("onnx", "int8-dynamic", 1e-4, 0.1),
        ("executorch", "fp16", 1e-5, 1e-2),
        # Quantised by the same code as the ranges below, and 12 s long.
        pytest.param("executorch", "int8", 1e-3, 0.2, marks=pytest.mark.slow),
        ("executorch", "int8-dynamic", 1e-4, 0.1),
        ("pt2", "fp16", 1e-5, 1e-2),
        ("pt2", "bf16", 1e-4, 0.1),
    ],
)
def test_every_type(
    engine: str, dtype: str, least: float, most: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    need(engine)
    model, name = compressed(), f"net{SUFFIXES[engine]}"
    calibration = [images(5), images(3)] if dtype == "int8" else None
    with caplog.at_level(logging.INFO, "rankwise"):
        path = WRITERS[engine](model, images(2), tmp_path / name, dtype=dtype, calibration=calibration)
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert f"in {dtype}: outputs are off by up to " in caplog.text
    with torch.no_grad():
        exact = model(images(2))
    (made,) = runner(path, threads=1)(((images(2),), {}))
    assert made.dtype == torch.float32
    off = (made - exact).abs().max() / exact.abs().max()
    # a file that was not rounded would agree to 1e-6
    assert least < off < most
    if engine != "executorch":
        assert runner(path)(((images(4),), {}))[0].shape == (4, 32)


@pytest.mark.parametrize("engine", ["onnx", "executorch"])
def test_ranges_are_those_of_the_samples(engine: str, tmp_path: Path) -> None:
    need(engine)
    model, path = compressed(), tmp_path / f"net{SUFFIXES[engine]}"
    # samples so small that all others are cut off; the example is no sample
    WRITERS[engine](model, images(2), path, dtype="int8", calibration=[images(4) / 100])
    with torch.no_grad():
        exact = model(images(2)) - model(torch.zeros(2, 3, 16, 16))
    (made,) = runner(path, threads=1)(((images(2),), {}))
    (none,) = runner(path, threads=1)(((torch.zeros(2, 3, 16, 16),), {}))
    assert (made - none).norm() < 0.2 * exact.norm()


@pytest.mark.parametrize(
    "engine, dtype, message",
    [
        ("onnx", "bf16", "dtype is 'bf16'; onnx files can hold fp16, int8, int8-dynamic; pt2 can hold bf16"),
        ("pt2", "int8", "pt2 files can hold fp16, bf16; onnx and executorch can hold int8"),
        ("executorch", "int4", "executorch files can hold fp16, int8, int8-dynamic; no file can hold int4"),
        ("onnx", "int8", "needs samples: give calibration, a few hundred inputs .* or take int8-dynamic"),
        ("executorch", "int8", "needs samples: give calibration"),
    ],
)
def test_what_an_engine_does_not_have(engine: str, dtype: str, message: str, tmp_path: Path) -> None:
    need(engine)
    with pytest.raises(ValueError, match=message):
        WRITERS[engine](compressed(), images(2), tmp_path / "net", dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_go_together(tmp_path: Path) -> None:
    need("onnx")
    for kind, message in (
        ({"calibration": [images(2)]}, "calibration is given without a dtype"),
        ({"dtype": "fp16"}, r"is torch.float16 already; export model\.float\(\)"),
    ):
        options: dict[str, Any] = kind
        model = compressed().half() if "dtype" in options else compressed()
        with pytest.raises(ValueError, match=message):
            export.onnx(model, images(2), tmp_path / "net.onnx", **options)
    with pytest.raises(ValueError, match="int8-dynamic rounds linear layers, and this network has none"):
        export.onnx(nn.Conv2d(3, 4, 3), images(2), tmp_path / "net.onnx", dtype="int8-dynamic")
    assert list(tmp_path.iterdir()) == []


def test_a_range_that_is_too_small(tmp_path: Path) -> None:
    model = nn.Linear(4, 4)
    nn.init.constant_(model.weight, 60_000.0)
    with pytest.raises(ValueError, match="in fp16 outputs are not finite: its range is too small"):
        export.pt2(model, torch.ones(2, 4), tmp_path / "net.pt2", dtype="fp16", tolerance=1.0)
    assert list(tmp_path.iterdir()) == []
