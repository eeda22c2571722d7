"""Gather what a report shows from the networks, their plan and data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch import nn

from ..evaluate import Changes, Outputs, changes, layer_errors
from ..network.sites import Sites
from ..plan import DENSE, Plan, PlanRow
from ..planning.planner import Planner
from ..planning.request import Request
from ..planning.units import UNITS
from ..planning.wishes import Asked
from ..ranks import RULES, get_rule
from ..statistics import Statistics
from .findings import Front, Layer, Point

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
BATCHES = 4  # run for errors of layers: more change them little
LONGEST = 400  # options of a picture


@dataclass(frozen=True, kw_only=True)
class Networks:
    """A compressed network, the dense one, and what the plan was made from."""

    dense: nn.Module
    small: nn.Module
    plan: Plan
    sites: Sites
    source: Statistics | Sites
    asked: Asked
    track: Callable[[Iterable[Any], str], Iterable[Any]]

    def planner(self) -> Planner:
        """The planner with the curves of all sites, at counted prices."""
        counted = replace(self.asked, example=None, keep=None, shrink=self.plan.shrink, progress=self.track)
        return Planner.asked(self.dense, self.source, counted)

    def layers(self, planner: Planner | None, inputs: Iterable[Any] | None) -> tuple[tuple[Layer, ...], int]:
        """Every site before and after, and the number of batches that measured errors come from."""
        measured: dict[str, float] = {}
        first = [] if inputs is None else list(islice(inputs, BATCHES))
        if first:
            names = [row.site for row in self.plan.rows if row.site in self.sites]
            measured = layer_errors(self.small, self.dense, self.track(first, "errors of layers"), names)
        rows = [row for row in self.plan.rows if row.site in self.sites]
        return tuple(self._layer(row, planner, measured.get(row.site)) for row in rows), len(first)

    def _layer(self, row: PlanRow, planner: Planner | None, measured: float | None) -> Layer:
        site = self.sites[row.site]
        values, cut = ((), None) if planner is None else spectrum(planner, row)
        options = () if planner is None or site.dense_because else planner.options[row.site][0]
        curve = sorted({(option.macs / site.macs, option.error) for option in options if site.macs})
        return Layer(
            name=row.site,
            kind=site.kind,
            shape=site.weight_shape,
            format=row.format,
            ranks=row.ranks,
            why=row.why,
            before=(site.params, site.macs),
            after=(row.params, row.macs),
            predicted=row.error,
            measured=measured,
            values=values,
            cut=cut,
            curve=tuple(_thinned(curve)),
        )


def spectrum(planner: Planner, row: PlanRow) -> tuple[tuple[float, ...], int | None]:
    """Singular values that the first rank of a site's format cuts, and that rank; nothing for a format without them."""
    try:
        unfoldings = planner.spectra(row.site, "svd" if row.format == DENSE else row.format)
    except ValueError:  # its ranks cut no singular values
        return (), None
    values = unfoldings[0][0].values_K
    return tuple(values.tolist()), min(row.ranks[0], len(values)) if row.ranks else None


def front(planner: Planner, plan: Plan) -> Front:
    """Plans for other budgets, by their predicted errors; budgets that cannot be met are left out."""
    unit = next((name for name in plan.keep if name in plan.dense and not UNITS[name].is_measured), "macs")
    named = get_rule(plan.rule) if plan.rule.partition(":")[0] in RULES else None
    rule = named if named and named.needs_budget and not named.needs_evaluate else get_rule("knapsack")
    plans = []
    for share in SHARES:
        try:
            plans.append(planner.plan(Request(rule=rule, keep={unit: share})))
        except ValueError:  # below what the formats reach
            break
    own = plan.planned[unit] / plan.dense[unit] if unit in plan.dense else None
    points = [_point(each, unit, f"{share:.0%}") for share, each in zip(SHARES, plans, strict=False)]
    if own is not None:
        points.append(replace(_point(plan, unit, "this network"), chosen=True))
    points.sort(key=lambda point: -point.share)
    return Front(unit=unit, title="sum of the layers' predicted errors", points=tuple(points), reference=0.0)


def changed(networks: Networks, pairs: Iterable[tuple[Any, Any]], classes_dim: int | None = None) -> Changes:
    """What changed in the answers."""
    inputs, labels = next(iter(pairs))
    outputs = Outputs.of(networks.dense, inputs, labels, classes_dim=classes_dim)
    return changes(networks.small, networks.dense, networks.track(pairs, "changed answers"), outputs)


def _point(plan: Plan, unit: str, label: str) -> Point:
    error = sum(row.error or 0.0 for row in plan.rows)
    return Point(label=label, share=plan.planned[unit] / plan.dense[unit], value=error)


def _thinned(values: Sequence[Any]) -> list[Any]:
    """At most `LONGEST` of the values, evenly spaced, the last one among them."""
    if len(values) <= LONGEST:
        return list(values)
    step = (len(values) - 1) / (LONGEST - 1)
    return [values[round(step * at)] for at in range(LONGEST)]
