"""One option per site, least total loss within several budgets: multipliers by the ellipsoid method, then exchanges.

`min sum_i loss_i(o_i)  subject to  sum_i cost_iu(o_i) <= limit_u` for every unit u

For given multipliers `lambda_u >= 0` each site decides alone, `min loss + sum_u lambda_u cost_u`; the dual function of
the multipliers is concave and piecewise linear, and the ellipsoid method finds its maximum without step sizes. Of the
plans seen on the way the best that meets all limits and the last few are repaired, and exchanges of one site and of two
fill what they leave. Where the dual function leaves few plans that can be better still, all of them are looked at.

Letters: S sites, O options (the longest list; shorter ones padded with infinite losses), U units, K combinations.

Sources: Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988 (the multipliers); Shor,
"Cut-off method with space extension in convex programming problems", 1977 (the ellipsoid method).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from .exchanges import exchange_pairs, fill, repaired, total_cost, total_loss
from .knapsack import knapsack_of, multiplier

# Up to this many combinations of some sites' options are looked at: 200,000 sums take milliseconds.
ENUMERABLE = 200_000
# Within one budget exchanges come near enough to the best plan of more sites: one of them leaves little slack.
FEW_SITES = 8
# Steps end when no multiplier left in the ellipsoid can raise the dual function by this share of the loss.
GAP = 1e-6
STEPS = 500
# So many of the last plans are repaired and filled beside the best one.
LAST = 2
# Exchanges of two sites are tried while all pairs of their options are at most this many, some seconds' work.
PAIRED = 20_000_000


class BudgetError(ValueError):
    """No plan meets a budget together with those before it.

    Attributes:
        unit: number of the budget.
        least: what the cheapest plan within the budgets before it costs.
    """

    def __init__(self, unit: int, limit: float, least: float) -> None:
        super().__init__(f"budget {unit} of {limit:,.0f} cannot be met: the cheapest plan costs {least:,.0f}")
        self.unit = unit
        self.least = least


Costs = Sequence[Sequence[float]]


def least_loss(losses: Sequence[Sequence[float]], costs: Sequence[Costs], limits: Sequence[float]) -> list[int]:
    """The chosen option of every site.

    Args:
        losses: of the options, for every site.
        costs: of the options, for every site and unit: `costs[site][unit][option]`.
        limits: of the units; none, one or several.

    Returns:
        One option index per site, within all limits.

    Raises:
        BudgetError: naming the first budget that no plan meets together with those before it, and the least found.

    Example:
        >>> least_loss([[5, 1, 0], [2, 1, 0]], [[[1, 2, 4], [1, 4, 2]], [[1, 2, 4], [1, 4, 2]]], [5, 6])
        [2, 0]
    """
    if not limits:
        return [min(range(len(site)), key=site.__getitem__) for site in losses]
    if len(limits) == 1:
        return _single(losses, [units[0] for units in costs], limits[0])
    limits_U = torch.tensor(limits, dtype=torch.float64)
    losses_SO, costs_USO = tables(losses, costs)
    # The least sum of shares leaves slack everywhere, if it fits; else the proof that something does is the start.
    start_S = (
        (costs_USO / limits_U.clamp_min(1.0)[:, None, None]).sum(0).where(losses_SO < math.inf, math.inf).argmin(1)
    )
    if bool((total_cost(costs_USO, start_S) > limits_U).any()):
        start_S = torch.tensor(_cheapest(costs, limits))
    passed, multipliers_U = _by_multipliers(losses_SO, costs_USO, limits_U, start_S)
    candidates = [
        fill(losses_SO, costs_USO, limits_U, repaired(losses_SO, costs_USO, limits_U, chosen_S)) for chosen_S in passed
    ]
    within = [chosen_S for chosen_S in candidates if not bool((total_cost(costs_USO, chosen_S) > limits_U).any())]
    chosen_S = min(within, key=lambda chosen_S: total_loss(losses_SO, chosen_S))
    pairs = sum(len(a) * len(b) for a, b in combinations(losses, 2))
    if pairs <= PAIRED:
        chosen_S = exchange_pairs(losses_SO, costs_USO, limits_U, chosen_S)
    return _improved(losses_SO, costs_USO, limits_U, chosen_S, multipliers_U).tolist()


def _single(losses: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], limit: float) -> list[int]:
    least = sum(map(min, costs))
    if least > limit:
        raise BudgetError(0, limit, least)
    chosen = knapsack_of(costs, losses, limit)
    if len(losses) > FEW_SITES or limit == math.inf:
        return chosen
    losses_SO, costs_USO = tables(losses, [[own] for own in costs])
    multipliers_U = torch.tensor([multiplier(costs, losses, limit)], dtype=torch.float64)
    limits_U = torch.tensor([limit], dtype=torch.float64)
    return _improved(losses_SO, costs_USO, limits_U, torch.tensor(chosen), multipliers_U).tolist()


def _cheapest(costs: Sequence[Costs], limits: Sequence[float]) -> list[int]:
    """A plan with the least of the last unit within the limits of all others; its cost meets the last limit too."""
    last = len(limits) - 1
    try:
        chosen = least_loss([units[last] for units in costs], [units[:last] for units in costs], limits[:last])
    except BudgetError as error:
        raise BudgetError(error.unit, limits[error.unit], error.least) from None
    least = sum(units[last][index] for units, index in zip(costs, chosen, strict=True))
    if least > limits[last]:
        raise BudgetError(last, limits[last], least)
    return chosen


def tables(losses: Sequence[Sequence[float]], costs: Sequence[Costs]) -> tuple[Tensor, Tensor]:
    """Losses S x O, infinite where a site has no such option, and costs U x S x O."""
    longest = max(map(len, losses))
    padded = [[*site, *[math.inf] * (longest - len(site))] for site in losses]
    priced = [[[*unit, *[0.0] * (longest - len(unit))] for unit in units] for units in costs]
    return torch.tensor(padded, dtype=torch.float64), torch.tensor(priced, dtype=torch.float64).transpose(
        0, 1
    ).contiguous()


def _by_multipliers(
    losses_SO: Tensor, costs_USO: Tensor, limits_U: Tensor, start_S: Tensor
) -> tuple[list[Tensor], Tensor]:
    """Multipliers that maximise the dual function, and plans on the way to them.

    Args:
        losses_SO, costs_USO, limits_U: the problem.
        start_S: a plan within the limits.

    Returns:
        The best plan within the limits that was passed and the last few, within or not; the multipliers.
    """
    U = len(limits_U)
    scale_U = limits_U.clamp_min(1.0)
    scaled_USO, limits_U = costs_USO / scale_U[:, None, None], limits_U / scale_U
    best_S, best = start_S, total_loss(losses_SO, start_S)
    last: deque[Tensor] = deque(maxlen=LAST)
    # At the optimum no multiplier takes more than the loss of a plan with slack, divided by that slack.
    slack_U = (limits_U - total_cost(scaled_USO, start_S)).clamp_min(1e-6)
    most_U = (best - float(losses_SO.amin(1).sum())) / slack_U
    centre_U, P_UU = most_U / 2, torch.diag(U * (most_U / 2).square())
    highest, multipliers_U = -math.inf, torch.zeros(U, dtype=torch.float64)
    for _ in range(STEPS):
        inside = float(centre_U.min()) >= 0
        if inside:
            least_S, chosen_S = (losses_SO + torch.tensordot(centre_U, scaled_USO, 1)).min(1)
            if (dual := float(least_S.sum() - centre_U @ limits_U)) > highest:
                highest, multipliers_U = dual, centre_U
            over_U = total_cost(scaled_USO, chosen_S) - limits_U
            if float(over_U.max()) <= 0 and (loss := total_loss(losses_SO, chosen_S)) < best:
                best_S, best = chosen_S, loss
            if not any(torch.equal(chosen_S, seen_S) for seen_S in last):
                last.append(chosen_S)
            cut_U = -over_U  # the dual function rises towards what is over its limit
        else:
            cut_U = -torch.eye(U, dtype=torch.float64)[int(centre_U.argmin())]
        length = math.sqrt(max(float(cut_U @ P_UU @ cut_U), 0.0))
        if length <= (GAP * best if inside else 0):
            break
        step_U = P_UU @ cut_U / length
        centre_U = centre_U - step_U / (U + 1)
        P_UU = U * U / (U * U - 1) * (P_UU - 2 / (U + 1) * torch.outer(step_U, step_U))
    return [best_S, *last], multipliers_U / scale_U


def _improved(
    losses_SO: Tensor, costs_USO: Tensor, limits_U: Tensor, chosen_S: Tensor, multipliers_U: Tensor
) -> Tensor:
    """The best plan of all, if few enough can be better than `chosen`; else `chosen`.

    `loss >= dual + sum_i reduced_i(o_i)` for every plan within the limits, with `reduced = loss + lambda cost` less its
    least in the site: what is more than the plan at hand is above the dual function need not be looked at.
    """
    U = len(limits_U)
    reduced_SO = losses_SO + torch.tensordot(multipliers_U, costs_USO, 1)
    dual = float(reduced_SO.amin(1).sum() - multipliers_U @ limits_U)
    reduced_SO = reduced_SO - reduced_SO.amin(1, keepdim=True)
    gap = (total_loss(losses_SO, chosen_S) - dual) * (1 + 1e-9)
    reduced_K, losses_K = torch.zeros(2, 1, dtype=torch.float64)
    costs_UK = torch.zeros(U, 1, dtype=torch.float64)
    rest_US = costs_USO.where(losses_SO < math.inf, math.inf).amin(2)
    rest_US = rest_US.sum(1, keepdim=True) - rest_US.cumsum(1)  # the least that the sites after each cost
    steps: list[tuple[Tensor, Tensor]] = []  # of each site: the combination before, and the option added to it
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
