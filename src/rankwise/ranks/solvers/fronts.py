"""Options that no other beats in cost and loss.

Letters: S sites, O options, padded with infinite losses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def front(costs: Sequence[float], losses: Sequence[float]) -> list[int]:
    """Indices of the options of one site that no other beats in cost and loss, by ascending cost.

    Of equal options the first is kept.

    Example:
        >>> front([1, 2, 2, 3], [5, 4, 3, 3])
        [0, 2]
    """
    kept: list[int] = []
    pairs = list(zip(costs, losses, strict=True))
    for index in sorted(range(len(pairs)), key=pairs.__getitem__):
        if not kept or losses[index] < losses[kept[-1]]:
            kept.append(index)
    return kept


def unbeaten(costs_SO: Tensor, losses_SO: Tensor) -> Tensor:
    """Which options of every site `front` keeps, S x O."""
    order_SO = losses_SO.argsort(dim=1, stable=True)
    order_SO = order_SO.gather(1, costs_SO.gather(1, order_SO).argsort(dim=1, stable=True))
    sorted_SO = losses_SO.gather(1, order_SO)
    before_SO = torch.full_like(sorted_SO, math.inf)
    before_SO[:, 1:] = sorted_SO.cummin(1).values[:, :-1]
    return torch.empty_like(sorted_SO, dtype=torch.bool).scatter(1, order_SO, sorted_SO < before_SO)
