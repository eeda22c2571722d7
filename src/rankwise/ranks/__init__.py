"""Rules that choose ranks, by name in `RULES`; they see options and budgets, never data or models."""

from __future__ import annotations

from ..names import made_of
from .base import Candidates, Pick, Problem, Rule
from .bayesian import Bayesian
from .bolaco import Bolaco
from .budgeted import Knapsack
from .continuous import Continuous
from .drank import DRank
from .energy import Energy
from .entropy import EffectiveRank, StableRank
from .fisher import Fisher
from .free import FreeRule
from .minimax import Minimax
from .noise import Evbmf, GavishDonoho
from .sensitivity import Sensitivity
from .uniform import Uniform
from .zero_sum import ZeroSum

RULES: dict[str, type[Rule]] = {
    rule.name: rule
    for rule in (
        *(Knapsack, Fisher, Sensitivity, Bayesian, Bolaco, ZeroSum, Continuous, Minimax, DRank, Uniform),
        *(Energy, EffectiveRank, StableRank, Evbmf, GavishDonoho),
    )
}


def get_rule(rule: str | Rule) -> Rule:
    """A rule by its name, with settings after a colon: "knapsack", "energy:share=0.99".

    Raises:
        ValueError: for an unknown rule (with near names) or setting, or a value that it cannot have.

    Example:
        >>> get_rule("knapsack").name
        'knapsack'
    """
    if isinstance(rule, Rule):
        return rule
    read: Rule = made_of("rule", rule if isinstance(rule, str) else repr(rule), RULES)
    return read


def get_floor(rule: str | Rule | None) -> FreeRule | None:
    """A rule that can be the floor below another one; a ValueError for a rule that needs a budget itself."""
    if rule is None:
        return None
    floor = get_rule(rule)
    if not isinstance(floor, FreeRule) or floor.needs_budget:
        fit = [name for name, cls in RULES.items() if issubclass(cls, FreeRule) and not cls.needs_budget]
        raise ValueError(
            f"rule {floor.name!r} cannot be a floor: it needs a budget itself; floors are {', '.join(fit)}"
        )
    return floor


__all__ = ["RULES", "Candidates", "FreeRule", "Pick", "Problem", "Rule", "get_floor", "get_rule"]
