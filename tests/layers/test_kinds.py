"""Kinds of layers, and the layouts that they store their weights in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rankwise.formats.weights import read, write
from rankwise.layers.kinds import LAYERS as KINDS
from rankwise.layers.kinds import is_convolution, output_first, site_kind, spatial_dims


def hf() -> nn.Module:
    return pytest.importorskip("transformers.pytorch_utils").Conv1D(6, 4)


LAYERS: dict[str, Any] = {
    "linear": (lambda: nn.Linear(4, 6), 0, (6, 4)),
    "conv1d_hf": (hf, 0, (6, 4)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, groups=2), 1, (6, 2, 3)),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2)), 2, (6, 4, 3, 2)),
    "conv3d": (lambda: nn.Conv3d(4, 6, (1, 2, 3), groups=2), 3, (6, 2, 1, 2, 3)),
    "embedding": (lambda: nn.Embedding(4, 6), 0, (6, 4)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(4, 6, 3), 1, (6, 4, 3)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 6, (3, 2), groups=2), 2, (6, 2, 3, 2)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(4, 6, (1, 2, 3), groups=2), 3, (6, 2, 1, 2, 3)),
}


def test_every_kind_is_here() -> None:
    assert set(LAYERS) == set(KINDS)
    for layer in (nn.ReLU(), nn.LSTM(2, 2), nn.Bilinear(2, 2, 2), nn.Sequential()):
        assert site_kind(layer) is None
        assert spatial_dims(layer) == 0


@pytest.mark.parametrize("kind", LAYERS)
def test_a_kind(kind: str) -> None:
    build, dims, shape = LAYERS[kind]
    layer = build()
    assert (site_kind(layer), spatial_dims(layer), is_convolution(kind)) == (kind, dims, dims > 0)
    assert read(layer).shape == shape
    groups = getattr(layer, "groups", 1)
    assert torch.equal(output_first(kind, output_first(kind, layer.weight, groups), groups), layer.weight)


@pytest.mark.parametrize("kind", LAYERS)
def test_write_is_the_inverse_of_read(kind: str) -> None:
    layer, other = LAYERS[kind][0](), LAYERS[kind][0]()
    with torch.no_grad():
        write(other, read(layer).flatten())
    assert torch.equal(other.weight, layer.weight)
    read(layer).square().sum().backward()
    assert torch.equal(layer.weight.grad, 2 * layer.weight)
