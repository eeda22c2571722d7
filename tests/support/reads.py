"""How often the host reads a number of a tensor: on a device, each time it waits for everything before."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.equal.default, torch.ops.aten.nonzero.default)


class Reads(TorchDispatchMode):
    """Counts reads while it is entered: conversions to numbers and truth values, comparisons, boolean indices."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and compute as usual."""
        self.count += func in _READS
        return func(*args, **(kwargs or {}))
