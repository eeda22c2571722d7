"""Curves, a budget and constraints to a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

import torch
from torch import nn

from .formats import get_format
from .formats.weights import site_weight
from .guards import unwrap
from .plan import DENSE, METRICS, Plan, PlanRow, site_of
from .profile import DEFAULT_FORMATS, Curve, Option, dense_option, profile, site_metrics
from .ranks.knapsack import Choice, knapsack, pareto
from .sites import Site, Sites
from .state import stored_bytes
from .statistics import Statistics

BUDGETS = ("params", "macs", "bytes")
Pin = str | tuple[str, Sequence[int]]


def choose(
    model: nn.Module,
    source: Statistics | Sites,
    *,
    keep: Mapping[str, float],
    formats: str | Sequence[str] | None = None,
    metric: str = "input",
    include: str | Sequence[str] = ("*",),
    ignore: str | Sequence[str] = (),
    pin: Mapping[str, Pin] | None = None,
    floor: Mapping[str, float] | None = None,
    cap: Mapping[str, float] | None = None,
    round_to: int | str | None = None,
    curves: Mapping[str, Curve] | None = None,
    progress: Callable[[Iterable[Any], str], Iterable[Any]] | None = None,
) -> Plan:
    """Choose format and ranks of every site: least total error within one budget.

    `min sum_i error_i(option_i)  subject to  sum_i cost_i(option_i) + cost of all the rest <= budget`

    Args:
        model: the dense network.
        source: statistics of it, or only its sites for `metric="weight"`.
        keep: one of "params", "macs", "bytes" with a fraction of the dense count (a float up to 1) or a number.
        formats: formats to choose from, per site; "auto" for all there are. By default svd, spatial_svd and tucker2,
            whose curves need no fits.
        metric: "input" or "weight".
        include: patterns of the sites that may be factorised (globs, or regular expressions after "re:").
        ignore: patterns of sites that stay dense.
        pin: pattern to "dense", "format:rank[,rank]" or (format, ranks).
        floor: pattern to the least rank, a number or a fraction of the largest.
        cap: pattern to the largest rank, likewise; a capped site cannot stay dense, unless it is ignored.
        round_to: ranks are multiples of this; "auto", the default, is 8 where the smaller side is at least 128, else 1.
        curves: result of `profile`, to try several budgets without computing it again; `formats` and `round_to` are
            those that it was made with, and cannot be given once more.
        progress: wraps the sites, for a progress bar.

    Returns:
        The plan; its counts are those of the network that `factorise` builds.

    Raises:
        ValueError: for a budget that cannot be met (with the least that can), a pattern that matches no site (with near
            names), contradicting constraints, an unknown format or metric, curves that do not belong to the network and
            metric.

    Example:
        >>> import torch, rankwise as rw
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
        >>> plan = choose(model, rw.find(model, torch.randn(1, 64)), keep={"params": 0.5}, metric="weight")
        >>> plan.planned["params"] <= 0.5 * plan.dense["params"]
        True
    """
    model = unwrap(model)
    sites = source.sites if isinstance(source, Statistics) else source
    sites.check_structure(model)
    unit, amount = _budget(keep)
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; the metrics are {', '.join(METRICS)}")
    free = {site.name for site in sites.select(include)} - {site.name for site in sites.select(ignore)}
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
    constrained = _constrain(model, source, sites, curves, metric, include, ignore, pin or {}, floor or {}, cap or {})
    names, reasons = list(constrained), {name: why for name, (_, why) in constrained.items()}

    dense = counts(model, sites)
    limit = amount * dense[unit] if isinstance(amount, float) and amount <= 1 else float(amount)

    def cost(site: Site, option: Option) -> int:
        if unit != "bytes":
            return getattr(option, unit)
        if option.format != DENSE:
            return _chain_bytes(site, option.format, option.ranks, option.params)
        return dense["bytes"] - stored_bytes(model, without=(site.name, *site.aliases))

    fixed = dense[unit] - sum(cost(site, dense_option(site)) for site in sites.values())
    options: dict[str, list[Option]] = {}
    choices: list[list[Choice]] = []
    for name, (curve, _) in constrained.items():
        priced = [Choice(cost(sites[name], option), option.error) for option in curve]
        kept = pareto(priced)
        options[name] = [curve[index] for index in kept]
        choices.append([priced[index] for index in kept])
    least = fixed + sum(min(choice.cost for choice in site) for site in choices)
    if least > limit:
        raise ValueError(
            f"a budget of {limit:,.0f} {unit} ({limit / dense[unit]:.3f} of dense) cannot be met: with these formats "
            f"and constraints the network keeps at least {least:,.0f} ({least / dense[unit]:.3f}); raise the "
            f"budget, or allow more sites or lower ranks"
        )
    picked = knapsack(choices, limit - fixed)
    rows = []
    for name, index in zip(names, picked, strict=True):
        option = options[name][index]
        why = reasons[name] or _why(option, options[name], sites[name])
        rows.append(PlanRow(site=name, **vars(option), why=why))
    planned = counts(model, sites, rows)
    assert planned[unit] <= limit
    return Plan(
        rows=tuple(rows),
        keep={unit: amount},
        dense=dense,
        planned=planned,
        metric=metric,
        fingerprint=sites.fingerprint,
    )


def counts(model: nn.Module, sites: Sites, rows: Sequence[PlanRow] = ()) -> dict[str, int]:
    """Parameters, MACs for the example input, and bytes as stored, each tensor once, of the network that rows make."""
    built = [(row, sites[row.site]) for row in rows if row.format != DENSE]
    gone = [name for _, site in built for name in (site.name, *site.aliases)]
    return {
        "params": sites.total_params + sum(row.params - site.params for row, site in built),
        "macs": sites.total_macs + sum(row.macs - site.macs for row, site in built),
        "bytes": stored_bytes(model, without=gone)
        + sum(_chain_bytes(site, row.format, row.ranks, row.params) for row, site in built),
    }


def _chain_bytes(site: Site, format: str, ranks: Sequence[int], params: int) -> int:
    """Bytes of a chain as stored: numbers of the weight's width, and indices."""
    width = torch.empty((), dtype=getattr(torch, site.dtype)).element_size()
    return params * width + 4 * get_format(format).indices(site, tuple(ranks))


