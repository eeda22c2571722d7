"""Layers written as ONNX by hand compute in onnxruntime what they compute in torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rankwise.export.check import session
from rankwise.formats import FORMATS, LowRank
from rankwise.latency.layers import randomised
from rankwise.latency.onnx_chain import chain_file
from rankwise.layers.modules import Arrange, Bias, TransposedLinear

LAYERS = {
    "linear, two dimensions": (nn.Linear(6, 4), torch.randn(3, 6)),
    "linear, three": (nn.Linear(6, 4), torch.randn(2, 3, 6)),
    "linear without bias": (nn.Linear(6, 4, bias=False), torch.randn(2, 3, 6)),
    "transposed linear": (TransposedLinear(6, 4), torch.randn(2, 6)),
    "conv1d": (nn.Conv1d(4, 6, 3, padding=1), torch.randn(2, 4, 9)),
    "conv2d": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), torch.randn(2, 4, 9, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, bias=False), torch.randn(1, 4, 7, 7)),
    "same": (nn.Conv2d(4, 6, 4, padding="same", dilation=2), torch.randn(1, 4, 9, 9)),
    "valid": (nn.Conv2d(4, 6, 3, padding="valid"), torch.randn(1, 4, 9, 9)),
    "conv3d": (nn.Conv3d(2, 3, 3, padding=1), torch.randn(1, 2, 5, 4, 3)),
    "transposed convolution": (
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        torch.randn(1, 4, 5, 5),
    ),
    "embedding": (nn.Embedding(9, 4), torch.randint(9, (2, 5))),
    "bias": (Bias(4, 2), torch.randn(2, 4, 3, 3)),
    "arrange channels": (Arrange((2, 3), (1, 0), (0, 0), 2), torch.randn(2, 6, 4, 5)),
    "arrange features into rows": (Arrange((2, 3), (1, 0), (0, 1), 0), torch.randn(4, 6)),
    "half": (nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)).double(), torch.randn(2, 6).double()),
}


def agrees(module: nn.Module, x: Tensor) -> None:
    written = chain_file(randomised(module).eval(), x)
    assert written is not None
    (y,) = session(written, 1).run(None, {"x": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(y), module(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str) -> None:
    agrees(*LAYERS[name])


@pytest.mark.parametrize("format", ["svd", "spatial_svd", "tucker2", "cp", "cp3", "tt", "tucker", "btd"])
def test_chains(format: str) -> None:
    layer, x = nn.Conv2d(8, 8, 3, padding=1), torch.randn(1, 8, 6, 6)
    ranks = {"tucker2": (3, 2), "tt": (2, 3, 2), "tucker": (3, 2, 2, 2), "btd": (2, 2, 2)}
    chain = FORMATS[format].build(layer, ranks.get(format, (3,)), True)
    assert isinstance(chain, LowRank)
    agrees(chain, x)


class Twice(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x))


@pytest.mark.parametrize(
    "module",
    [
        nn.LSTM(4, 4),
        nn.Sequential(nn.Linear(4, 4), nn.ReLU()),
        Twice(nn.Linear(4, 4)),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    ],
)
def test_what_an_exporter_has_to_look_into(module: nn.Module) -> None:
    assert chain_file(module, torch.randn(2, 4)) is None


def test_kernels_that_wrap_around_are_left_to_an_exporter() -> None:
    assert chain_file(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), torch.randn(1, 2, 4, 4)) is None
