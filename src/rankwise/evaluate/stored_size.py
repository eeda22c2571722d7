"""What a network takes on disk: numbers that are not zero, and bytes with those of the indices, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from ..formats import LowRank
from ..running.exclusive import exclusive
from ..running.guards import unwrap
from ..running.state import state_of


@dataclass(frozen=True, kw_only=True)
class LayerStorage:
    """Storage of one factorised layer.

    Attributes:
        name: qualified name.
        format: of the factorisation.
        nonzeros: numbers of its factors and bias that are not zero.
        zeros: stored zeros.
        index_bytes: bytes of its indices.
        bytes: of everything, as stored.
    """

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
        layers: the factorised ones, in their order.
        nonzeros: numbers of the whole network that are not zero, buffers such as running means included.
        index_bytes: bytes of the factorised layers' indices.
        bytes: of everything, as stored; tied tensors once.
    """

    layers: tuple[LayerStorage, ...]
    nonzeros: int
    index_bytes: int
    bytes: int


@exclusive
def storage(model: nn.Module) -> Storage:
    """Count what is stored of a network and of each of its factorised layers.

    Args:
        model: dense or compressed.

    Returns:
        The counts.

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
    """Bytes of a weight as compressed sparse rows: its non-zeros, a column of 4 bytes each, a start of 4 for each row.

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
