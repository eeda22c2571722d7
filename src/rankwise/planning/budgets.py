"""Budgets: what they may be, what every option costs in their units, and what a whole network counts to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, Protocol

import torch
from torch import nn

from ..formats import get_format
from ..formats.both_sides import refuses
from ..network.site import Site
from ..network.sites import Sites
from ..plan import DENSE, Option, Plan, PlanRow, dense_option, option_of, site_of
from ..running.guards import unwrap
from ..running.state import stored_bytes

COUNTS = ("params", "macs", "bytes")
# Latency is measured, in microseconds: a budget above 1 is a number of them.
BUDGETS = (*COUNTS, "latency")
# Fewer parameters, MACs or bytes than this are no network: somebody means per cent.
PER_CENT = 100
_THOUSANDS = {"k": 1e3, "m": 1e6, "g": 1e9}
_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


class Clock(Protocol):
    """Microseconds of a network and of the options of its sites."""

    dense: float

    def costs(self, site: Site, options: Sequence[Option]) -> Sequence[float]:
        """Of every option."""


def check_keep(keep: Any) -> dict[str, int | float]:
    """Budgets as plain numbers: a fraction of the dense count as a float up to 1, else a whole number.

    A latency may be written with its unit, and is a number of microseconds then.

    Raises:
        ValueError: if there is none, one is unknown, or its amount is neither a fraction nor a whole number above 0.

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
    for unit, amount in keep.items():
        if unit not in BUDGETS:
            raise ValueError(f"unknown budget {unit!r}; the budgets are {', '.join(BUDGETS)}")
        if unit == "latency" and isinstance(amount, str):
            amount = microseconds(amount)
        if isinstance(amount, str) or not is_number(amount) or not 0 < amount < math.inf:
            number = _meant(amount)
            fix = "" if number is None else f'; write keep={{"{unit}": {number}}}'
            raise ValueError(f"the {unit} budget must be a fraction up to 1 or a number above 0, not {amount!r}{fix}")
        amounts[unit] = number = plain(amount)
        if number > 1 and number != int(number):
            raise ValueError(f"the {unit} budget {amount!r} is neither a fraction up to 1.0 nor a whole number")
    return amounts


def check_units(model: nn.Module, keep: Mapping[str, int | float]) -> None:
    """Refuse a number of counts that was meant as a share in per cent.

    Raises:
        ValueError: with what to write instead.
    """
    sizes = [parameter.numel() for parameter in model.parameters() if not nn.parameter.is_lazy(parameter)]
    if sum(sizes) <= 10 * PER_CENT:
        return  # so small a network may be meant
    for unit, number in keep.items():
        if unit in COUNTS and (number > 1 or isinstance(number, int)) and number <= PER_CENT:
            raise ValueError(
                f"the {unit} budget {number!r} is a number of {unit}, fewer than this network can have; "
                f'write keep={{"{unit}": {number / 100:g}}} for {number:g} % of the dense network'
                + (f', or keep={{"{unit}": 1.0}} for all of it' if number == 1 else "")
            )


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


def microseconds(text: str) -> int:
    """A time such as "8ms" or "0.5s" as a whole number of microseconds.

    Raises:
        ValueError: for anything else, or less than two microseconds.
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*(us|µs|ms|s)\s*", text)
    try:
        amount = round(float(found[1]) * _SECONDS[found[2]] * 1e6) if found else 0
    except (ValueError, OverflowError):
        amount = 0
    if amount < 2:
        raise ValueError(f"the latency {text!r} is no time such as 8ms, 800us or 0.5s, of at least 2us")
    return amount


def is_number(value: object) -> bool:
    """Whether it is a real number of any library; truth values are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def plain(value: Any) -> int | float:
    """A number of any library, such as numpy, as Python's own."""
    return int(value) if isinstance(value, Integral) else float(value)


NEEDS_EXAMPLE = (
    "a latency budget is measured: pass an input as example=, and engine= and threads= for what will run the network"
)


