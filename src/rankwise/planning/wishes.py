"""What a user asks of a plan, checked before any data is read or any network is run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from ..formats import get_format
from ..layers.kinds import site_kind
from ..names import METRICS, check_name
from ..network.patterns import matching, near
from ..plan import DENSE
from ..ranks import Rule, get_floor, get_rule
from ..running.guards import unwrap
from .budgets import BUDGETS, check_keep, check_units, is_number
from .constraints import Pin, parse_pin
from .profile import check_step


def check_wishes(
    model: nn.Module,
    *,
    keep: Mapping[str, float | str] | None = None,
    rule: str | Rule = "knapsack",
    floor_rule: str | Rule | None = None,
    minimise: str = "macs",
    formats: str | Sequence[str] | None = None,
    metric: str = "input",
    include: str | Sequence[str] = ("*",),
    ignore: str | Sequence[str] = (),
    pin: Mapping[str, Pin] | None = None,
    floor: Mapping[str, float] | None = None,
    cap: Mapping[str, float] | None = None,
    tie: str | Sequence[str] = (),
    round_to: int | str | None = None,
    **_: Any,
) -> None:
    """Refuse names that do not exist, patterns that match no layer, and budgets of another unit.

    Args:
        model: the network, whose layers' names patterns are compared with.
        keep, rule, floor_rule, minimise, formats, metric, include, ignore, pin, floor, cap, tie, round_to: as for
            `choose`; further arguments of it are let pass.

    Raises:
        ValueError: naming the first that is wrong, and what there is.

    Example:
        >>> check_wishes(nn.Sequential(nn.Linear(2, 2)), ignore="head")
        Traceback (most recent call last):
        ValueError: pattern 'head' matches no site; near names are: 0
    """
    get_rule(rule)
    get_floor(floor_rule)
    if keep is not None:
        check_units(unwrap(model), check_keep(keep))
    if minimise not in BUDGETS:
        raise ValueError(f"minimise is {minimise!r}; it is one of {', '.join(BUDGETS)}")
    for name in _several(formats or ()):
        if name != "auto":
            get_format(name)
    check_name("metric", metric, METRICS)
    if round_to is not None:
        check_step(round_to)
    for wanted in (pin or {}).values():
        name, _ranks = parse_pin(wanted)
        if name != DENSE:
            get_format(name)
    for word, bounds in (("floor", floor), ("cap", cap)):
        for pattern, value in (bounds or {}).items():
            if not is_number(value) or not value > 0:
                raise ValueError(f"the {word} of {pattern!r} must be a rank or a fraction up to 1.0, not {value!r}")
    patterns = [*_several(include), *_several(ignore), *(pin or {}), *(floor or {}), *(cap or {}), *_several(tie)]
    check_patterns(model, patterns)


def check_patterns(model: nn.Module, patterns: Iterable[str]) -> None:
    """Refuse patterns that match no layer of a kind that can be factorised.

    Raises:
        ValueError: naming the pattern, and near names.
    """
    layers = [name for name, part in unwrap(model).named_modules(remove_duplicate=False) if site_kind(part)]
    for pattern in patterns:
        if layers and not matching(pattern, layers):
            raise ValueError(f"pattern '{pattern}' matches no site; near names are: {near(pattern, layers)}")


def _several(names: str | Sequence[str]) -> Sequence[str]:
    return [names] if isinstance(names, str) else names
