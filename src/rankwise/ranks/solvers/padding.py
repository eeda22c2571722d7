"""Losses and costs as tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Costs = Sequence[Sequence[float]]  # costs of a site's options, for every unit


def tables(
    losses: Sequence[Sequence[float]], costs: Sequence[Costs], limits: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses S x O, infinite for options that a site does not have, costs U x S x O, and limits U."""
    longest = max(map(len, losses))
    padded = [[*site, *[math.inf] * (longest - len(site))] for site in losses]
    priced = [[[*unit, *[0.0] * (longest - len(unit))] for unit in units] for units in costs]
    costs_SUO = torch.tensor(priced, dtype=torch.float64)
    return (
        torch.tensor(padded, dtype=torch.float64),
        costs_SUO.transpose(0, 1).contiguous(),
        torch.tensor(limits, dtype=torch.float64),
    )
