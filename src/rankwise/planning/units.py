"""The units of budgets: how each counts a network and its options, and how its amounts are written."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from ..formats import Format, get_format
from ..network.site import Site
from ..network.sites import Sites
from ..plan import DENSE, Option, PlanRow, dense_option, option_of
from ..running.state import stored_bytes

_SECONDS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}


class Unit(ABC):
    """What a budget limits; an instance counts one network.

    A subclass says how to count. Its class attributes: `name` in budgets, `title` after an amount, `whole` for what
    shares are shares of, `rounding` for how far a plan's figure may exceed its limit, `is_measured` if an engine
    measures it, `idle` for why a site without cheaper options stays dense.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    whole: ClassVar[str]
    rounding: ClassVar[float] = 0.0
    is_measured: ClassVar[bool] = False
    idle: ClassVar[str] = "no format costs less than dense"

    @abstractmethod
    def planned(self, rows: Sequence[PlanRow]) -> float:
        """Amount of the network that rows describe; without rows, of the dense one."""

    @abstractmethod
    def costs(self, site: Site, options: Sequence[Option]) -> Sequence[float]:
        """Amount of every option of a site."""

    def beside(self) -> Mapping[str, float]:
        """Known amounts of layers that are not sites, by name."""
        return {}

    @staticmethod
    def read(amount: Any) -> Any:
        """An amount as a number, if it may be written as text."""
        return amount

    @staticmethod
    def shown(amount: float) -> str:
        """An amount for people."""
        return f"{amount:,}"


class Counted(Unit):
    """A unit that follows from the structure of the network."""

    def __init__(self, model: nn.Module, sites: Sites, formats: Mapping[str, Format] | None = None) -> None:
        self._model, self._sites, self._formats = model, sites, formats

    def _built(self, rows: Sequence[PlanRow]) -> list[tuple[PlanRow, Site]]:
        return [(row, self._sites[row.site]) for row in rows if row.format != DENSE]


class Summed(Counted):
    """A unit that sites, options and rows of plans hold an amount of, by its name."""

    def planned(self, rows: Sequence[PlanRow]) -> float:
        total: float = getattr(self._sites, f"total_{self.name}")
        return total + sum(getattr(row, self.name) - getattr(site, self.name) for row, site in self._built(rows))

    def costs(self, site: Site, options: Sequence[Option]) -> Sequence[float]:
        return tuple([getattr(option, self.name) for option in options])


class Params(Summed):
    """Parameters."""

    name = title = whole = "params"


class Linear(Counted):
    """Parameters of the layers that may be factorised: no embeddings, heads of language models, norms."""

    name = "linear"
    title = "params of the layers that may be factorised"
    whole = "params of these layers"

    def planned(self, rows: Sequence[PlanRow]) -> float:
        total = sum(site.params for site in self._sites.values() if _may_be(site))
        return total + sum(row.params - site.params for row, site in self._built(rows) if _may_be(site))

    def costs(self, site: Site, options: Sequence[Option]) -> Sequence[float]:
        return tuple([option.params * _may_be(site) for option in options])


def _may_be(site: Site) -> bool:
    """Whether a site may be factorised without being named."""
    return site.stays_dense is None


class Macs(Summed):
    """Multiply-accumulates for the example input."""

    name = title = "macs"
    whole = "MACs"

    def beside(self) -> Mapping[str, float]:
        return self._sites.other_macs


class Bytes(Counted):
    """Bytes as stored, each tensor once."""

    name = title = whole = "bytes"

    def __init__(self, model: nn.Module, sites: Sites, formats: Mapping[str, Format] | None = None) -> None:
        super().__init__(model, sites, formats)
        self._freed: dict[str, float] = {}  # site -> bytes that are freed when it is replaced

    def planned(self, rows: Sequence[PlanRow]) -> float:
        built = self._built(rows)
        gone = [name for _, site in built for name in (site.name, *site.aliases)]
        return stored_bytes(self._model, without=gone) + sum(self._chain(site)(row) for row, site in built)

    def costs(self, site: Site, options: Sequence[Option]) -> Sequence[float]:
        if site.name not in self._freed:
            others = stored_bytes(self._model, without=(site.name, *site.aliases))
            self._freed[site.name] = self.planned(()) - others
        own = self._freed[site.name]
        chain = self._chain(site)
        return tuple([own if option.format == DENSE else chain(option) for option in options])

    def _chain(self, site: Site) -> Callable[[Option | PlanRow], int]:
        """Bytes of a site's chains: numbers of the weight's width, and indices."""
        width = getattr(torch, site.dtype).itemsize
        format_of = cache(partial(get_format, formats=self._formats))
        return lambda built: built.params * width + 4 * format_of(built.format).indices(site, tuple(built.ranks))


class Times(Protocol):
    """Microseconds of a network and of the options of its sites."""

    dense: float

    def costs(self, site: Site, options: Sequence[Option]) -> Sequence[float]:
        """Microseconds of every option."""


class Latency(Unit):
    """Microseconds of one forward, as an engine measures them."""

    name = "latency"
    title = "microseconds"
    whole = "time"
    rounding = 0.01  # times are fractions, which plans store to three digits
    is_measured = True
    idle = "no format is faster than dense"

    def __init__(self, times: Times, sites: Sites) -> None:
        self._times, self._sites = times, sites

    def planned(self, rows: Sequence[PlanRow]) -> float:
        saved = 0.0
        for row in rows:
            if row.format != DENSE:
                site = self._sites[row.site]
                dense, own = self._times.costs(site, [dense_option(site), option_of(row)])
                saved += dense - own
        return round(self._times.dense - saved, 3)

    def costs(self, site: Site, options: Sequence[Option]) -> Sequence[float]:
        return self._times.costs(site, options)

    @staticmethod
    def read(amount: Any) -> Any:
        return microseconds(amount) if isinstance(amount, str) else amount

    @staticmethod
    def shown(amount: float) -> str:
        return f"{amount / 1000:.3f} ms"


# What every plan holds, and what those hold that have such a budget.
COUNTED: tuple[type[Counted], ...] = (Params, Macs, Bytes)
ASKED: tuple[type[Counted], ...] = (Linear,)
UNITS: dict[str, type[Unit]] = {**{unit.name: unit for unit in (*COUNTED, *ASKED)}, Latency.name: Latency}


def held(amounts: Mapping[str, float], keep: Mapping[str, float] | None) -> dict[str, float]:
    """Of amounts by unit those that a plan with these budgets holds."""
    left_out = {unit.name for unit in ASKED} - (keep or {}).keys()
    return {name: amount for name, amount in amounts.items() if name not in left_out}


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
        raise ValueError(f"the latency {text!r} is not a time such as 8ms, 800us or 0.5s, of at least 2us")
    return amount
