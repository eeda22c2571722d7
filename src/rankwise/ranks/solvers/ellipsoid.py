"""Several budgets: multipliers by the ellipsoid method, and a plan near the best one.

For given multipliers `lambda_u >= 0` each site decides alone, `min loss + sum_u lambda_u cost_u`. The dual function of
the multipliers is concave and piecewise linear, and the ellipsoid method finds its maximum without step sizes. The best
plan on the way that meets all limits and the last few plans are repaired; exchanges of one site and of two fill the
slack that they leave.

Letters: S sites, O options (the longest list; shorter ones padded with infinite losses), U units.

Sources: Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988 (the multipliers); Shor,
"Cut-off method with space extension in convex programming problems", 1977 (the ellipsoid method).
"""

from __future__ import annotations

import math
from collections import deque

import torch
from torch import Tensor

from .exchanges import exchange_pairs, fill, repaired
from .padding import Tables

GAP = 1e-6  # steps end when no multiplier in the ellipsoid can raise the dual function by this share of the loss
STEPS = 500
LAST = 2  # so many of the last plans are repaired and filled beside the best one
PAIRED = 20_000_000  # up to so many pairs of options, some seconds' work, exchanges of two sites are tried


def several_budgets(problem: Tables, start_S: Tensor) -> tuple[Tensor, Tensor]:
    """The best plan that multipliers, repairs and exchanges find, and the multipliers; `start_S` meets the limits."""
    passed, multipliers_U = multipliers(problem, start_S)
    candidates = [fill(problem, repaired(problem, chosen_S)) for chosen_S in passed]
    chosen_S = min(filter(problem.fits, candidates), key=problem.loss)
    options_S = (problem.losses_SO < math.inf).sum(1)
    pairs = int(options_S.sum() ** 2 - options_S.square().sum()) // 2
    if pairs <= PAIRED:
        chosen_S = exchange_pairs(problem, chosen_S)
    return chosen_S, multipliers_U


def multipliers(problem: Tables, start_S: Tensor) -> tuple[list[Tensor], Tensor]:
    """The best plan within the limits on the way and the last few plans; and multipliers that maximise the dual.

    `dual(lambda) = min_o sum_i loss_i(o_i) + sum_u lambda_u (cost_u(o) - limit_u)`, at most the loss of any plan within
    the limits. The ellipsoid `{x : (x - centre)^T P^-1 (x - centre) <= 1}` always holds the best multipliers; each step
    cuts it through its centre and takes the smallest ellipsoid around the half that is left.
    """
    losses_SO, U, scale_U = problem.losses_SO, len(problem.limits_U), problem.limits_U.clamp_min(1.0)
    scaled = Tables(losses_SO, problem.costs_USO / scale_U[:, None, None], problem.limits_U / scale_U)
    best_S, best = start_S, problem.loss(start_S)
    last: deque[Tensor] = deque(maxlen=LAST)
    # For the start, `dual <= loss - lambda slack`, and at the optimum dual is at least the sum of all least losses: so
    # each multiplier lies between 0 and `most`. The first ellipsoid is the smallest one around that box.
    slack_U = (scaled.limits_U - scaled.cost(start_S)).clamp_min(1e-6)
    most_U = (best - float(losses_SO.amin(1).sum())) / slack_U
    centre_U, P_UU = most_U / 2, torch.diag(U * (most_U / 2).square())
    highest, multipliers_U = -math.inf, torch.zeros(U, dtype=torch.float64)
    for _ in range(STEPS):
        inside = float(centre_U.min()) >= 0
        if inside:
            least_S, chosen_S = (losses_SO + torch.tensordot(centre_U, scaled.costs_USO, 1)).min(1)
            if (dual := float(least_S.sum() - centre_U @ scaled.limits_U)) > highest:
                highest, multipliers_U = dual, centre_U
            over_U = scaled.cost(chosen_S) - scaled.limits_U
            if float(over_U.max()) <= 0 and (loss := problem.loss(chosen_S)) < best:
                best_S, best = chosen_S, loss
            if not any(torch.equal(chosen_S, seen_S) for seen_S in last):
                last.append(chosen_S)
            cut_U = -over_U  # `over` is a supergradient: the dual function is only higher where `over . x` grows
        else:  # a multiplier below 0: only points with a larger one are of interest
            cut_U = -torch.eye(U, dtype=torch.float64)[int(centre_U.argmin())]
        # The most that the dual function can rise by inside the ellipsoid.
        length = math.sqrt(max(float(cut_U @ P_UU @ cut_U), 0.0))
        if length <= (GAP * best if inside else 0):
            break
        step_U = P_UU @ cut_U / length
        centre_U = centre_U - step_U / (U + 1)
        P_UU = U * U / (U * U - 1) * (P_UU - 2 / (U + 1) * torch.outer(step_U, step_U))
    return [best_S, *last], multipliers_U / scale_U
