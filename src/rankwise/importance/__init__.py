"""Importance of each neuron of a layer: by its weight, by its activations, or by its effect on the loss.

Sparse low rank (`rankwise.formats.slr.SparseLowRank(importance=...)`) uses only the order of the numbers, so their unit
does not matter.
"""

from __future__ import annotations

from torch import nn

from ..formats import FORMATS
from ..formats.slr import Importance, SparseLowRank
from ..network.sites import Sites
from ..plan import Plan
from ..running.verbs import verb
from ..statistics import Statistics
from .activity import by_activation, by_weight
from .curvature import by_curvature
from .exact import by_cost
from .gradient import by_gradient
from .labelled import Labelled, self_labelled

CRITERIA = ("weight", "activation", "cost", "curvature")


@verb
def of_plan(
    model: nn.Module, plan: Plan, source: Statistics | Sites, criterion: str, data: Labelled | None = None
) -> dict[str, Importance]:
    """Importance of the neurons of every layer that a plan makes sparse low rank, measured in the dense network.

    Args:
        model: the dense network.
        plan: formats and ranks.
        source: statistics for "activation", else sites are enough.
        criterion: "weight", "activation", "cost" (first order, one pass) or "curvature" (second order, exact where the
            loss changes most).
        data: inputs and targets for "cost" and "curvature".

    Returns:
        Importance by site name, for `SparseLowRank(importance=...)` and `Staircase(importance=...)`.

    Raises:
        ValueError: for an unknown criterion, missing statistics or data, or a plan without such a layer.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"unknown criterion {criterion!r}; the criteria are {', '.join(CRITERIA)}")
    rows = [row for row in plan.rows if isinstance(FORMATS.get(row.format), SparseLowRank)]
    if not rows:
        raise ValueError("no layer of the plan is in slr or slr3, so there are no neurons to select; pin one to slr")
    sites = source.sites if isinstance(source, Statistics) else source
    found: dict[str, Importance] = {}
    for row in rows:
        site = sites[row.site]
        if criterion == "weight":
            found[site.name] = by_weight(model, site)
        elif criterion == "activation":
            if not isinstance(source, Statistics):
                raise ValueError('the criterion "activation" needs statistics: pass rankwise.collect(model, data)')
            found[site.name] = by_activation(model, source, site)
        else:
            if data is None:
                raise ValueError(
                    f"the criterion {criterion!r} needs inputs and targets; self_labelled makes them from inputs"
                )
            rule = by_gradient if criterion == "cost" else by_curvature
            found[site.name] = rule(model, site, data, (row.ranks[0], sum(row.ranks[1::3])))
    return found


__all__ = [
    "CRITERIA",
    "by_activation",
    "by_cost",
    "by_curvature",
    "by_gradient",
    "by_weight",
    "of_plan",
    "self_labelled",
]