def _budget(keep: Mapping[str, float]) -> tuple[str, float]:
    if not isinstance(keep, Mapping) or len(keep) != 1:
        raise ValueError(f"keep needs exactly one budget, for instance {{'macs': 0.5}}, not {keep!r}")
    ((unit, amount),) = keep.items()
    if unit not in BUDGETS:
        raise ValueError(f"unknown budget {unit!r}; the budgets are {', '.join(BUDGETS)}")
    if not _is_number(amount) or not 0 < amount < math.inf:
        raise ValueError(f"the {unit} budget must be a fraction up to 1 or a number above 0, not {amount!r}")
    plain = _plain(amount)
    if plain > 1 and plain != int(plain):
        raise ValueError(f"the {unit} budget {amount!r} is neither a fraction up to 1.0 nor a whole number")
    return unit, plain


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _plain(value: Any) -> int | float:
    """A number of any library, such as numpy, as Python's own."""
    return int(value) if isinstance(value, Integral) else float(value)


def _check_curves(curves: Mapping[str, Curve], sites: Sites, free: Collection[str], metric: str) -> None:
    needed = [site for site in sites.values() if site.name in free and not site.dense_because]
    if missing := [repr(site.name) for site in needed if site.name not in curves]:
        raise ValueError(
            f"the curves hold nothing for {'sites' if len(missing) > 1 else 'site'} {', '.join(missing)}; profile this "
            f"network, or ignore what is missing"
        )
    for site in needed:
        for option in curves[site.name]:
            if option.format == DENSE:
                right = site.params, site.macs
            else:
                format = get_format(option.format)
                right = format.cost(site, format.check(site, option.ranks), site.chain_bias(metric))
            if (option.params, option.macs) != right:
                raise ValueError(
                    f"site {site.name!r}: its curve counts {option.params:,} parameters and {option.macs:,} MACs for "
                    f"{option.format} {option.ranks}, which in the {metric!r} metric are {right[0]:,} and "
                    f"{right[1]:,}; profile this network in this metric"
                )


def _why(option: Option, options: Sequence[Option], site: Site) -> str:
    if option.format == DENSE:
        if len(options) == 1:
            return "no format costs less than dense"
        return "dense: within the budget no factorisation is worth its error"
    share, unit = (option.macs / site.macs, "MACs") if site.macs else (option.params / site.params, "parameters")
    return f"error {option.error:.2%} at {share:.0%} of its {unit}"


