"""Count how often each of the V rows of an embedding is looked up."""

from __future__ import annotations

import torch
from torch import Tensor

from .moments import Moments


class Lookups:
    """Counts indices batch by batch; their moments are those of one-hot inputs.

    Attributes:
        count: indices so far.
        seen_V: how often each occurred, None before the first.

    Example:
        >>> lookups = Lookups(4)
        >>> lookups.update(torch.tensor([[1, 3], [1, 1]]))
        >>> lookups.moments().mean_GD
        tensor([[0.0000, 0.7500, 0.0000, 0.2500]], dtype=torch.float64)
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.count = 0
        self.seen_V: Tensor | None = None

    def update(self, indices: Tensor) -> None:
        """Add indices of any shape."""
        if not indices.numel():
            return
        counts_V = torch.bincount(indices.flatten(), minlength=self.rows)
        self.seen_V = counts_V if self.seen_V is None else self.seen_V + counts_V
        self.count += indices.numel()

    def moments(self) -> Moments:
        """The moments so far; a ValueError if no index was added."""
        if self.seen_V is None or not self.count:
            raise ValueError("no index was seen")
        return Moments(count=self.count, mean_GD=self.seen_V.double()[None] / self.count)
