"""Build and fill the chain of a dense layer: what all formats share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..layers.low_rank import ChainFormat, LowRank, LowRankLayer, Ranks
from ..layers.modules import Stacked

# Memory format with the channels last, by the number of dimensions of the tensor.
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def chain_of(format: ChainFormat, ranks: Ranks, layers: Sequence[nn.Module], like: nn.Module) -> LowRank:
    """A chain with the memory format and flags of the dense layer that it replaces.

    Args:
        format, ranks: of the chain.
        layers: in their order.
        like: the dense layer. Weights require gradients if its weight does, the bias if its bias does.
    """
    chain, weight = LowRankLayer(format, ranks, layers, like), like.weight
    assert isinstance(weight, Tensor)
    layout = CHANNELS_LAST.get(weight.dim())
    if layout is not None and weight.is_contiguous(memory_format=layout) and not weight.is_contiguous():
        chain.to(memory_format=layout)  # type: ignore[call-overload]
    chain.train(like.training)
    bias = getattr(like, "bias", None)
    trained = any(parameter.requires_grad for parameter in like.parameters() if parameter is not bias)
    moved = bias.requires_grad if isinstance(bias, nn.Parameter) else trained
    for name, parameter in chain.named_parameters():
        parameter.requires_grad_(moved if name.rpartition(".")[2] == "bias" else trained)
    return chain


def same_tensor_options(layer: nn.Module) -> dict[str, Any]:
    """dtype and device for the layers of a chain."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return {"dtype": weight.dtype, "device": weight.device}


def layers_in(chain: LowRank) -> list[Any]:
    """The layers of a chain, untyped: each format knows what it built."""
    return list(chain)


def set_bias(layer: nn.Module, bias: Tensor | None) -> None:
    """Copy a bias into the last layer of a chain; both or neither must be there."""
    if isinstance(layer, Stacked):
        sizes = [part.out_features for part in layer if isinstance(part, nn.Linear)]
        for part, values in zip(layer, [None] * len(layer) if bias is None else bias.split(sizes), strict=True):
            set_bias(part, values)
        return
    own = getattr(layer, "bias", None)
    if bias is None:
        assert own is None
        return
    assert isinstance(own, Tensor)
    own.copy_(bias)
