"""A choice of options within limits, as tensors.

Letters: S sites, O options (the longest list; shorter ones padded with infinite losses), U units.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Values = Sequence[float] | Tensor  # losses or costs of a site's options
Costs = Sequence[Values]  # for every unit


@dataclass(frozen=True)
class Tables:
    """Losses and costs of all options, and the limits of the units; a plan is one option of every site."""

    losses_SO: Tensor
    costs_USO: Tensor
    limits_U: Tensor

    @classmethod
    def of(cls, losses: Sequence[Values], costs: Sequence[Costs], limits: Sequence[float]) -> Tables:
        """From `losses[site][option]` and `costs[site][unit][option]`.

        An infinite loss becomes finite, and worse than any sum of finite ones.

        Raises:
            ValueError: for a loss that is not a number.
        """
        losses_SO = _padded(losses, math.inf)
        if bool(losses_SO.isnan().any()):
            raise ValueError("the loss of an option is not a number")
        worst = 1 + 2 * float(losses_SO.where(losses_SO.abs() < math.inf, 0).abs().amax(1).sum())
        given_SO = torch.arange(losses_SO.shape[1]) < torch.tensor([[len(own)] for own in losses])
        losses_SO = losses_SO.where((losses_SO < math.inf) | ~given_SO, worst)
        costs_USO = torch.stack([_padded([units[u] for units in costs], 0.0) for u in range(len(limits))])
        return cls(losses_SO, costs_USO, torch.tensor(limits, dtype=torch.float64))

    def of_units(self, units: list[int]) -> Tables:
        """The same options with some of the limits."""
        return Tables(self.losses_SO, self.costs_USO[units], self.limits_U[units])

    def only(self, kept_SO: Tensor) -> tuple[Tables, Tensor]:
        """The tables of some options, in their order, and the places at which they were; at least one of every site."""
        kept_SO = kept_SO & (self.losses_SO < math.inf)
        places_SO = (~kept_SO).byte().argsort(dim=1, stable=True)[:, : int(kept_SO.sum(1).max())]
        kept_SO = kept_SO.gather(1, places_SO)
        losses_SO = self.losses_SO.gather(1, places_SO).where(kept_SO, math.inf)
        costs_USO = self.costs_USO.gather(2, places_SO.expand(len(self.costs_USO), -1, -1)).where(kept_SO, 0.0)
        return Tables(losses_SO, costs_USO, self.limits_U), places_SO

    def cost(self, chosen_S: Tensor) -> Tensor:
        """Cost of a plan in every unit."""
        return self.costs_USO[:, torch.arange(len(chosen_S)), chosen_S].sum(1)

    def loss(self, chosen_S: Tensor) -> float:
        """Loss of a plan."""
        return float(self.losses_SO[torch.arange(len(chosen_S)), chosen_S].sum())

    def fits(self, chosen_S: Tensor) -> bool:
        """Whether a plan meets all limits, its costs added in the order of the sites."""
        costs_US = self.costs_USO[:, torch.arange(len(chosen_S)), chosen_S].tolist()
        return all(sum(costs) <= limit for costs, limit in zip(costs_US, self.limits_U.tolist(), strict=True))


def _padded(lists: Sequence[Values], value: float) -> Tensor:
    rows = [
        torch.frombuffer(own, dtype=torch.float64)
        if isinstance(own, array)
        else torch.as_tensor(own, dtype=torch.float64)
        for own in lists
    ]
    return pad_sequence(rows, batch_first=True, padding_value=value)
