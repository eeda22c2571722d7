"""Counts of dense and compressed networks."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from torch import nn

from rankwise.artifact import save
from rankwise.evaluate import Size, size
from rankwise.formats import FORMATS
from rankwise.network.replacing import replace


def test_counts_of_a_small_network() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4))
    # the running statistics are two more vectors of 4 floats, and a counter of 8 bytes
    assert size(model) == Size(params=36 + 8, macs=None, bytes=4 * (36 + 8 + 8) + 8)
    assert size(model, torch.zeros(3, 8)).macs == 3 * 32


def test_tied_tensors_count_once() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    model[1].weight = model[0].weight
    assert size(model) == Size(params=40, macs=None, bytes=160)


def test_half_precision_halves_the_bytes() -> None:
    model = nn.Linear(8, 4)
    assert size(model).bytes == 2 * size(model.half()).bytes


def test_bytes_are_those_of_the_artifact(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8))
    before = size(model, torch.zeros(1, 4, 6, 6))
    replace(model, ["0"], FORMATS["svd"].build(model[0], (2,), True))
    after = size(model, torch.zeros(1, 4, 6, 6))
    assert after.params == before.params - 8 * 36 + 2 * (36 + 8)
    assert after.macs == 16 * 2 * (36 + 8)
    content = (save(model, tmp_path / "out") / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert json.loads(content[8 : 8 + length])
    assert len(content) - 8 - length == after.bytes
