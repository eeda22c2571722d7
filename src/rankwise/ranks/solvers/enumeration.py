"""The best plan of all, if the dual function leaves few plans that can be better than the one at hand.

Letters: S sites, O options (the longest list; shorter ones padded with infinite losses), U units, K combinations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .padding import Tables

ENUMERABLE = 200_000  # combinations of some sites' options to look at, at most; their sums take milliseconds


def improved(problem: Tables, chosen_S: Tensor, multipliers_U: Tensor) -> Tensor:
    """The best plan of all, if few enough can be better than `chosen`; else `chosen`.

    With `reduced = loss + lambda cost` less its least in the site, `loss >= dual + sum_i reduced_i(o_i)` for every plan
    within the limits. So a plan can only be better if its reduced losses add up to less than `loss(chosen) - dual`,
    which leaves few options of each site.
    """
    losses_SO, costs_USO, limits_U = problem.losses_SO, problem.costs_USO, problem.limits_U
    reduced_SO = losses_SO + torch.tensordot(multipliers_U, costs_USO, 1)
    dual = float(reduced_SO.amin(1).sum() - multipliers_U @ limits_U)
    reduced_SO = reduced_SO - reduced_SO.amin(1, keepdim=True)
    gap = (problem.loss(chosen_S) - dual) * (1 + 1e-9)
    reduced_K, losses_K = torch.zeros(2, 1, dtype=torch.float64)
    costs_UK = torch.zeros(len(limits_U), 1, dtype=torch.float64)
    rest_US = costs_USO.where(losses_SO < math.inf, math.inf).amin(2)
    rest_US = rest_US.sum(1, keepdim=True) - rest_US.cumsum(1)  # the least cost of all sites after each
    steps: list[tuple[Tensor, Tensor]] = []  # for each site, the combination before and the option added to it
    for site, (losses_O, reduced_O) in enumerate(zip(losses_SO, reduced_SO, strict=True)):
        options = (reduced_O <= gap).nonzero()[:, 0]
        if len(options) * len(losses_K) > ENUMERABLE:
            return chosen_S
        joint_UK = (costs_UK[:, :, None] + costs_USO[:, site, None, options]).flatten(1)
        joint_K = (reduced_K[:, None] + reduced_O[options]).flatten()
        fits_K = (joint_UK + rest_US[:, site, None] <= limits_U[:, None]).all(0)
        kept_K = ((joint_K <= gap) & fits_K).nonzero()[:, 0]
        steps.append((kept_K // len(options), options[kept_K % len(options)]))
        losses_K = (losses_K[:, None] + losses_O[options]).flatten()[kept_K]
        costs_UK, reduced_K = joint_UK[:, kept_K], joint_K[kept_K]
    if not len(losses_K):  # rounding put even the plan at hand above the gap
        return chosen_S
    place, best_S = int(losses_K.argmin()), chosen_S.clone()
    for site, (before, option) in reversed(list(enumerate(steps))):
        best_S[site], place = option[place], int(before[place])
    return best_S
