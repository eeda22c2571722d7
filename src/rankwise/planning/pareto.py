"""Plans for a list of budgets from one profile, each inside the next larger one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from ..network.sites import Sites
from ..plan import Plan
from ..running.verbs import verb
from ..statistics import Statistics
from .budgets import check_keep
from .planner import Planner
from .refine import refined
from .request import Request
from .wishes import Asked, Wishes

if TYPE_CHECKING:
    from typing_extensions import Unpack

Keeps = Sequence[Mapping[str, float | str]]


@verb
def pareto(
    model: nn.Module, source: Statistics | Sites, *, keeps: Keeps, nested: bool = True, **wishes: Unpack[Wishes]
) -> list[Plan]:
    """One plan for every budget, in their order, from one profile.

    Nested plans share their factors: a site factorised at a large budget keeps its format at all smaller ones, and no
    rank grows as the budget falls. The error is then somewhat larger than with independent plans.

    Args:
        model: the dense network.
        source: its statistics, or only its sites for `metric="weight"`.
        keeps: budgets, each as for `choose`; for nested plans the largest first.
        nested: whether each plan must lie inside the one before.
        **wishes: as for `choose`.

    Raises:
        TypeError: for an argument that does not exist, or that sets a budget itself.
        ValueError: as for `choose`; nested plans may fail because of the formats of larger ones.

    Example:
        >>> import torch, rankwise as rw
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        >>> sites = rw.find(model, torch.randn(1, 64))
        >>> plans = pareto(model, sites, keeps=[{"params": 0.8}, {"params": 0.4}], metric="weight")
        >>> [plan["0"].ranks[0] for plan in plans] == sorted((plan["0"].ranks[0] for plan in plans), reverse=True)
        True
    """
    if both := sorted(wishes.keys() & {"keep", "target_drop", "drop", "minimise"}):
        raise TypeError(f"pareto takes no {both[0]!r}: keeps holds the budgets")
    asked = Asked.of(**wishes)
    requests = [Request(rule=asked.rule, keep=check_keep(keep), floor=asked.floor_rule) for keep in keeps]
    for request in requests:
        replace(asked, keep=request.keep).check(model)
    planner = Planner.asked(model, source, asked)
    return plans_for(planner, requests, nested=nested, refine=asked.refine)


def plans_for(planner: Planner, requests: Iterable[Request], *, nested: bool = True, refine: bool = True) -> list[Plan]:
    """One plan for every request; see `pareto`."""
    requests, plans = list(requests), list[Plan]()
    planner = refined(planner, requests) if refine else planner
    for request in requests:
        plans.append(planner.plan(replace(request, within=plans[-1]) if nested and plans else request))
    return plans
