"""The smallest network whose loss stays within a target."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from ..plan import Plan
from .budgets import is_number
from .planner import Planner
from .request import Request

TOLERANCE = 0.01  # the search ends when the share of the dense count is known to one per cent

_log = logging.getLogger("rankwise")


def smallest(
    planner: Planner, request: Request, drop: Callable[[Plan], float], target: float, *, minimise: str = "macs"
) -> Plan:
    """The plan with the least of a unit whose measured loss is within a target, by bisection.

    `min share  subject to  drop(plan(share)) <= target`

    The loss need not grow evenly as the share falls. The returned plan was measured and is within the target; a plan
    smaller by one per cent of the dense count was measured and is not, or does not exist.

    Args:
        request: what else is asked of each plan; its budgets are met too.
        drop: measures the loss of a plan on held-out data, 0 for the dense network.
        target: the loss that is allowed, in the unit of `drop`, 0 or more.

    Returns:
        A plan whose `keep` holds the share that was found.

    Raises:
        ValueError: for a negative target, or budgets that cannot be met or within which every plan loses more.
    """
    if not is_number(target) or not target >= 0:
        raise ValueError(f"target_drop must be a number of at least 0, not {target!r}")
    budgets = request.amounts
    low, high = planner.least(minimise, budgets), 1.0
    if minimise in budgets:
        high = planner.prices.limit(minimise, budgets[minimise]) / planner.prices.dense[minimise]
    dense = planner.prices.dense[minimise]

    def planned(share: float) -> Plan:
        return planner.plan(replace(request, keep={**budgets, minimise: share}))

    def lost(plan: Plan) -> float:
        loss = drop(plan)
        _log.info("%s %.3f: drop %.3g", minimise, plan.planned[minimise] / dense, loss)
        return loss

    best = planned(high)
    loss = lost(best)
    if loss > target:
        raise ValueError(
            f"with {minimise} of {high:.3f} the network already loses {loss:.3g}, more than the target of {target:g}; "
            f"raise the target or the budgets"
        )
    high = best.planned[minimise] / dense
    while high - low > TOLERANCE:
        middle = (low + high) / 2
        try:
            plan = planned(middle)
        except ValueError:  # `least` sums layers; a whole network may take longer
            low = middle
            continue
        if lost(plan) <= target:
            best, high = plan, min(plan.planned[minimise] / dense, middle)
        else:
            low = middle
    return best
