"""What is asked of one plan: rule, budgets, floor, larger plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..plan import Plan
from ..ranks import FreeRule, Rule
from .budgets import check_keep


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of one plan.

    Attributes:
        keep: the budgets, all met; None for none.
        floor: a rule for the least rank of every site that does not stay dense.
        within: a larger plan; sites that it factorises keep their format, and no rank grows.

    Raises:
        ValueError: for an invalid budget.

    Example:
        >>> from rankwise import get_rule
        >>> Request(rule=get_rule("knapsack"), keep={"macs": 0.5}).amounts
        {'macs': 0.5}
    """

    rule: Rule
    keep: Mapping[str, float] | None = None
    floor: FreeRule | None = None
    within: Plan | None = None

    def __post_init__(self) -> None:
        if self.keep is not None:
            object.__setattr__(self, "keep", check_keep(self.keep))

    @property
    def amounts(self) -> dict[str, float]:
        """The budgets by unit; empty without budgets."""
        return dict(self.keep or {})

    def check(self, evaluate: Callable[[Plan], float] | None) -> None:
        """Raise a ValueError for a rule that lacks what it needs, before any long work begins."""
        if self.keep is None and self.rule.needs_budget:
            raise ValueError(f"rule {self.rule.name!r} needs a budget, for instance keep={{'macs': 0.5}}")
        if self.rule.needs_evaluate and evaluate is None:
            raise ValueError(
                f"rule {self.rule.name!r} has to try plans: pass evaluate=, for instance rankwise.evaluate.Trials"
            )
