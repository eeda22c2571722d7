"""How large a network is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..network.find import total_macs
from ..running.guards import refuse_running_copy, unwrap
from ..running.state import numbers_in, stored_bytes
from ..running.verbs import verb


@dataclass(frozen=True, kw_only=True)
class Size:
    """Size of a network.

    Attributes:
        params: parameters; shared memory counts once.
        macs: multiply-accumulates for the example input, None without one.
        bytes: of all tensors of its state dict as stored, tied ones once.
    """

    params: int
    macs: int | None
    bytes: int


@verb
def size(model: nn.Module, example: Any = None) -> Size:
    """Count parameters, multiply-accumulates and bytes of a dense or compressed network.

    Args:
        model: the network.
        example: an input, as for `find`, which says what MACs include; without it MACs are not counted.

    Example:
        >>> import torch
        >>> size(torch.nn.Sequential(torch.nn.Linear(8, 4)), torch.zeros(1, 8))
        Size(params=36, macs=32, bytes=144)
    """
    model = unwrap(model)
    refuse_running_copy(model)
    return Size(
        params=numbers_in(model.parameters()),
        macs=None if example is None else total_macs(model, example),
        bytes=stored_bytes(model),
    )
