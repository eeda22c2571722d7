"""How often the host reads a number of a tensor: on a device, each time it waits for everything before."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default)
_INDEXING = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default)


class Reads(TorchDispatchMode):
    """Counts reads while it is entered: conversions to numbers and truth values, comparisons, masks as indices.

    `nonzero` is not counted: it is for masks that are on the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and compute as usual."""
        masks = args[1] if func in _INDEXING else ()
        self.count += func in _READS or any(isinstance(each, Tensor) and each.dtype == torch.bool for each in masks)
        return func(*args, **(kwargs or {}))
