"""Engines by name; each runs a layer and its chain, and says how to get one that is missing."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankwise import export
from rankwise.formats import FORMATS
from rankwise.latency import Work, get_engine
from rankwise.latency.layers import randomised

HAS_EXECUTORCH = find_spec("executorch") is not None and hasattr(export, "executorch")


@pytest.mark.parametrize(
    "engine",
    [
        "torch",
        "onnxruntime",
        pytest.param("compile", marks=pytest.mark.slow),
        pytest.param(
            "executorch",
            marks=[pytest.mark.slow, pytest.mark.skipif(not HAS_EXECUTORCH, reason="ExecuTorch is not installed")],
        ),
    ],
)
def test_layers_run(engine: str) -> None:
    layer, x = nn.Conv2d(4, 4, 3), torch.randn(1, 4, 6, 6)
    chain = randomised(FORMATS["svd"].build(layer, (2,), True))
    works = {name: Work(module.eval(), ((x,), {})) for name, module in {"dense": layer, "svd": chain}.items()}
    before = torch.get_num_threads()
    times = get_engine(engine).times(works, rounds=3, warmup=1, around=1 << 10)
    assert all(0 < time.low <= time.median <= time.high for time in times.values())
    assert torch.get_num_threads() == before


def test_networks_are_exported(tmp_path: Any) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).eval()
    engine = get_engine("onnxruntime")
    work = Work(network, ((torch.randn(1, 3, 6, 6),), {}))
    engine.hold(work)
    assert engine.times({"net": work}, rounds=2)["net"].median > 0


@pytest.mark.parametrize("name, library", [("onnxruntime", "onnxruntime"), ("executorch", "executorch")])
def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch, name: str, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"engine '{name}' needs {library}: pip install 'rankwise\[\w+\]'"):
        get_engine(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_no_graphics_card() -> None:
    with pytest.raises(ValueError, match="engine 'cuda' needs a CUDA device"):
        get_engine("cuda")


def test_unknown() -> None:
    with pytest.raises(ValueError, match=r"unknown engine 'abacus'; the engines are torch, .*, roofline:FILE.yaml"):
        get_engine("abacus")
    with pytest.raises(ValueError, match="threads is 0"):
        get_engine("torch", threads=0)
    with pytest.raises(ValueError, match="threads=4 has no effect on engine 'torch, 2 threads'"):
        get_engine(get_engine("torch", threads=2), threads=4)


class Odd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[: int(x.sum())]  # its size depends on values


def test_a_layer_that_an_engine_cannot_run_is_named() -> None:
    with pytest.raises(ValueError, match=r"layer 'head.odd' as svd 4: torch.export cannot capture Odd"):
        get_engine("onnxruntime").times(
            {"odd @ 1: svd 4": Work(Odd(), ((torch.ones(3),), {}))}, layers={"odd @ 1: svd 4": "head.odd"}
        )
