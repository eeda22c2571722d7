"""All that plans of one network have in common, whatever their rule and budget: curves, constraints, prices."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from torch import nn

from .budgets import Prices, check_keep, counts
from .constraints import Constraints, Pin, parse_pin
from .formats import get_format
from .formats.weights import site_weight
from .guards import unwrap
from .plan import DENSE, METRICS, Plan, PlanRow
from .profile import DEFAULT_FORMATS, Curve, Option, dense_option, profile, site_metrics
from .ranks import Candidates, Problem, Rule
from .ranks.several import BudgetError
from .ranks.spectra import Spectra, site_spectra
from .sites import Site, Sites
from .statistics import Statistics


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
        metric: "input" or "weight".
        options: site name to the options that the constraints leave, and the reason where they leave no choice.
        prices: of the options.
        spectra: singular values that the ranks of a format cut at a site.
        evaluate: tries a plan; None where nothing can be tried.
    """

    model: nn.Module
    sites: Sites
    metric: str
    options: Mapping[str, tuple[Curve, str]]
    prices: Prices
    spectra: Callable[[str, str], Spectra]
    evaluate: Callable[[Plan], float] | None = None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        source: Statistics | Sites,
        *,
        metric: str = "input",
        constraints: Constraints | None = None,
        formats: str | Sequence[str] | None = None,
        round_to: int | str | None = None,
        curves: Mapping[str, Curve] | None = None,
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
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}; the metrics are {', '.join(METRICS)}")
        free = constraints.free(sites)
        if curves is None:
            curves = profile(
                model,
                source,
                formats=DEFAULT_FORMATS if formats is None else formats,
                metric=metric,
                round_to="auto" if round_to is None else round_to,
                only=free,
                progress=progress,
            )
        elif formats is not None or round_to is not None:
            name, value = ("formats", formats) if formats is not None else ("round_to", round_to)
            raise ValueError(f"{name}={value!r} has no effect on given curves; pass it to profile, which makes them")
        else:
            _check_curves(curves, sites, free, metric)

        def spectra(name: str, format: str) -> Spectra:
            site = sites[name]
            return site_spectra(site, site_weight(model, site), site_metrics(source, site, metric, model), format)

        return cls(
            model=model,
            sites=sites,
            metric=metric,
            options=constraints.options(sites, curves, partial(_pinned, model, source, metric=metric)),
            prices=Prices(model, sites),
            spectra=cache(spectra),
            evaluate=evaluate,
        )

    def plan(self, rule: Rule, keep: Mapping[str, float] | None = None) -> Plan:
        """The plan of a rule, within budgets where there are some.

        Raises:
            ValueError: for a budget that cannot be met, or a rule that lacks something or does not apply to a format.
        """
        check_request(rule, keep, self.evaluate)
        amounts = {} if keep is None else check_keep(keep)
        limits = {unit: self.prices.limit(unit, amount) for unit, amount in amounts.items()}
        problem = self.problem(limits)
        try:
            picks = rule.choose(problem)
        except BudgetError as error:
            raise self._cannot_be_met(limits, error) from None
        rows = []
        for site, pick in zip(problem.sites, picks, strict=True):
            option, reason = site.options[pick.option], self.options[site.name][1]
            _check_option(self.sites[site.name], option, self.metric)
            rows.append(PlanRow(site=site.name, **vars(option), why=reason or pick.why))
        plan = self._plan(rows, str(rule), amounts)
        assert all(plan.planned[unit] <= limit for unit, limit in limits.items())
        return plan

    def problem(self, limits: Mapping[str, float]) -> Problem:
        """What a rule has to decide within limits of the whole network."""
        sites = [
            Candidates(
                name=name,
                options=options,
                costs={unit: self.prices.of(self.sites[name], options, unit) for unit in limits},
                dense=dense_option(self.sites[name]),
                spectra=partial(self.spectra, name),
            )
            for name, (options, _) in self.options.items()
        ]
        return Problem(
            sites=tuple(sites),
            limits={unit: limit - self.prices.rest(unit) for unit, limit in limits.items()},
            plan=self.trial,
            evaluate=self.evaluate,
        )

    def trial(self, chosen: Mapping[str, Option]) -> Plan:
        """A plan of the given sites' options, all other sites dense."""
        rows = [
            PlanRow(site=name, **vars(chosen[name] if name in chosen else dense_option(site)))
            for name, site in self.sites.items()
        ]
        return self._plan(rows, "trial", {})

    def _plan(self, rows: Sequence[PlanRow], rule: str, amounts: Mapping[str, float]) -> Plan:
        return Plan(
            rows=tuple(rows),
            keep=dict(amounts),
            dense=self.prices.dense,
            planned=counts(self.model, self.sites, rows),
            metric=self.metric,
            rule=rule,
            fingerprint=self.sites.fingerprint,
        )

    def _cannot_be_met(self, limits: Mapping[str, float], error: BudgetError) -> ValueError:
        units = list(limits)
        unit, earlier = units[error.unit], units[: error.unit]
        limit, dense, least = limits[unit], self.prices.dense[unit], error.least + self.prices.rest(unit)
        beside = f" together with at most {' and '.join(f'{limits[u]:,.0f} {u}' for u in earlier)}" if earlier else ""
        return ValueError(
            f"a budget of {limit:,.0f} {unit} ({limit / dense:.3f} of dense) cannot be met{beside}: with these formats "
            f"and constraints the network keeps at least {least:,.0f} ({least / dense:.3f}); raise the "
            f"budget, or allow more sites or lower ranks"
        )


def _check_curves(curves: Mapping[str, Curve], sites: Sites, free: Collection[str], metric: str) -> None:
    """The first and the last option of each format tell whether a curve is of another network or metric."""
    needed = [site for site in sites.values() if site.name in free and not site.dense_because]
    if missing := [repr(site.name) for site in needed if site.name not in curves]:
        raise ValueError(
            f"the curves hold nothing for {'sites' if len(missing) > 1 else 'site'} {', '.join(missing)}; profile this "
            f"network, or ignore what is missing"
        )
    for site in needed:
        curve = curves[site.name]
        first = {option.format: option for option in reversed(curve)}
        last = {option.format: option for option in curve}
        for option in (*first.values(), *last.values()):
            _check_option(site, option, metric)


def _check_option(site: Site, option: Option, metric: str) -> None:
    if option.format == DENSE:
        right = site.params, site.macs
    else:
        format = get_format(option.format)
        right = format.cost(site, format.check(site, option.ranks), site.has_bias or metric == "input")
    if (option.params, option.macs) != right:
        raise ValueError(
            f"site {site.name!r}: its curve counts {option.params:,} parameters and {option.macs:,} MACs for "
            f"{option.format} {option.ranks}, which in the {metric!r} metric are {right[0]:,} and "
            f"{right[1]:,}; profile this network in this metric"
        )


def _pinned(model: nn.Module, source: Statistics | Sites, site: Site, wanted: Pin, *, metric: str) -> Option:
    name, ranks = parse_pin(wanted)
    if name == DENSE:
        return dense_option(site)
    format = get_format(name)
    if reason := format.refuses(site):
        raise ValueError(f"site {site.name!r} cannot be pinned to {name}: {reason}")
    ranks = format.check(site, ranks)
    factors = format.fit(site, site_weight(model, site), site_metrics(source, site, metric, model), ranks)
    cost = format.cost(site, ranks, site.has_bias or metric == "input")
    return Option(format=name, ranks=ranks, params=cost.params, macs=cost.macs, error=factors.error)