def _constrain(
    model: nn.Module,
    source: Statistics | Sites,
    sites: Sites,
    curves: Mapping[str, Curve],
    metric: str,
    include: str | Sequence[str],
    ignore: str | Sequence[str],
    pin: Mapping[str, Pin],
    floor: Mapping[str, float],
    cap: Mapping[str, float],
) -> dict[str, tuple[Curve, str]]:
    """Each site's remaining options, and the reason where a constraint left no choice."""
    included = {site.name for site in sites.select(include)}
    ignored = {site.name for site in sites.select(ignore)}
    result: dict[str, tuple[Curve, str]] = {}
    for name, site in sites.items():
        dense = (dense_option(site),)
        if site.dense_because:
            result[name] = dense, site.dense_because
        elif name in ignored:
            result[name] = dense, "ignored"
        elif name not in included:
            result[name] = dense, "not included"
        else:
            result[name] = tuple(curves[name]), ""
    pinned: dict[str, str] = {}
    for pattern, wanted in pin.items():
        for site in sites.select([pattern]):
            if site.name in pinned and parse_pin(pin[pinned[site.name]]) != parse_pin(wanted):
                raise ValueError(
                    f"site {site.name!r} is pinned twice, by {pinned[site.name]!r} and {pattern!r}; keep one"
                )
            if site.name in ignored:
                raise ValueError(f"site {site.name!r} is both ignored and pinned by {pattern!r}; drop one of them")
            pinned[site.name] = pattern
            result[site.name] = (_pinned(model, source, site, wanted, metric),), f"pinned by {pattern!r}"
    for bound, least in ((floor, True), (cap, False)):
        for pattern, value in bound.items():
            for site in sites.select([pattern]):
                curve, why = result[site.name]
                if why and site.name not in pinned:
                    continue
                kept = tuple(option for option in curve if _allowed(site, option, value, least))
                if not kept:
                    word, sense = ("floor", "at least") if least else ("cap", "at most")
                    pinned_to = f"{why} to {curve[0].format} {list(curve[0].ranks)}, so " if why else ""
                    raise ValueError(
                        f"site {site.name!r}: {pinned_to}no option has its ranks {sense} {value}, the {word} of "
                        f"{pattern!r}; change the {word}{' or the pin' if why else ''}"
                    )
                result[site.name] = kept, why
    return result


def _allowed(site: Site, option: Option, value: float, least: bool) -> bool:
    """Whether an option's ranks keep to a floor (`least`) or a cap."""
    if not _is_number(value) or not value > 0:
        word = "floor" if least else "cap"
        raise ValueError(f"site {site.name!r}: the {word} must be a rank or a fraction up to 1.0, not {value!r}")
    if option.format == DENSE:
        return least
    value = _plain(value)
    for rank, limit in zip(option.ranks, get_format(option.format).limits(site), strict=True):
        bound = value * limit if isinstance(value, float) and value <= 1 else value
        if rank < bound if least else rank > bound:
            return False
    return True


def _pinned(model: nn.Module, source: Statistics | Sites, site: Site, wanted: Pin, metric: str) -> Option:
    name, ranks = parse_pin(wanted)
    if name == DENSE:
        return dense_option(site)
    format = get_format(name)
    if reason := format.refuses(site):
        raise ValueError(f"site {site.name!r} cannot be pinned to {name}: {reason}")
    ranks = format.check(site, ranks)
    factors = format.fit(site, site_weight(model, site), site_metrics(source, site, metric, model), ranks)
    cost = format.cost(site, ranks, site.chain_bias(metric))
    return Option(format=name, ranks=ranks, params=cost.params, macs=cost.macs, error=factors.error)


def parse_pin(wanted: Pin) -> tuple[str, tuple[int, ...]]:
    """Format and ranks of a pin, written "dense", "svd:16", "tucker2:8,12" or ("tucker2", (8, 12)).

    Raises:
        ValueError: for anything else.
    """
    error = ValueError(f'a pin is "dense" or "format:rank[,rank]", for instance "svd:16", not {wanted!r}')
    if isinstance(wanted, str):
        name, colon, numbers = wanted.partition(":")
        if name == DENSE and not colon:
            return name, ()
        try:
            ranks = tuple(int(number) for number in numbers.split(","))
        except ValueError:
            raise error from None
    else:
        try:
            name, ranks = wanted[0], tuple(wanted[1])
        except (TypeError, IndexError):
            raise error from None
        if len(wanted) != 2 or not all(isinstance(rank, Integral) and not isinstance(rank, bool) for rank in ranks):
            raise error
        ranks = tuple(int(rank) for rank in ranks)
    if not isinstance(name, str) or not name or (name == DENSE and ranks):
        raise error
    return name, ranks


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
        if reason := format.refuses(site):
            raise ValueError(f"site {row.site!r} cannot have format {row.format!r}: {reason}")
        cost = format.cost(site, format.check(site, row.ranks), site.chain_bias(plan.metric))
        rows.append(replace(row, params=cost.params, macs=cost.macs))
    return replace(plan, rows=tuple(rows), dense=counts(model, sites), planned=counts(model, sites, rows))
