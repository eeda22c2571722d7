"""What all plans of one network share, whatever their rule and budget: curves, constraints, prices."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from statistics import mean
from typing import TYPE_CHECKING

from torch import nn

from ..formats import Format, Ranks, get_format
from ..formats.weights import site_weight
from ..latency.meter import Meter
from ..latency.table import Table
from ..linalg.reduced_rank import slopes as first_order
from ..metrics import FitMetric
from ..network.sites import Sites
from ..plan import DENSE, Curve, Option, Plan, PlanRow, dense_option
from ..ranks import Candidates, FreeRule, Problem
from ..ranks.solvers import BudgetError, least_loss
from ..ranks.spectra import Spectra, joined, site_spectra
from ..running.exclusive import exclusive
from ..running.guards import unwrap
from ..statistics import Statistics
from ..statistics.gradients import fisher_energy
from .budgets import is_measured
from .curves import check_curves, check_option, pinned, reached
from .groups import SiteGroup, group_sites, summed
from .measured_prices import MeasuredPrices
from .prices import Options, Prices
from .profile import profile, site_metric
from .request import Request
from .units import Unit, held
from .unmet import remainder
from .wishes import Asked, Wishes

if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = logging.getLogger("rankwise")

NEEDS_STATISTICS = (
    "Fisher energies need statistics with gradients, also in the weight metric: pass rankwise.collect(model, data, "
    "gradients=True), on the command line DATA or a file of rankwise collect --gradients"
)
NEEDS_LOSS = (
    'the statistics hold no gradients of a loss on labels: pass rankwise.collect(model, data, gradients="weights", '
    "loss=...); of a language model in transformers with statistics.gradients.stated_loss, on batches WithLabels"
)
ONLY_SVD = 'pass formats=["svd"] and a metric that does not weight outputs, such as "uncentred"'
JOINT_IN_TIME = (
    "times are measured for single layers, and these sites join layers around hidden units; find or collect them "
    "without joint=True for a latency budget, or give a budget in params, linear or macs"
)
# With measured prices a plan is made again until nothing that it chose is an estimate, at most this often.
ROUNDS = 8


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Makes plans of one network for any request; nothing is computed twice.

    Attributes:
        shrink: share of the weight metric in it.
        options: by site name, the options that the constraints leave, and the reason if they leave no choice.
        prices: what options cost, and how that becomes known.
        spectra: singular values that the ranks of a format cut off, by site and format.
        reached: the error that a fit of a site's option reaches.
        evaluate: tries a plan; None if plans cannot be tried.
        tie: patterns; all sites that match one get the same format and ranks.
        uniform: whether all hidden layers of one width keep the same number of units.
        formats: replace registered ones of the same names.
    """

    model: nn.Module
    sites: Sites
    metric: FitMetric
    shrink: float
    options: Mapping[str, tuple[Curve, str]]
    prices: Prices
    spectra: Callable[[str, str], Spectra]
    importance: Callable[[str], float]
    predicted: Callable[[str], Mapping[tuple[str, Ranks], float]]
    slopes: Callable[[str], Sequence[float]]
    reached: Callable[[str, Option], float]
    evaluate: Callable[[Plan], float] | None = None
    tie: str | Sequence[str] = ()
    uniform: bool = False
    formats: Mapping[str, Format]

    @classmethod
    def of(cls, model: nn.Module, source: Statistics | Sites, **wishes: Unpack[Wishes]) -> Planner:
        """Profile the network, or take given curves, and apply the constraints.

        Args:
            model: the dense network.
            source: its statistics, or only its sites.
            **wishes: as for `choose`; an `example` adds latency to the prices.
        """
        return cls.asked(model, source, Asked.of(**wishes))

    @classmethod
    @exclusive
    def asked(cls, model: nn.Module, source: Statistics | Sites, asked: Asked) -> Planner:
        """As `of`, for arguments that are read already."""
        model, metric, shrink, constraints = unwrap(model), asked.metric, asked.shrink, asked.constraints
        sites = source.sites if isinstance(source, Statistics) else source
        sites.check_structure(model)
        formats, curves = asked.known_formats, _curves(model, source, sites, asked)

        def spectra(name: str, format: str) -> Spectra:
            site = sites[name]
            two_sided = site_metric(source, site, metric, model, shrink)
            weight = site_weight(model, site)
            return site_spectra(site, two_sided.forth(weight), two_sided.inputs_of(weight), get_format(format, formats))

        def predicted(name: str) -> dict[tuple[str, Ranks], float]:
            site = sites[name]
            if metric.needs_gradients or len(site.weight_shape) != 2 or site.looks_up:
                return {}
            gradients = source.require(name, gradients=True).gradients if isinstance(source, Statistics) else None
            if gradients is None or gradients.lookups_DD is not None:
                return {}
            weight = site_weight(model, site)
            (inputs,) = site_metric(source, site, metric, model, shrink).inputs_of(weight)
            names = {option.format for option in curves[name] if option.format != DENSE}
            return {
                (each, ranks): loss
                for each in sorted(names)
                for ranks, loss in get_format(each, formats)
                .predicted(site, weight, inputs, gradients.second_GTT[0])
                .items()
            }

        def slopes(name: str) -> list[float]:
            site = sites[name]
            if not isinstance(source, Statistics):
                raise ValueError(NEEDS_STATISTICS)
            gradients = source.require(name, gradients=True).gradients
            if gradients is None or gradients.cross_GTT is None:
                raise ValueError(f"site {name!r}: {NEEDS_LOSS}")
            two_sided = site_metric(source, site, metric, model, shrink)
            weight, (inputs, *others) = site_weight(model, site), two_sided.inputs
            if others or two_sided.root_GTT is not None or {o.format for o in curves[name]} - {DENSE, "svd"}:
                raise ValueError(f"site {name!r}: first-order losses are of svd alone, without groups; {ONLY_SVD}")
            found: list[float] = first_order(weight.flatten(1), inputs, gradients.cross_GTT[0]).tolist()
            return found

        def importance(name: str) -> float:
            if not isinstance(source, Statistics):
                raise ValueError(NEEDS_STATISTICS)
            moments = source.require(name, gradients=True)
            # Fits that do not correct the mean of the output have its error too.
            if not (metric.centred and sites[name].chain_bias(metric)):
                moments = moments.uncentred()
            return fisher_energy(site_weight(model, sites[name]), moments)

        fit = partial(pinned, model, source, metric=metric, shrink=shrink, formats=formats)
        nearly = partial(reached, model, source, metric=metric, shrink=shrink, formats=formats)
        options: Options = constraints.options(sites, curves, fit, formats)
        if asked.formats is None and any(rule and rule.needs_spectra for rule in (asked.rule, asked.floor_rule)):
            options = _with_spectra(options, sites)
        prices = _prices(model, sites, options, formats, asked)
        return cls(
            model=model,
            sites=sites,
            metric=metric,
            shrink=shrink,
            options=options,
            prices=prices,
            spectra=cache(spectra),
            importance=cache(importance),
            predicted=cache(predicted),
            slopes=cache(slopes),
            reached=lambda name, option: nearly(sites[name], option),
            evaluate=asked.evaluate,
            tie=constraints.tie,
            uniform=constraints.uniform,
            formats=formats,
        )

    @cached_property
    def groups(self) -> tuple[SiteGroup, ...]:
        """The sites as rules see them, tied ones as one; a ValueError for ties that are impossible."""
        return group_sites(self.sites, self.options, self.tie, self.uniform)

    @exclusive
    def plan(self, request: Request) -> Plan:
        """The final plan: a `draft`, checked as a whole if prices are measured.

        Measured prices may ask for drafts with further budgets of their own, which the plan does not keep.

        Raises:
            ValueError: for a budget that cannot be met, or a rule that lacks something or does not apply to a format.
        """

        def draft(amounts: Mapping[str, float], usable: bool = True) -> Plan:
            plan = self.draft(replace(request, keep=amounts or None), usable=usable)
            return replace(plan, keep=request.amounts)

        return self.prices.settled(draft, request.amounts, self.least)

    @exclusive
    def draft(self, request: Request, *, usable: bool = True) -> Plan:
        """The plan of a rule within the budgets; nothing that it chooses has an estimated price.

        Options that cost more time than the dense layer are left out, unless budgets that are not about time cannot be
        met without them.

        Args:
            usable: whether to leave them out.

        Raises:
            ValueError: as for `plan`, but never because of an estimate.
        """
        if not usable:
            return self._chosen(request)
        try:
            return self._certain(request)
        except ValueError:
            if self.prices.doubts(request.amounts, partial(self._fastest, request)):
                return self._certain(request)
            if is_measured(request.amounts):
                raise
            return self._chosen(request)

    def _certain(self, request: Request) -> Plan:
        for _ in range(ROUNDS):
            plan = self._usable()._chosen(request)
            if not self.prices.learn(plan):
                return plan
        return self._usable(certain=True)._chosen(request)

    def _usable(self, *, certain: bool = False) -> Planner:
        """The planner restricted to options that may save something."""
        options = self.prices.usable(self.options, certain=certain)
        return self if options is self.options else replace(self, options=options)

    def _fastest(self, request: Request, unit: str) -> Plan | None:
        """The plan with the least of a unit; None if it saves nothing, or something else forbids it."""
        least = self.least(unit, request.amounts) * (1 + 1e-6)
        if least >= 1:
            return None
        try:
            return self._certain(replace(request, keep={**request.amounts, unit: least}))
        except ValueError:  # a floor or a larger plan
            return None

    def _chosen(self, request: Request) -> Plan:
        request.check(self.evaluate)
        limits = {unit: self.prices.limit(unit, amount) for unit, amount in request.amounts.items()}
        problem = self.problem(limits, request.floor, request.within)
        try:
            picks = request.rule.choose(problem)
        except BudgetError as error:
            raise self._cannot_be_met(limits, error) from None
        rows = {}
        for group, site, pick in zip(self.groups, problem.sites, picks, strict=True):
            for name, option in group.own(site.options[pick.option]).items():
                check_option(self.sites[name], option, self.metric, self.formats)
                why = group.reasons[name] or group.told(pick.why)
                if (by := self.sites[name].unpaired) and option.format != DENSE:
                    why += f"; fitted to the moments of its own inputs, whose rows are picked by {by}"
                rows[name] = PlanRow(site=name, **vars(option), why=why)
        plan = self._plan([rows[name] for name in self.sites], str(request.rule), request.amounts)
        assert all(plan.planned[unit] <= limit + self.prices[unit].rounding for unit, limit in limits.items())
        return plan

    def problem(
        self, limits: Mapping[str, float], floor: FreeRule | None = None, within: Plan | None = None
    ) -> Problem:
        """What a rule must decide within limits on the whole network; `floor` and `within` as for `Request`."""
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
        """The least share of a unit that a plan within the budgets can have, as far as is known now."""
        return self._usable()._least(unit, keep)

    def _least(self, unit: str, keep: Mapping[str, float] | None) -> float:
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

    def _candidates(self, group: SiteGroup, options: Curve, units: Collection[str]) -> Candidates:
        members = [(self.sites[name], curve) for name, curve in group.curves_of(options).items()]
        return Candidates(
            name=group.name,
            options=options,
            costs={unit: self.prices.together(members, unit) for unit in units},
            dense=summed([dense_option(site) for site, _ in members]),
            spectra=lambda format: joined([self.spectra(name, format) for name in group.curves]),
            importance=lambda: mean(self.importance(name) for name in group.curves),
            predicted=lambda: _together([self.predicted(name) for name in group.curves]),
            slopes=lambda: self.slopes(group.name),
            kind=self.sites[group.name].kind,
            members=len(members),
            idle=next((self.prices[unit].idle for unit in units if self.prices[unit].is_measured), Unit.idle),
        )

    def trial(self, chosen: Mapping[str, Option]) -> Plan:
        """A plan with the given options, each for a site and those tied to it; all other sites are dense."""
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
            dense=held(self.prices.dense, amounts),
            planned=held(self.prices.planned(rows), amounts),
            metric=self.metric.name,
            shrink=self.shrink,
            rule=rule,
            fingerprint=self.sites.fingerprint,
        )

    def _cannot_be_met(self, limits: Mapping[str, float], error: BudgetError) -> ValueError:
        units = list(limits)
        unit, earlier = units[error.unit], units[: error.unit]
        limit, dense, least = limits[unit], self.prices.dense[unit], error.least + self.prices.rest(unit)
        name, others = self.prices[unit].title, [f"{limits[u]:,.0f} {self.prices[u].title}" for u in earlier]
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


