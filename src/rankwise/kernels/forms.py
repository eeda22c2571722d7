"""Other forms of a layer that compute the same and may be faster, for running only.

`inputs first` (Linear, CPU): the weight is stored by columns. For few samples, a product with a weight of short rows
spends its time adding up within vector registers; by columns it adds whole vectors.

`packed` (Conv2d, CPU): oneDNN computes in a blocked layout. Plain torch converts the weight in every call, which takes
longer than the convolution for small pictures with many channels; here it is done once.

`product` (1 x 1 Conv2d, CPU, channels last): a matrix product of the pixels, which are rows in memory already.

`fused` (pair of Linear, CUDA): one kernel that keeps the middle on chip (`low_rank_linear`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..formats import LowRank
from ..latency.layers import Input
from .linear import low_rank_linear, why_plain

AS_IT_IS = "as it is"


class PackedConv2d(nn.Module):
    """A convolution with its weight in oneDNN's own layout, for inputs of one size."""

    def __init__(self, layer: nn.Conv2d, shape: tuple[int, ...]) -> None:
        super().__init__()
        place: Any = (layer.padding, layer.stride, layer.dilation, layer.groups)
        # As torch.utils.mkldnn does it; the tensor is opaque, so it cannot be a buffer.
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
        self.packed = reorder(layer.weight.detach().to_mkldnn(), *place, shape)
        self.bias, self.place = layer.bias, place

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            input, self.packed, self.bias, *self.place, "none", [], ""
        )
        return result


class PixelProduct(nn.Module):
    """A 1 x 1 convolution as a product of pixels and weight; the output has its channels last."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(layer.weight.detach().flatten(1).contiguous(), requires_grad=False)
        self.bias = layer.bias

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


class FusedLowRank(nn.Module):
    """A pair of linear layers as one kernel."""

    def __init__(self, chain: LowRank) -> None:
        super().__init__()
        first, last = chain
        self.first, self.last = cast(nn.Linear, first), cast(nn.Linear, last)

    def forward(self, input: Tensor) -> Tensor:
        return low_rank_linear(input, self.first.weight, self.last.weight, self.last.bias)


def inputs_first(layer: nn.Linear) -> nn.Linear:
    """The same layer with its weight stored by columns."""
    weight = layer.weight.detach()
    result = nn.Linear(layer.in_features, layer.out_features, device="meta")
    result.weight = nn.Parameter(weight.mT.contiguous().mT, requires_grad=False)
    result.bias = layer.bias
    return result


def forms_of(layer: nn.Module, given: Input) -> dict[str, Callable[[], nn.Module]]:
    """The forms that a layer can have for an input, each as a function that makes it."""
    weight = next(layer.parameters())
    if weight.device.type == "cuda" and is_pair(layer):
        chain: Any = layer
        x = torch.empty(0, given.shape[-1], device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            reason = why_plain(x, chain[0].weight, chain[1].weight, chain[1].bias)
        return {"fused": lambda: FusedLowRank(chain)} if reason is None else {}
    if weight.device.type != "cpu":
        return {}
    if type(layer) is nn.Linear:
        return {"inputs first": lambda: inputs_first(layer)}
    forms: dict[str, Callable[[], nn.Module]] = {}
    if type(layer) is nn.Conv2d and len(given.shape) == 4:
        if packable(layer):
            forms["packed"] = lambda: PackedConv2d(layer, given.shape)
        if given.channels_last and is_product(layer):
            forms["product"] = lambda: PixelProduct(layer)
    return forms


def is_pair(layer: nn.Module) -> bool:
    """Whether a layer is a chain of two linear layers."""
    return isinstance(layer, LowRank) and [type(part) for part in layer] == [nn.Linear, nn.Linear]


def packable(layer: nn.Conv2d) -> bool:
    """Whether oneDNN is available and takes the layer."""
    plain = isinstance(layer.padding, tuple) and layer.padding_mode == "zeros"
    return plain and layer.weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def is_product(layer: nn.Conv2d) -> bool:
    """Whether a convolution is a product of each pixel with the weight."""
    alone = layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.padding in ((0, 0), "same", "valid")
    return alone and layer.groups == 1
