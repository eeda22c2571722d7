"""The error for budgets that cannot be met."""

from __future__ import annotations


class BudgetError(ValueError):
    """No plan meets a budget together with those before it.

    Attributes:
        unit: number of the budget.
        least: cost of the cheapest plan within the budgets before it.
    """

    def __init__(self, unit: int, limit: float, least: float) -> None:
        super().__init__(f"budget {unit} of {limit:,.0f} cannot be met: the cheapest plan costs {least:,.0f}")
        self.unit = unit
        self.least = least
