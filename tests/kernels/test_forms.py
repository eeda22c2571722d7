"""Forms of layers: each computes what the layer does, and is offered where it can."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rankwise.formats import FORMATS
from rankwise.kernels.forms import FusedLowRank, forms_of, inputs_first, is_pair
from rankwise.latency.layers import Input


def picture(*shape: int, last: bool) -> torch.Tensor:
    x = torch.randn(shape)
    return x.contiguous(memory_format=torch.channels_last) if last else x


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 12, 1),
        nn.Conv2d(8, 12, 1, bias=False, padding="same"),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.Conv2d(8, 12, (3, 1), stride=(2, 1), padding=(1, 0), bias=False),
        nn.Conv2d(8, 12, 3, dilation=2, groups=4),
    ],
    ids=str,
)
def test_every_form_of_a_convolution_computes_the_same(layer: nn.Conv2d, last: bool) -> None:
    x = picture(2, 8, 9, 7, last=last)
    forms = forms_of(layer, Input.of(x))
    with torch.no_grad():
        for name, make in forms.items():
            assert torch.allclose(make()(x), layer(x), atol=1e-5), name
    pointwise = layer.kernel_size == (1, 1)
    assert ("product" in forms) == (last and pointwise)
    assert ("packed" in forms) == (torch.backends.mkldnn.is_available() and not isinstance(layer.padding, str))


def test_a_packed_weight_serves_other_sizes() -> None:
    layer = nn.Conv2d(16, 16, 3, padding=1)
    forms = forms_of(layer, Input.of(torch.randn(1, 16, 8, 8)))
    if "packed" not in forms:
        pytest.skip("this build of torch has no oneDNN")
    x = torch.randn(3, 16, 20, 11)
    with torch.no_grad():
        assert torch.allclose(forms["packed"]()(x), layer(x), atol=1e-5)


def test_the_weight_of_a_linear_layer_by_columns() -> None:
    layer = nn.Linear(20, 6)
    turned = inputs_first(layer)
    assert turned.weight.stride() == (1, 6)
    assert torch.equal(turned.weight, layer.weight)
    x = torch.randn(3, 20)
    assert torch.allclose(turned(x), layer(x), atol=1e-6)
    assert list(forms_of(layer, Input.of(x))) == ["inputs first"]


def test_a_fused_pair_computes_its_chain() -> None:
    chain = FORMATS["svd"].build(nn.Linear(20, 6), (3,), True)
    assert is_pair(chain)
    x = torch.randn(2, 5, 20)
    assert torch.allclose(FusedLowRank(chain)(x), chain(x), atol=1e-6)


def test_what_has_one_form_only() -> None:
    x = torch.randn(1, 8, 5, 5)
    circular = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
    assert not forms_of(circular, Input.of(x))
    assert not forms_of(nn.Conv2d(8, 8, 3).double(), Input.of(x))
    assert not forms_of(nn.ConvTranspose2d(8, 8, 3), Input.of(x))
    assert not is_pair(FORMATS["svd"].build(nn.Conv2d(8, 8, 1), (3,), True))