def _curves(model: nn.Module, source: Statistics | Sites, sites: Sites, asked: Asked) -> Mapping[str, Curve]:
    """The given curves, if they belong to the network; else those that `profile` makes."""
    free = asked.constraints.free(sites)
    if asked.curves is None:
        return profile(
            model,
            source,
            formats=asked.formats,
            metric=asked.metric,
            shrink=asked.shrink,
            round_to="auto" if asked.round_to is None else asked.round_to,
            engine=asked.runs_in(model) if asked.engine or asked.example is not None else None,
            threads=asked.threads,
            only=free,
            done=asked.done,
            progress=asked.progress,
        )
    for name in ("formats", "round_to"):
        if (value := getattr(asked, name)) is not None:
            raise ValueError(f"{name}={value!r} has no effect on given curves; pass it to profile, which makes them")
    check_curves(asked.curves, sites, free, asked.metric)
    return asked.curves


def _with_spectra(options: Options, sites: Sites) -> Options:
    """The options of formats whose ranks cut singular values, where no constraint decides."""

    def kept(name: str, option: Option) -> bool:
        return option.format == DENSE or get_format(option.format).cuts(sites[name]) is not None

    return {
        name: (curve if why else tuple(option for option in curve if kept(name, option)), why)
        for name, (curve, why) in options.items()
    }


