"""All that plans of one network have in common, whatever their rule and budget: curves, constraints, prices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from statistics import mean
from typing import TYPE_CHECKING, Any

from torch import nn

from ..formats.weights import site_weight
from ..names import METRICS, check_name
from ..network.sites import Sites
from ..plan import DENSE, Curve, Option, Plan, PlanRow, dense_option
from ..ranks import Candidates, FreeRule, Problem, Rule
from ..ranks.several import BudgetError, least_loss
from ..ranks.spectra import Spectra, joined, site_spectra
from ..running.exclusive import exclusive
from ..running.guards import unwrap
from ..statistics import Statistics
from ..statistics.gradients import fisher_energy
from .budgets import Prices, check_keep
from .constraints import Constraints
from .curves import check_curves, check_option, pinned
from .groups import SiteGroup, group_sites, summed
from .profile import DEFAULT_FORMATS, profile, site_metric
from .unmet import remainder

if TYPE_CHECKING:
    from ..plan import Done

NEEDS_STATISTICS = (
    "Fisher energies need statistics with gradients, also in the weight metric: pass rankwise.collect(model, data, "
    "gradients=True), on the command line DATA or a file of rankwise collect --gradients"
)


# Times are no whole numbers, and plans hold them in thousandths of a microsecond.
ROUNDING = {"params": 0.0, "macs": 0.0, "bytes": 0.0, "latency": 0.01}
_NAMES = {"latency": "microseconds"}


def check_request(rule: Rule, keep: Mapping[str, float] | None, evaluate: Callable[[Plan], float] | None) -> None:
    """Refuse a rule that lacks what it needs, before any long work begins.

    Raises:
        ValueError: naming what is missing, or a budget that is none.
    """
    if keep is not None:
        check_keep(keep)
    elif rule.needs_budget:
        raise ValueError(f"rule {rule.name!r} needs a budget, for instance keep={{'macs': 0.5}}")
    if rule.needs_evaluate and evaluate is None:
        raise ValueError(f"rule {rule.name!r} has to try plans: pass evaluate=, for instance rankwise.evaluate.Trials")


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Makes plans of one network; only rule and budget differ between them, and nothing is computed twice.

    Attributes:
        model: the dense network.
        sites: of it.
        metric: "input", "diagonal", "fisher" or "weight".
        shrink: share of the weight metric in it.
        options: site name to the options that the constraints leave, and the reason where they leave no choice.
        prices: of the options.
        spectra: singular values that the ranks of a format cut at a site.
        importance: Fisher energy of a site.
        fitted: the error of an option of a site, from a thorough fit.
        evaluate: tries a plan; None where nothing can be tried.
        tie: patterns; all sites of one get the same format and ranks.
    """

    model: nn.Module
    sites: Sites
    metric: str
    shrink: float
    options: Mapping[str, tuple[Curve, str]]
    prices: Prices
    spectra: Callable[[str, str], Spectra]
    importance: Callable[[str], float]
    fitted: Callable[[str, Option], float]
    evaluate: Callable[[Plan], float] | None = None
    tie: str | Sequence[str] = ()

    @classmethod
    @exclusive
    def of(
        cls,
        model: nn.Module,
        source: Statistics | Sites,
        *,
        metric: str = "input",
        shrink: float = 0.0,
        constraints: Constraints | None = None,
        formats: str | Sequence[str] | None = None,
        round_to: int | str | None = None,
        curves: Mapping[str, Curve] | None = None,
        done: Done[Curve] | None = None,
        evaluate: Callable[[Plan], float] | None = None,
        progress: Callable[[Iterable[Any], str], Iterable[Any]] | None = None,
    ) -> Planner:
        """Profile the network, or take given curves, and apply the constraints; arguments are those of `choose`.

        Raises:
            ValueError: as `choose` does.
        """
        model, constraints = unwrap(model), constraints or Constraints()
        sites = source.sites if isinstance(source, Statistics) else source
        sites.check_structure(model)
        check_name("metric", metric, METRICS)
        free = constraints.free(sites)
        if curves is None:
            curves = profile(
                model,
                source,
                formats=DEFAULT_FORMATS if formats is None else formats,
                metric=metric,
                shrink=shrink,
                round_to="auto" if round_to is None else round_to,
                only=free,
                done=done,
                progress=progress,
            )
        elif formats is not None or round_to is not None:
            name, value = ("formats", formats) if formats is not None else ("round_to", round_to)
            raise ValueError(f"{name}={value!r} has no effect on given curves; pass it to profile, which makes them")
        else:
            check_curves(curves, sites, free, metric)

        def spectra(name: str, format: str) -> Spectra:
            site = sites[name]
            two_sided = site_metric(source, site, metric, model, shrink)
            weight = site_weight(model, site)
            return site_spectra(site, two_sided.forth(weight), two_sided.inputs_of(weight), format)

        def importance(name: str) -> float:
            if not isinstance(source, Statistics):
                raise ValueError(NEEDS_STATISTICS)
            moments = source.require(name, gradients=True)
            if metric == "weight" or sites[name].looks_up:  # whose fits correct no means, so that those are errors too
                moments = moments.uncentred()
            return fisher_energy(site_weight(model, sites[name]), moments)

        fit = partial(pinned, model, source, metric=metric, shrink=shrink)

        def fitted(name: str, option: Option) -> float:
            return fit(sites[name], (option.format, option.ranks)).error

        return cls(
            model=model,
            sites=sites,
            metric=metric,
            shrink=shrink,
            options=constraints.options(sites, curves, fit),
            prices=Prices(model, sites),
            spectra=cache(spectra),
            importance=cache(importance),
            fitted=fitted,
            evaluate=evaluate,
            tie=constraints.tie,
        )

    @cached_property
    def groups(self) -> tuple[SiteGroup, ...]:
        """The sites as rules see them, those that are tied as one; ValueError for ties that cannot be."""
        return group_sites(self.sites, self.options, self.tie)

    @exclusive
    def plan(
        self,
        rule: Rule,
        keep: Mapping[str, float] | None = None,
        *,
        floor: FreeRule | None = None,
        within: Plan | None = None,
    ) -> Plan:
        """The plan to give out; here it is the `draft`, and arguments are the same."""
        return self.draft(rule, keep, floor=floor, within=within)

    @exclusive
    def draft(
        self,
        rule: Rule,
        keep: Mapping[str, float] | None = None,
        *,
        floor: FreeRule | None = None,
        within: Plan | None = None,
    ) -> Plan:
        """The plan of a rule, within budgets where there are some.

        Args:
            rule: how ranks are chosen.
            keep: the budgets.
            floor: a rule whose wish is the least that every site gets, unless it stays dense.
            within: a larger plan; where it factorises a site, the format stays and no rank grows.

        Raises:
            ValueError: for a budget that cannot be met, or a rule that lacks something or does not apply to a format.
        """
        check_request(rule, keep, self.evaluate)
        amounts = {} if keep is None else check_keep(keep)
        limits = {unit: self.prices.limit(unit, amount) for unit, amount in amounts.items()}
        problem = self.problem(limits, floor, within)
        try:
            picks = rule.choose(problem)
        except BudgetError as error:
            raise self._cannot_be_met(limits, error) from None
        rows = {}
        for group, site, pick in zip(self.groups, problem.sites, picks, strict=True):
            for name, option in group.own(site.options[pick.option]).items():
                check_option(self.sites[name], option, self.metric)
                why = group.reasons[name] or group.told(pick.why)
                if (by := self.sites[name].unpaired) and option.format != DENSE:
                    why += f"; fitted to the moments of its own inputs, whose rows are picked by {by}"
                rows[name] = PlanRow(site=name, **vars(option), why=why)
        plan = self._plan([rows[name] for name in self.sites], str(rule), amounts)
        assert all(plan.planned[unit] <= limit + ROUNDING[unit] for unit, limit in limits.items())
        return plan

    def problem(
        self, limits: Mapping[str, float], floor: FreeRule | None = None, within: Plan | None = None
    ) -> Problem:
        """What a rule has to decide within limits of the whole network; `floor` and `within` as for `plan`."""
        sites = []
        for group in self.groups:
            options = group.options
            if within is not None:
                options = tuple(o for o in options if all(_nested(o, within[name]) for name in group.curves))
            if floor is not None and not group.reasons[group.name]:
                enough = floor.enough(self._candidates(group, options, ()))
                options = tuple(option for option, kept in zip(options, enough, strict=True) if kept)
            if not options:
                raise ValueError(
                    f"site {group.name!r}: the floor of rule {str(floor)!r}, caps and the larger plan leave no option; "
                    f"lower the floor or raise the cap"
                )
            sites.append(self._candidates(group, options, limits))
        return Problem(
            sites=tuple(sites),
            limits={unit: limit - self.prices.rest(unit) for unit, limit in limits.items()},
            plan=self.trial,
            evaluate=self.evaluate,
        )

    def least(self, unit: str, keep: Mapping[str, float] | None = None) -> float:
        """The least share of a unit that any plan within the budgets has.

        Raises:
            ValueError: if the budgets themselves cannot be met.
        """
        limits = {other: self.prices.limit(other, amount) for other, amount in (keep or {}).items() if other != unit}
        problem = self.problem({unit: math.inf, **limits})
        others = [[site.costs[other] for other in limits] for site in problem.sites]
        try:
            chosen = least_loss(
                [site.costs[unit] for site in problem.sites], others, [problem.limits[other] for other in limits]
            )
        except BudgetError as error:
            raise self._cannot_be_met(limits, error) from None
        cost = sum(site.costs[unit][index] for site, index in zip(problem.sites, chosen, strict=True))
        return (cost + self.prices.rest(unit)) / self.prices.dense[unit]

    def _candidates(self, group: SiteGroup, options: Curve, units: Iterable[str]) -> Candidates:
        own = [group.own(option) for option in options]
        members = [(self.sites[name], [each[name] for each in own]) for name in group.curves]
        return Candidates(
            name=group.name,
            options=options,
            costs={
                unit: [sum(each) for each in zip(*(self.prices.of(*member, unit) for member in members), strict=True)]
                for unit in units
            },
            dense=summed([dense_option(site) for site, _ in members]),
            spectra=lambda format: joined([self.spectra(name, format) for name in group.curves]),
            importance=lambda: mean(self.importance(name) for name in group.curves),
            kind=self.sites[group.name].kind,
            members=len(members),
        )

    def trial(self, chosen: Mapping[str, Option]) -> Plan:
        """A plan of the given options, each of a site or of those tied to it, all other sites dense."""
        groups = {group.name: group for group in self.groups}
        built = {name: own for first, option in chosen.items() for name, own in groups[first].own(option).items()}
        rows = [
            PlanRow(site=name, **vars(built[name] if name in built else dense_option(site)))
            for name, site in self.sites.items()
        ]
        return self._plan(rows, "trial", {})

    def _plan(self, rows: Sequence[PlanRow], rule: str, amounts: Mapping[str, float]) -> Plan:
        return Plan(
            rows=tuple(rows),
            keep=dict(amounts),
            dense=self.prices.dense,
            planned=self.prices.planned(rows),
            metric=self.metric,
            shrink=self.shrink,
            rule=rule,
            fingerprint=self.sites.fingerprint,
        )

    def _cannot_be_met(self, limits: Mapping[str, float], error: BudgetError) -> ValueError:
        units = list(limits)
        unit, earlier = units[error.unit], units[: error.unit]
        limit, dense, least = limits[unit], self.prices.dense[unit], error.least + self.prices.rest(unit)
        name, others = _NAMES.get(unit, unit), [f"{limits[u]:,.0f} {_NAMES.get(u, u)}" for u in earlier]
        beside = f" together with at most {' and '.join(others)}" if others else ""
        reasons = {
            name: why or "no format makes it cheaper"
            for name, (options, why) in self.options.items()
            if all(option.format == DENSE for option in options)
        }
        rest = remainder(self.prices, self.sites, unit, reasons)
        return ValueError(
            f"a budget of {limit:,.0f} {name} ({limit / dense:.3f} of dense) cannot be met{beside}: with these formats "
            f"and constraints the network keeps at least {least:,.0f} ({least / dense:.3f}); "
            f"{rest + '; ' if rest else ''}raise the budget, or allow more sites or lower ranks"
        )


def _nested(option: Option, row: PlanRow) -> bool:
    """Whether an option is no larger than a row of a larger plan."""
    if row.format == DENSE or option.format == DENSE:
        return row.format == DENSE
    return option.format == row.format and all(own <= most for own, most in zip(option.ranks, row.ranks, strict=True))
