"""What options cost in the units of budgets."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from torch import nn

from ..formats import Format, get_format
from ..formats.both_sides import refuses
from ..metrics import get_metric
from ..network.site import Site
from ..network.sites import Sites
from ..plan import DENSE, Curve, Option, Plan, PlanRow, dense_option, site_of
from ..running.guards import unwrap
from .units import ASKED, COUNTED, Unit, held

NEEDS_EXAMPLE = (
    "a latency budget is measured: pass an input as example=, and engine= and threads= for what will run the network"
)
Options = Mapping[str, tuple[Curve, str]]  # by site, its options and the reason if a constraint leaves no choice


class Draft(Protocol):
    """Makes plans of one request."""

    def __call__(self, amounts: Mapping[str, float], usable: bool = True) -> Plan:
        """The plan within some budgets; only of what may save something, if `usable`."""


class Prices:
    """Prices that follow from the structure of the network: they are known before any plan is made.

    A subclass measures prices and learns from the plans that it sees; a planner asks both alike.

    Args:
        measured: units beside the counted ones.

    Attributes:
        dense: counts of the dense network, by unit.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sites,
        formats: Mapping[str, Format] | None = None,
        measured: Sequence[Unit] = (),
    ) -> None:
        self._sites = sites
        self._tables: dict[tuple[str, str], tuple[Curve, array[float]]] = {}  # by site and unit, the last curve's costs
        self.units: dict[str, Unit] = {unit.name: unit(model, sites, formats) for unit in (*COUNTED, *ASKED)}
        self.units |= {unit.name: unit for unit in measured}
        self.dense = self.planned(())

    def planned(self, rows: Sequence[PlanRow]) -> dict[str, float]:
        """Counts of the network that these rows describe."""
        return {name: unit.planned(rows) for name, unit in self.units.items()}

    def of(self, site: Site, options: Sequence[Option], unit: str) -> Sequence[float]:
        """Cost of every option of a site."""
        return self[unit].costs(site, options)

    def table(self, site: Site, curve: Curve, unit: str) -> array[float]:
        """Cost of every option of a curve, computed once for each curve unless it is measured."""
        known, costs = self._tables.get((site.name, unit), (None, array("d")))
        if known is not curve or self[unit].is_measured:
            costs = array("d", self.of(site, curve, unit))
            self._tables[site.name, unit] = curve, costs
        return costs

    def together(self, members: Sequence[tuple[Site, Curve]], unit: str) -> array[float]:
        """Cost of every option of several sites that have the same."""
        first, *others = (self.table(site, curve, unit) for site, curve in members)
        return array("d", map(sum, zip(first, *others, strict=True))) if others else first

    def rest(self, unit: str) -> float:
        """Cost of the network outside its sites; a time may be negative, as layers take longer alone."""
        return self.dense[unit] - sum(self.of(site, [dense_option(site)], unit)[0] for site in self._sites.values())

    def limit(self, unit: str, amount: float) -> float:
        """A budget for the whole network as an absolute number."""
        name = self[unit].name
        return amount * self.dense[name] if isinstance(amount, float) and amount <= 1 else float(amount)

    def __getitem__(self, unit: str) -> Unit:
        if unit not in self.units:
            raise ValueError(NEEDS_EXAMPLE)
        return self.units[unit]

    def usable(self, options: Options, *, certain: bool = False) -> Options:
        """The options of all sites that may save something, as far as is known; if `certain`, without estimates."""
        return options

    def learn(self, plan: Plan) -> bool:
        """Find out the prices of what a plan chose; returns whether one of them was an estimate."""
        return False

    def doubts(self, amounts: Mapping[str, float], fastest: Callable[[str], Plan | None]) -> bool:
        """Whether budgets that seem impossible may be met after all, now that the `fastest` network was examined."""
        return False

    def settled(self, draft: Draft, amounts: Mapping[str, float], least: Callable[[str], float]) -> Plan:
        """The final plan.

        Args:
            draft: makes plans.
            amounts: the budgets that were asked for.
            least: the least share of a unit that any plan has, as far as is known.
        """
        return draft(amounts)


def counts(
    model: nn.Module, sites: Sites, rows: Sequence[PlanRow] = (), keep: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Parameters, MACs and stored bytes of the network that these rows describe, and what budgets are about."""
    return held({unit.name: unit(model, sites).planned(rows) for unit in (*COUNTED, *ASKED)}, keep)


def recount(model: nn.Module, plan: Plan, sites: Sites) -> Plan:
    """Count an edited plan again: what its formats and ranks cost at these sites.

    Raises:
        ValueError: for a site that does not exist, an unknown format, or illegal ranks.
    """
    model, rows, metric = unwrap(model), [], get_metric(plan.metric)
    for row in plan.rows:
        site = site_of(row, sites)
        if row.format == DENSE:
            rows.append(replace(row, params=site.params, macs=site.macs))
            continue
        format = get_format(row.format)
        if reason := refuses(format, site, metric):
            raise ValueError(f"site {row.site!r} cannot have format {row.format!r}: {reason}")
        cost = format.cost(site, format.check(site, row.ranks), site.chain_bias(metric))
        rows.append(replace(row, params=cost.params, macs=cost.macs))
    dense, planned = counts(model, sites, keep=plan.keep), counts(model, sites, rows, plan.keep)
    if tuple(rows) != plan.rows:  # its latency was measured on another network
        return replace(plan, rows=tuple(rows), dense=dense, planned=planned, latency=None)
    return replace(plan, dense={**plan.dense, **dense}, planned={**plan.planned, **planned})
