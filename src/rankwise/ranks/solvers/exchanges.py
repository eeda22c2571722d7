"""Exchanges of options within limits: repair a plan that breaks one, fill slack, exchange two sites at once.

Letters: S sites, O options (the longest list; shorter ones padded with infinite losses), U units.
"""

from __future__ import annotations

import math
from itertools import combinations

import torch
from torch import Tensor

from .padding import Tables

ROUNDS = 8


def least_shares(problem: Tables) -> Tensor:
    """The plan with the least sum of shares of the limits, which leaves slack everywhere if it fits."""
    shares_SO = (problem.costs_USO / problem.limits_U.clamp_min(1.0)[:, None, None]).sum(0)
    return shares_SO.where(problem.losses_SO < math.inf, math.inf).argmin(1)


def repaired(problem: Tables, chosen_S: Tensor) -> Tensor:
    """Exchange single options while a limit is broken, at the least loss per share of the limits won back."""
    losses_SO, rows_S, chosen_S = problem.losses_SO, torch.arange(len(chosen_S)), chosen_S.clone()
    scale_U = problem.limits_U.clamp_min(1.0)
    while True:
        # Each round lowers the excess, so the loop ends.
        over_U = problem.cost(chosen_S) - problem.limits_U
        if float(over_U.max()) <= 0:
            return chosen_S
        won_SO = torch.zeros_like(losses_SO)  # less excess over all limits; an exchange may also add to one
        for costs_SO, over, scale in zip(problem.costs_USO, over_U, scale_U, strict=True):
            after_SO = costs_SO - costs_SO[rows_S, chosen_S, None] + over
            won_SO += (over.clamp_min(0) - after_SO.clamp_min(0)) / scale
        lost_SO = losses_SO - losses_SO[rows_S, chosen_S, None]
        price_SO = torch.where(won_SO > 0, lost_SO / won_SO, math.inf)
        site, index = divmod(int(price_SO.argmin()), price_SO.shape[1])
        if not float(price_SO[site, index]) < math.inf:
            return chosen_S
        chosen_S[site] = index


def fill(problem: Tables, chosen_S: Tensor) -> Tensor:
    """Exchange single options while that lowers the loss within the limits, the largest gain first."""
    losses_SO, rows_S, chosen_S = problem.losses_SO, torch.arange(len(chosen_S)), chosen_S
    while True:
        slack_U = problem.limits_U - problem.cost(chosen_S)
        gains_SO = losses_SO[rows_S, chosen_S, None] - losses_SO
        for costs_SO, slack in zip(problem.costs_USO, slack_U, strict=True):
            gains_SO[costs_SO > costs_SO[rows_S, chosen_S, None] + slack] = 0
        site, index = divmod(int(gains_SO.argmax()), gains_SO.shape[1])
        after_S = chosen_S.clone()
        after_S[site] = index
        if float(gains_SO[site, index]) <= 0 or not problem.fits(after_S):  # rounding may deceive the slack
            return chosen_S
        chosen_S = after_S


def exchange_pairs(problem: Tables, chosen_S: Tensor) -> Tensor:
    """Choose two sites anew, the best for both with all others fixed, while that lowers the loss."""
    losses_SO, costs_USO = problem.losses_SO, problem.costs_USO
    for _ in range(ROUNDS):
        improved = False
        for a, b in combinations(range(len(chosen_S)), 2):
            now_a, now_b = int(chosen_S[a]), int(chosen_S[b])
            left_U = problem.limits_U - problem.cost(chosen_S) + costs_USO[:, a, now_a] + costs_USO[:, b, now_b]
            joint_OO = losses_SO[a, :, None] + losses_SO[b]
            for costs_SO, left in zip(costs_USO, left_U, strict=True):
                joint_OO[costs_SO[a, :, None] + costs_SO[b] > left] = math.inf
            best = int(joint_OO.argmin())
            new_a, new_b = divmod(best, joint_OO.shape[1])
            if float(joint_OO[new_a, new_b]) < float(losses_SO[a, now_a] + losses_SO[b, now_b]) * (1 - 1e-12):
                after_S = chosen_S.clone()
                after_S[a], after_S[b] = new_a, new_b
                if problem.fits(after_S):  # rounding may deceive what is left
                    chosen_S, improved = after_S, True
        if not improved:
            break
    return chosen_S
