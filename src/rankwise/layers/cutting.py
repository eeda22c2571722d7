"""Layers that are the leading part of others and share their memory."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import nn

from .kinds import is_transposed, site_kind
from .modules import TransposedLinear

L = TypeVar("L", bound=nn.Module)


def cut(layer: L, *, inputs: int | None = None, outputs: int | None = None) -> L:
    """The layer with only its first inputs or outputs; its Parameters are views of the whole layer's.

    Args:
        layer: a linear layer, an ungrouped convolution, or an embedding (its outputs are the numbers of a row).
        inputs, outputs: how many to keep; None for all. Only a layer without bias can lose outputs.

    Example:
        >>> whole = nn.Linear(4, 3, bias=False)
        >>> part = cut(whole, outputs=2)
        >>> part.weight.shape, part.weight.data_ptr() == whole.weight.data_ptr()
        (torch.Size([2, 4]), True)
    """
    part: Any = copy.copy(layer)
    part.__dict__ = {**layer.__dict__, "_parameters": dict(layer._parameters)}
    kind = site_kind(layer)
    inputs_first = isinstance(layer, TransposedLinear) or kind in ("conv1d_hf", "embedding") or is_transposed(kind)
    weight = part.weight
    for size, axis, names in (
        (inputs, 0 if inputs_first else 1, ("in_features", "in_channels")),
        (outputs, 1 if inputs_first else 0, ("out_features", "out_channels", "embedding_dim")),
    ):
        if size is None:
            continue
        weight = weight.detach().narrow(axis, 0, size)
        for name in names:
            if hasattr(part, name):
                setattr(part, name, size)
    part.weight = nn.Parameter(weight, requires_grad=part.weight.requires_grad)
    return part
