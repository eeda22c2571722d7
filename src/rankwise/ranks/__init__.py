"""Rules that choose ranks, by name in `RULES`; they see options and budgets, never data or models."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ..names import check_name
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
    name, _, text = rule.partition(":") if isinstance(rule, str) else (repr(rule), "", "")
    check_name("rule", name, sorted(RULES))
    cls = RULES[name]
    types: dict[str, Any] = {field.name: type(field.default) for field in fields(cls)}  # type: ignore[arg-type]
    settings: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        key, _, value = part.strip().partition("=")
        if key not in types:
            offered = f"its settings are {', '.join(types)}" if types else "it has no settings"
            raise ValueError(f"rule {rule!r}: there is no setting {key!r}; {offered}")
        settings[key] = _read(rule, key, value, types[key])
    return cls(**settings)


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


def _read(rule: str, key: str, value: str, kind: type) -> Any:
    if kind is bool and value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        if kind is not bool:
            return kind(value)
    except ValueError:
        pass
    wanted = "true or false" if kind is bool else f"of type {kind.__name__}"
    raise ValueError(f"rule {rule!r}: {key} is {value!r}, which is not {wanted}")


__all__ = ["RULES", "Candidates", "FreeRule", "Pick", "Problem", "Rule", "get_floor", "get_rule"]
