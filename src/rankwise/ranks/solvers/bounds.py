"""Lower bounds on the loss of some sites that may cost so much together.

Each multiplier `lambda` gives one: `sum_i min_o (loss_i(o) + lambda cost_i(o)) - lambda room`. The best multiplier for
all sites is not the best for those that are left once others have chosen, so several around it are tried.

Letters: S sites, O options, T multipliers, K states, U units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .padding import Tables

# Multipliers as shares of the best one. The more sites there are, the less a choice for one of them changes it.
NEAR = [2.0**-k for k in range(1, 21)]
SHARES = sorted([0.0, 0.125, 0.25, *(1 - x for x in NEAR), 1.0, *(1 + x for x in NEAR), 2.0, 4.0, 8.0])
SHARES_SEVERAL = (0.5, 0.75, 0.9, 0.97, 1.03, 1.1, 1.25, 1.5, 2.0)  # with several units, of one at a time
TOGETHER = 1 << 18  # numbers in a block of priced options: 2 MB


@dataclass(frozen=True)
class Bounds:
    """Lower bounds by several multipliers.

    Attributes:
        best_U: the multipliers that maximise the dual function, or nearly.
        multipliers_TU: those that are tried; with one unit, ascending.
        limits_U: what all sites together may cost.
    """

    best_U: Tensor
    multipliers_TU: Tensor
    limits_U: Tensor

    @classmethod
    def around(cls, best_U: Tensor, limits_U: Tensor) -> Bounds:
        """Bounds by the best multipliers and some around them."""
        if len(best_U) == 1:
            return cls(best_U, best_U * torch.tensor(SHARES, dtype=torch.float64)[:, None], limits_U)
        changes = [torch.ones_like(best_U)]
        for unit in torch.eye(len(best_U), dtype=torch.float64):
            changes += [1 + (share - 1) * unit for share in SHARES_SEVERAL]
        return cls(best_U, best_U * torch.stack(changes), limits_U)

    def reduced(self, problem: Tables) -> tuple[Tensor, float]:
        """How far `loss + lambda cost` of every option is above the least of its site, S x O; and the dual function."""
        priced_SO = problem.losses_SO + torch.tensordot(self.best_U, problem.costs_USO, 1)
        least_S = priced_SO.amin(1)
        return priced_SO - least_S[:, None], float(least_S.sum() - self.best_U @ self.limits_U)

    def spread(self, costs_UO: Tensor) -> float:
        """How much the options of a site differ in cost, priced by the best multipliers."""
        priced_O = self.best_U @ costs_UO
        return float(priced_O.max() - priced_O.min())

    def least(self, problem: Tables) -> Tensor:
        """`min_o loss + lambda cost` of every site for every multiplier, T x S."""
        together = max(TOGETHER // problem.losses_SO.numel(), 1)
        return torch.cat(
            [
                (problem.losses_SO + torch.tensordot(part_TU, problem.costs_USO, 1)).amin(2)
                for part_TU in self.multipliers_TU.split(together)
            ]
        )

    def rest(self, least_T: Tensor, costs_UK: Tensor) -> Tensor:
        """The least loss of all other sites for states that cost this much, K.

        Args:
            least_T: sum of `least` over the other sites.
            costs_UK: what the states cost.
        """
        room_UK = self.limits_U[:, None] - costs_UK
        if len(room_UK) > 1:
            lines = zip(least_T, self.multipliers_TU, strict=True)
            return torch.stack([least - multipliers_U @ room_UK for least, multipliers_U in lines]).amax(0)
        # Lines of neighbouring multipliers meet at rooms that fall, so the highest one is found by bisection.
        multipliers_T, (room_K,) = self.multipliers_TU[:, 0], room_UK
        meet_T = least_T.diff() / multipliers_T.diff()
        best_K = len(meet_T) - torch.searchsorted(meet_T.flip(0), room_K, right=True)
        return least_T[best_K] - multipliers_T[best_K] * room_K

    def options(self, problem: Tables) -> Tensor:
        """A lower bound on the loss of all plans with an option, S x O; minus infinity if a site has no choice."""
        least_TS, bounds_SO = self.least(problem), torch.full_like(problem.losses_SO, -math.inf)
        for site in ((problem.losses_SO < math.inf).sum(1) > 1).nonzero()[:, 0].tolist():
            others_T = least_TS.sum(1) - least_TS[:, site]
            bounds_SO[site] = problem.losses_SO[site] + self.rest(others_T, problem.costs_USO[:, site])
        return bounds_SO
