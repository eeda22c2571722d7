"""Plans for a list of budgets from one profile, each inside the next larger one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..plan import Plan
from ..ranks import FreeRule, Rule
from ..running.verbs import verb
from .budgets import check_keep
from .planner import Planner
from .refine import refined


@verb
def pareto(
    planner: Planner,
    keeps: Sequence[Mapping[str, float]],
    rule: Rule,
    *,
    nested: bool = True,
    floor: FreeRule | None = None,
) -> list[Plan]:
    """One plan for every budget; nothing is profiled twice.

    Nested plans share their factors: a site that is factorised at a large budget keeps its format at all smaller ones,
    and no rank grows as the budget falls. That costs some error against plans of their own.

    Args:
        planner: makes plans.
        keeps: budgets, the largest first where plans are nested.
        rule: how ranks are chosen.
        nested: whether each plan has to lie inside the one before.
        floor: as for `Planner.plan`.

    Returns:
        The plans in the order of the budgets.

    Raises:
        ValueError: for a budget that cannot be met; of nested plans the formats of larger ones may be the reason.

    Example:
        >>> import torch, rankwise as rw
        >>> from rankwise import Planner
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        >>> planner = Planner.of(model, rw.find(model, torch.randn(1, 64)), metric="weight")
        >>> plans = pareto(planner, [{"params": 0.8}, {"params": 0.4}], rw.get_rule("knapsack"))
        >>> [plan["0"].ranks[0] for plan in plans] == sorted((plan["0"].ranks[0] for plan in plans), reverse=True)
        True
    """
    for keep in keeps:
        check_keep(keep)
    planner = refined(planner, rule, keeps, floor=floor)
    plans: list[Plan] = []
    for keep in keeps:
        plans.append(planner.plan(rule, keep, floor=floor, within=plans[-1] if nested and plans else None))
    return plans