def _prices(model: nn.Module, sites: Sites, options: Options, formats: Mapping[str, Format], asked: Asked) -> Prices:
    """Measured prices if there is an example to measure with, else counted ones.

    A search for a target that is not about time makes many plans, and measures none of their networks.
    """
    if asked.example is None or (asked.target_drop is not None and not asked.is_timed):
        return Prices(model, sites, formats)
    if sites.joint:
        if asked.needs_times:
            raise ValueError(JOINT_IN_TIME)
        return Prices(model, sites, formats)
    *others, last = asked.engines(model)
    for engine in (*others, last):
        try:
            table = Table(engine, model, sites, asked.example, metric=asked.metric)
            table.learn({name: curve for name, (curve, _) in options.items()}, asked.progress)
            return MeasuredPrices(model, sites, Meter(table, asked.example), formats)
        except ValueError as error:
            if asked.is_timed and engine is last:
                raise
            then = "what time to expect is not known" if engine is last else f"times are those of {last}"
            logger.warning("%s does not run this network, so %s: %s", engine, then, error)
    return Prices(model, sites, formats)


def _nested(option: Option, row: PlanRow) -> bool:
    """Whether an option fits inside the row of a larger plan."""
    if row.format == DENSE or option.format == DENSE:
        return row.format == DENSE
    return option.format == row.format and all(own <= most for own, most in zip(option.ranks, row.ranks, strict=True))


def _together(losses: Sequence[Mapping[tuple[str, Ranks], float]]) -> dict[tuple[str, Ranks], float]:
    """The losses of sites that are decided together, where they are known for all of them."""
    first, *others = losses
    known = [option for option in first if all(option in other for other in others)]
    return {option: sum(own[option] for own in losses) for option in known}
