"""Ranks as a continuous choice: a softmax over each site's candidates, by gradient descent, from coarse to fine.

Letters: S sites, O options (the longest list), K candidates of a site, U units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Candidates, Pick, Problem, Rule, described
from .budgeted import check_limits
from .solvers.exchanges import fill, repaired
from .solvers.fronts import front
from .solvers.padding import Tables

LOSSES = ("budget", "product")
LEARNING_RATE = 0.1
COLDEST = 0.05  # temperature of the softmax at the end; it begins at 1
# Step of the multipliers for a budget broken by its whole amount, and the curvature that damps their oscillation.
ASCENT, CURVATURE = 0.02, 1.0


@dataclass(frozen=True, kw_only=True)
class Continuous(Rule):
    """`min over alpha  sum_i p_i . error_i` within all budgets, `p_i = softmax(alpha_i)` over the options of a site.

    With `loss="budget"` each budget has a multiplier, raised while the expected cost exceeds its limit (an augmented
    Lagrangian), so the search ends at the budget. With `loss="product"`, the published one,

        min  (sum_i p_i . error_i) * sum_i (p_i . cost_i / max cost_i)^beta,

    the budget plays no role, and one factor can vanish whatever the other does. Both sharpen the softmax as they go,
    begin with few candidates, and repeat with those around the largest weight until options are neighbours. The largest
    weights make a plan, which exchanges of single options repair and fill up to the budgets.

    The rule sees no data and no model: it minimises a sum of the curves' errors. `training.RankSearch` trains weights
    too.

    Args:
        loss: "budget" or "product".
        candidates: candidates of a site at a time, at least 3.
        steps: steps of the descent for each set of candidates, at least 1.
        beta: exponent of the cost in the product, above 0.

    Raises:
        ValueError: for a setting outside its range.

    Source: Aghababaei-Harandi and Amini, "Unified Framework for Neural Network Compression via Decomposition and
    Optimal Rank Selection", 2024, arXiv 2409.03555 (RENE); the budgets are ours.
    """

    name: ClassVar[str] = "continuous"
    summary: ClassVar[str] = "softmax over each layer's options, by gradient descent on expected error and cost"

    loss: str = "budget"
    candidates: int = 8
    steps: int = 200
    beta: float = 1.0

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise ValueError(f"rule 'continuous': loss is {self.loss!r}; it must be {' or '.join(LOSSES)}")
        for name, least in (("candidates", 3), ("steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"rule 'continuous': {name} is {getattr(self, name)}; at least {least} is needed")
        if not 0 < self.beta < math.inf:
            raise ValueError(f"rule 'continuous': beta is {self.beta}; it must be above 0 and finite")

    def choose(self, problem: Problem) -> list[Pick]:
        check_limits(problem)
        errors = [[option.error for option in site.options] for site in problem.sites]
        costs = [list(site.costs.values()) for site in problem.sites]
        tables = Tables.of(errors, costs, list(problem.limits.values()))
        largest_S = self.largest(problem, tables)
        chosen_S = repaired(tables, largest_S)
        if not tables.fits(chosen_S):
            raise ValueError("rule 'continuous' finds no plan within all budgets together; take rule 'knapsack'")
        chosen_S = fill(tables, chosen_S)
        return [
            Pick(index, _why(site, index, largest))
            for site, index, largest in zip(problem.sites, chosen_S.tolist(), largest_S.tolist(), strict=True)
        ]

    def largest(self, problem: Problem, tables: Tables) -> Tensor:
        """Each site's option with the largest weight, after all rounds."""
        losses_SO, costs_USO, limits_U = tables.losses_SO, tables.costs_USO, tables.limits_U
        # Options that no other beats in price and error, by ascending price; and the places on them still in question.
        paths = [front(problem.shares(site), [option.error for option in site.options]) for site in problem.sites]
        spans = [(0.0, len(path) - 1.0) for path in paths]
        multipliers_U = torch.zeros_like(limits_U)
        worst = losses_SO.where(losses_SO < math.inf, 0).amax(1).sum().clamp_min(torch.finfo(torch.float64).tiny)
        while True:
            grids = [_grid(span, self.candidates) for span in spans]
            longest = max(map(len, grids))
            # Shorter lists repeat their last candidate, with a weight of zero.
            options_SK = torch.tensor(
                [
                    [path[place] for place in grid + grid[-1:] * (longest - len(grid))]
                    for path, grid in zip(paths, grids, strict=True)
                ]
            )
            barred_SK = torch.tensor([[k >= len(grid) for k in range(longest)] for grid in grids])
            errors_SK = losses_SO.gather(1, options_SK) / worst
            costs_USK = costs_USO.gather(2, options_SK.expand(len(costs_USO), -1, -1))
            p_SK, multipliers_U = self.descent(errors_SK, costs_USK, limits_U, barred_SK, multipliers_U)
            best_S = p_SK.argmax(1)
            if all(grid[-1] - grid[0] < len(grid) for grid in grids):  # all candidates are neighbours
                return options_SK.gather(1, best_S[:, None])[:, 0]
            spans = [_around(grid, int(best)) for grid, best in zip(grids, best_S, strict=True)]

    @torch.enable_grad()
    def descent(
        self, errors_SK: Tensor, costs_USK: Tensor, limits_U: Tensor, barred_SK: Tensor, multipliers_U: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The weights p of the candidates after all steps, S x K, and the multipliers, which begin as given.

        Errors are scaled so that the sites' largest ones add up to 1; barred candidates cannot be chosen.
        """
        largest_US = costs_USK.amax(2).clamp_min(1.0)
        alpha_SK = torch.zeros_like(errors_SK, requires_grad=True)
        optimiser = torch.optim.Adam([alpha_SK], lr=LEARNING_RATE)
        for step in range(self.steps):
            temperature = COLDEST ** (step / self.steps)
            p_SK = (alpha_SK / temperature).masked_fill(barred_SK, -math.inf).softmax(1)
            error = (p_SK * errors_SK).sum()
            expected_US = (p_SK * costs_USK).sum(2)
            if self.loss == "product":
                objective = error * (expected_US / largest_US).pow(self.beta).sum()
            else:
                # The augmented Lagrangian of `over <= 0`; its curvature damps the oscillation of the multipliers.
                over_U = expected_US.sum(1) / limits_U.clamp_min(1.0) - 1
                price_U = (multipliers_U + CURVATURE * over_U).clamp_min(0)
                objective = error + price_U.square().sum() / (2 * CURVATURE)
                multipliers_U = (multipliers_U + ASCENT * over_U.detach()).clamp_min(0)
            optimiser.zero_grad()
            objective.backward()
            optimiser.step()
        return (alpha_SK / COLDEST).masked_fill(barred_SK, -math.inf).softmax(1).detach(), multipliers_U


def _grid(span: tuple[float, float], count: int) -> list[int]:
    """Places spread evenly over a span, with both ends.

    Example:
        >>> _grid((0, 9), 4), _grid((3, 5), 4)
        ([0, 3, 6, 9], [3, 4, 5])
    """
    low, high = span
    return sorted({round(low + (high - low) * k / (count - 1)) for k in range(count)})


def _around(grid: list[int], best: int) -> tuple[float, float]:
    """The span from halfway to the candidate before to halfway to the one after."""
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    return (low + grid[best]) / 2, (grid[best] + high) / 2


def _why(site: Candidates, index: int, largest: int) -> str:
    how = "the largest weight" if index == largest else "exchanged for the budget"
    return f"continuous: {how}, {described(site, index)}"
