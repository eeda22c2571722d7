"""A choice of options within limits, as tensors.

Letters: S sites, O options (the longest list; shorter ones padded with infinite losses), U units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Costs = Sequence[Sequence[float]]  # costs of a site's options, for every unit


@dataclass(frozen=True)
class Tables:
    """Losses and costs of all options, and the limits of the units; a plan is one option of every site."""

    losses_SO: Tensor
    costs_USO: Tensor
    limits_U: Tensor

    @classmethod
    def of(cls, losses: Sequence[Sequence[float]], costs: Sequence[Costs], limits: Sequence[float]) -> Tables:
        """From `losses[site][option]` and `costs[site][unit][option]`."""
        longest = max(map(len, losses))
        padded = [[*site, *[math.inf] * (longest - len(site))] for site in losses]
        priced = [[[*unit, *[0.0] * (longest - len(unit))] for unit in units] for units in costs]
        costs_SUO = torch.tensor(priced, dtype=torch.float64)
        return cls(
            torch.tensor(padded, dtype=torch.float64),
            costs_SUO.transpose(0, 1).contiguous(),
            torch.tensor(limits, dtype=torch.float64),
        )

    def cost(self, chosen_S: Tensor) -> Tensor:
        """Cost of a plan in every unit."""
        return self.costs_USO[:, torch.arange(len(chosen_S)), chosen_S].sum(1)

    def loss(self, chosen_S: Tensor) -> float:
        """Loss of a plan."""
        return float(self.losses_SO[torch.arange(len(chosen_S)), chosen_S].sum())

    def fits(self, chosen_S: Tensor) -> bool:
        """Whether a plan meets all limits."""
        return not bool((self.cost(chosen_S) > self.limits_U).any())
