"""Storage of a network, layer by layer: numbers that are not zero, and bytes, including those of indices."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..formats import LowRank
from ..running.exclusive import exclusive
from ..running.guards import unwrap
from ..running.state import state_of


@dataclass(frozen=True, kw_only=True)
class LayerStorage:
    """Storage of one factorised layer: counts are of its factors and bias, `bytes` of everything, indices included."""

    name: str
    format: str
    nonzeros: int
    zeros: int
    index_bytes: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Storage of a network.

    Attributes:
        layers: factorised layers, in order.
        nonzeros: numbers in the whole network that are not zero, including buffers such as running means.
        index_bytes: of the indices of factorised layers.
        bytes: of everything, as stored; tied tensors once.
    """

    layers: tuple[LayerStorage, ...]
    nonzeros: int
    index_bytes: int
    bytes: int


@exclusive
def storage(model: nn.Module) -> Storage:
    """Count what a dense or compressed network stores, and each of its factorised layers.

    Raises:
        ValueError: naming a tensor that cannot be stored.

    Example:
        >>> import torch
        >>> storage(nn.Sequential(nn.Linear(8, 4, bias=False), nn.BatchNorm1d(4))).bytes
        200
    """
    model = unwrap(model)
    layers = tuple(_layer(name, part) for name, part in model.named_modules() if isinstance(part, LowRank))
    whole = state_of(model)
    return Storage(
        layers=layers,
        nonzeros=sum(_nonzeros(tensor) for tensor in whole.tensors.values()),
        index_bytes=sum(layer.index_bytes for layer in layers),
        bytes=whole.bytes,
    )


def sparse_bytes(weight: Tensor) -> int:
    """Bytes of a weight as compressed sparse rows: non-zeros, a column of 4 bytes each, and 4 bytes to start each row.

    Example:
        >>> import torch
        >>> sparse_bytes(torch.eye(10))
        124
    """
    nonzeros = int(weight.count_nonzero())
    return nonzeros * (weight.element_size() + 4) + 4 * (len(weight) + 1)


def _layer(name: str, chain: LowRank) -> LayerStorage:
    tensors = state_of(chain).tensors.values()
    numbers = [tensor for tensor in tensors if tensor.is_floating_point()]
    nonzeros, bytes_ = sum(map(_nonzeros, numbers)), [tensor.numel() * tensor.element_size() for tensor in numbers]
    index_bytes = state_of(chain).bytes - sum(bytes_)
    return LayerStorage(
        name=name,
        format=chain.format.name,
        nonzeros=nonzeros,
        zeros=sum(tensor.numel() for tensor in numbers) - nonzeros,
        index_bytes=index_bytes,
        bytes=index_bytes + sum(bytes_),
    )


def _nonzeros(tensor: Tensor) -> int:
    return int(tensor.count_nonzero()) if tensor.is_floating_point() else 0