class Prices:
    """What the options of a network's sites cost in each unit.

    Args:
        model: the dense network.
        sites: of it.
        clock: tells times, where latency is a budget.

    Attributes:
        dense: counts of the dense network.
    """

    def __init__(self, model: nn.Module, sites: Sites, clock: Clock | None = None) -> None:
        self._model = model
        self._sites = sites
        self._clock = clock
        self._freed: dict[str, float] = {}  # site -> bytes that go with it
        self.dense: dict[str, float] = self.planned(())

    def planned(self, rows: Sequence[PlanRow]) -> dict[str, float]:
        """Counts of the network that rows make, and what it takes where there is a clock."""
        planned = counts(self._model, self._sites, rows)
        if self._clock is not None:
            saved = 0.0
            for row in rows:
                if row.format != DENSE:
                    dense, own = self._clock.costs(
                        self._sites[row.site], [dense_option(self._sites[row.site]), option_of(row)]
                    )
                    saved += dense - own
            planned["latency"] = round(self._clock.dense - saved, 3)
        return planned

    def of(self, site: Site, options: Sequence[Option], unit: str) -> Sequence[float]:
        """Cost of every option of a site."""
        if unit == "latency":
            if self._clock is None:
                raise ValueError(NEEDS_EXAMPLE)
            return self._clock.costs(site, options)
        if unit == "params":
            return tuple([option.params for option in options])
        if unit == "macs":
            return tuple([option.macs for option in options])
        own = self._own_bytes(site)
        return tuple([own if option.format == DENSE else _chain_bytes(site, option) for option in options])

    def rest(self, unit: str) -> float:
        """What the network costs beside its sites; a time may be below 0, as layers by themselves take a bit longer."""
        return self.dense[unit] - sum(self.of(site, [dense_option(site)], unit)[0] for site in self._sites.values())

    def limit(self, unit: str, amount: int | float) -> float:
        """A budget for the whole network as an absolute number."""
        if unit not in self.dense:
            raise ValueError(NEEDS_EXAMPLE)
        return amount * self.dense[unit] if isinstance(amount, float) and amount <= 1 else float(amount)

    def _own_bytes(self, site: Site) -> float:
        if site.name not in self._freed:
            others = stored_bytes(self._model, without=(site.name, *site.aliases))
            self._freed[site.name] = self.dense["bytes"] - others
        return self._freed[site.name]


def counts(model: nn.Module, sites: Sites, rows: Sequence[PlanRow] = ()) -> dict[str, float]:
    """Parameters, MACs for the example input, and bytes as stored, each tensor once, of the network that rows make."""
    built = [(row, sites[row.site]) for row in rows if row.format != DENSE]
    gone = [name for _, site in built for name in (site.name, *site.aliases)]
    return {
        "params": sites.total_params + sum(row.params - site.params for row, site in built),
        "macs": sites.total_macs + sum(row.macs - site.macs for row, site in built),
        "bytes": stored_bytes(model, without=gone) + sum(_chain_bytes(site, row) for row, site in built),
    }


def recount(model: nn.Module, plan: Plan, sites: Sites) -> Plan:
    """The plan with the counts that its formats and ranks have on these sites, after a person edited it.

    Raises:
        ValueError: for a site that does not exist, an unknown format, or ranks that are not legal.
    """
    model, rows = unwrap(model), []
    for row in plan.rows:
        site = site_of(row, sites)
        if row.format == DENSE:
            rows.append(replace(row, params=site.params, macs=site.macs))
            continue
        format = get_format(row.format)
        if reason := refuses(format, site, plan.metric):
            raise ValueError(f"site {row.site!r} cannot have format {row.format!r}: {reason}")
        cost = format.cost(site, format.check(site, row.ranks), site.chain_bias(plan.metric))
        rows.append(replace(row, params=cost.params, macs=cost.macs))
    dense, planned = counts(model, sites), counts(model, sites, rows)
    if tuple(rows) != plan.rows:  # another network than the one that was measured
        return replace(plan, rows=tuple(rows), dense=dense, planned=planned, latency=None)
    return replace(plan, dense={**plan.dense, **dense}, planned={**plan.planned, **planned})


def _chain_bytes(site: Site, built: Option | PlanRow) -> int:
    """Bytes of a chain as stored: numbers of the weight's width, and indices."""
    width = torch.empty((), dtype=getattr(torch, site.dtype)).element_size()
    return built.params * width + 4 * get_format(built.format).indices(site, tuple(built.ranks))
