"""Exports, folding and coded storage from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

NETS = """
import torch
from torch import nn


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    )
"""
COMPRESS = (
    "compress",
    "nets.py:build",
    "data.npz",
    "--keep",
    "macs=0.5",
    "--engine",
    "none",
    "--engines",
    "none",
    "-o",
    "out",
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    np.savez("data.npz", images=images)
    return tmp_path


def read(path: str) -> Any:
    return json.loads(Path(path).read_text())


@pytest.mark.parametrize("storage", ["entropy", "int8+entropy"])
def test_a_folded_network_in_coded_storage(folder: Path, cli: Callable[..., Any], storage: str) -> None:
    result = cli(*COMPRESS, "--fold", "--storage", storage, "--json", "c.json")
    assert result.exit_code == 0, result.output
    manifest = read("out/rankwise.json")
    assert manifest["folds"] == {"1": "0", "5": "4"}
    assert manifest["storage"] == storage
    assert result.output.count("bytes of tensors became") == 1
    assert ("largest relative error" in result.output) == (storage == "int8+entropy")
    # the artifact folds the fresh network by itself, and is the network that was measured
    result = cli("evaluate", "nets.py:build", "data.npz", "--artifact", "out", "--engines", "none", "--json", "e.json")
    assert result.exit_code == 0, result.output
    keys = ("params", "macs", "agreement")
    measured = [read(name)["figures"]["compressed"] for name in ("c.json", "e.json")]
    assert [measured[0][key] for key in keys] == [measured[1][key] for key in keys]
    result = cli("apply", "nets.py:build", "out/plan.yaml", "data.npz", "--fold", "--engines", "none", "-o", "again")
    assert result.exit_code == 0, result.output
    assert read("again/rankwise.json")["folds"] == manifest["folds"]


@pytest.mark.long
def test_every_target(folder: Path, cli: Callable[..., Any]) -> None:
    pytest.importorskip("onnxruntime")
    assert cli(*COMPRESS).exit_code == 0
    base = ("export", "nets.py:build", "--artifact", "out", "--json", "e.json", "-o")
    for name, options in (
        ("net.onnx", ("--opset", "20", "--fold")),
        ("net.pt2", ("--dtype", "bf16")),
        ("net.onnx", ("--dtype", "int8", "--calibration", "data.npz", "--samples", "8")),
        ("net.bin", ("--to", "pt2", "--fixed-batch")),
    ):
        result = cli(*base, name, *options)
        assert result.exit_code == 0, result.output
        document = read("e.json")
        assert [row["network"] for row in document["rows"]] == ["dense", "compressed"]
        assert document["bytes"] == Path(name).stat().st_size == document["rows"][1]["bytes"]
        assert all(row["milliseconds"] > 0 for row in document["rows"])
        assert ("outputs are off by up to" in result.output) == ("--dtype" in options)
    fixed = torch.export.load("net.bin").module()
    assert fixed(torch.randn(1, 3, 8, 8)).shape == (1, 5)


@pytest.mark.long
def test_executorch(folder: Path, cli: Callable[..., Any]) -> None:
    pytest.importorskip("executorch", reason="the extra [executorch] is not installed")
    result = cli("export", "nets.py:build", "--input-shape", "3,8,8", "--fold", "-o", "net.pte")
    assert result.exit_code == 0, result.output
    assert "XNNPACK runs" in result.output
    assert "net.pte: executorch, " in result.output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("-o", "net.bin"), "belongs to no target: take one of .onnx (onnx), .pte (executorch)"),
        (("-o", "net.onnx", "--to", "tflite"), "there is no target 'tflite'; the targets are onnx, executorch, pt2"),
        (("-o", "net.pt2", "--opset", "18"), "--opset 18 is for onnx"),
        (("-o", "net.pt2", "--dtype", "int8"), "pt2 files can hold fp16, bf16"),
        (("-o", "net.onnx", "--dtype", "int8"), "give calibration, a few hundred inputs"),
    ],
)
def test_what_is_refused(folder: Path, cli: Callable[..., Any], arguments: tuple[str, ...], message: str) -> None:
    result = cli("export", "nets.py:build", "--input-shape", "3,8,8", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert [each.name for each in folder.glob("net.*")] == []
    result = cli(*COMPRESS, "--storage", "zip")
    assert result.exit_code == 2
    assert "--storage 'zip' is not one of plain, entropy, int8+entropy" in result.stderr
