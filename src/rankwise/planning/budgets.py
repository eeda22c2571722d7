"""Budgets as users write them, read into plain numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from torch import nn

from .units import ASKED, COUNTED, UNITS

PER_CENT = 100  # no network has so few parameters, MACs or bytes: up to here a number is meant as per cent
_THOUSANDS = {"k": 1e3, "m": 1e6, "g": 1e9}


def check_keep(keep: Any) -> dict[str, int | float]:
    """Budgets as plain numbers: a fraction of the dense count as a float up to 1, else a whole number.

    A latency written with its unit becomes a number of microseconds.

    Raises:
        ValueError: for no budget, an unknown unit, or an amount that is neither a fraction nor a whole number above 0.

    Example:
        >>> check_keep({"macs": 0.5, "params": 120_000})
        {'macs': 0.5, 'params': 120000}
        >>> check_keep({"latency": "1.5ms"})
        {'latency': 1500}
    """
    if not isinstance(keep, Mapping) or not keep:
        meant = keep if isinstance(keep, float) and 0 < keep <= 1 else 0.5
        raise ValueError(f'keep needs a budget by its unit, not {keep!r}; write keep={{"macs": {meant}}}')
    amounts = {}
    for name, written in keep.items():
        if name not in UNITS:
            raise ValueError(f"unknown budget {name!r}; the budgets are {', '.join(UNITS)}")
        amount = UNITS[name].read(written)
        if isinstance(amount, str) or not is_number(amount) or not 0 < amount < math.inf:
            number = _meant(amount)
            fix = "" if number is None else f'; write keep={{"{name}": {number}}}'
            raise ValueError(f"the {name} budget must be a fraction up to 1 or a number above 0, not {amount!r}{fix}")
        amounts[name] = number = plain(amount)
        if number > 1 and number != int(number):
            raise ValueError(f"the {name} budget {amount!r} is neither a fraction up to 1.0 nor a whole number")
    return amounts


def check_units(model: nn.Module, keep: Mapping[str, int | float]) -> None:
    """Raise a ValueError for a number of parameters, MACs or bytes that was meant in per cent."""
    sizes = [parameter.numel() for parameter in model.parameters() if not nn.parameter.is_lazy(parameter)]
    if sum(sizes) <= 10 * PER_CENT:
        return  # a network this small may really be meant
    for unit in (*COUNTED, *ASKED):
        number = keep.get(unit.name, math.inf)
        if (number > 1 or isinstance(number, int)) and number <= PER_CENT:
            raise ValueError(
                f"the {unit.name} budget {number!r} is a number of {unit.title}, fewer than this network can have; "
                f'write keep={{"{unit.name}": {number / 100:g}}} for {number:g} % of the dense network'
                + (f', or keep={{"{unit.name}": 1.0}} for all of it' if number == 1 else "")
            )


def is_measured(keep: Mapping[str, Any] | None) -> bool:
    """Whether an engine has to measure one of the budgets."""
    return any(UNITS[name].is_measured for name in keep or {})


def _meant(amount: object) -> int | float | None:
    """What a text such as "50%" or "0.5M" stands for."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([%kmg]?)\s*", amount.lower()) if isinstance(amount, str) else None
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        number = 0.0
    if found is None or number <= 0:
        return None
    if found[2] == "%":
        return number / 100
    return round(number * _THOUSANDS[found[2]]) if found[2] else plain(number) if number <= 1 else round(number)


def is_number(value: object) -> bool:
    """Whether a value is a real number of any library, and not a boolean."""
    return isinstance(value, Real) and not isinstance(value, bool)


def plain(value: Any) -> int | float:
    """A number of any library, such as NumPy, as a Python number."""
    return int(value) if isinstance(value, Integral) else float(value)
