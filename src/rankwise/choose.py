"""Curves, a budget and constraints to a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from .formats import get_format
from .formats.weights import site_weight
from .guards import unwrap
from .plan import DENSE, Plan, PlanRow
from .profile import ALL_FORMATS, Curve, Option, dense_option, profile, site_metrics
from .ranks.knapsack import Choice, knapsack, pareto
from .sites import Site, Sites
from .statistics import Statistics

BUDGETS = ("params", "macs", "bytes")
Pin = str | tuple[str, Sequence[int]]


def choose(
    model: nn.Module,
    source: Statistics | Sites,
    *,
    keep: Mapping[str, float],
    formats: Sequence[str] = ALL_FORMATS,
    metric: str = "input",
    include: Sequence[str] = ("*",),
    ignore: Sequence[str] = (),
    pin: Mapping[str, Pin] | None = None,
    floor: Mapping[str, float] | None = None,
    cap: Mapping[str, float] | None = None,
    round_to: int | str = "auto",
    curves: Mapping[str, Curve] | None = None,
    progress: Callable[[Iterable[Any], str], Iterable[Any]] | None = None,
) -> Plan:
    """Choose format and ranks of every site: least total error within one budget.

    `min sum_i error_i(option_i)  subject to  sum_i cost_i(option_i) + cost of all the rest <= budget`

    Args:
        model: the dense network.
        source: statistics of it, or only its sites for `metric="weight"`.
        keep: one of "params", "macs", "bytes" with a fraction of the dense count (a float up to 1) or a number.
        formats: formats to choose from, per site.
        metric: "input" or "weight".
        include: patterns of the sites that may be factorised (globs, or regular expressions after "re:").
        ignore: patterns of sites that stay dense.
        pin: pattern to "dense", "format:rank[,rank]" or (format, ranks).
        floor: pattern to the least rank, a number or a fraction of the largest.
        cap: pattern to the largest rank, likewise; a capped site cannot stay dense.
        round_to: ranks are multiples of this; "auto" is 8 where the smaller side is at least 128, else 1.
        curves: result of `profile`, to try several budgets without computing it again.
        progress: wraps the sites, for a progress bar.

    Returns:
        The plan; its counts are those of the network that `factorise` builds.

    Raises:
        ValueError: for a budget that cannot be met (with the least that can), a pattern that matches no site (with near
            names), contradicting constraints, an unknown format or metric.

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
    unit, fraction = _budget(keep)
    if curves is None:
        free = {site.name for site in sites.select(include)} - {site.name for site in sites.select(ignore)}
        options_of: dict[str, Any] = {"formats": formats, "metric": metric, "round_to": round_to, "progress": progress}
        curves = profile(model, source, only=free, **options_of)
    bias = metric == "input"
    constrained = _constrain(model, source, sites, curves, metric, include, ignore, pin or {}, floor or {}, cap or {})
    names, reasons = list(constrained), {name: why for name, (_, why) in constrained.items()}
    options = {name: _undominated(curve, unit) for name, (curve, _) in constrained.items()}

    dense = counts(model, sites)
    limit = fraction * dense[unit] if isinstance(fraction, float) and fraction <= 1 else float(fraction)
    width = {name: torch.empty((), dtype=getattr(torch, sites[name].dtype)).element_size() for name in names}

    def cost(name: str, option: Option) -> int:
        return option.params * width[name] if unit == "bytes" else getattr(option, unit)

    fixed = dense[unit] - sum(cost(name, dense_option(sites[name])) for name in names)
    choices = [[Choice(cost(name, option), option.error) for option in options[name]] for name in names]
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
    planned = dict(dense)
    for row in rows:
        before = dense_option(sites[row.site])
        planned["params"] += row.params - before.params
        planned["macs"] += row.macs - before.macs
        planned["bytes"] += (row.params - before.params) * width[row.site]
    assert not bias or planned[unit] <= limit
    return Plan(
        rows=tuple(rows), keep=dict(keep), dense=dense, planned=planned, metric=metric, fingerprint=sites.fingerprint
    )


def counts(model: nn.Module, sites: Sites) -> dict[str, int]:
    """Parameters, MACs for the example input, and bytes of all tensors, each tensor once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    return {"params": sites.total_params, "macs": sites.total_macs, "bytes": size}


def _budget(keep: Mapping[str, float]) -> tuple[str, float]:
    if not isinstance(keep, Mapping) or len(keep) != 1:
        raise ValueError(f"keep needs exactly one budget, for instance {{'macs': 0.5}}, not {keep!r}")
    ((unit, amount),) = keep.items()
    if unit not in BUDGETS:
        raise ValueError(f"unknown budget {unit!r}; the budgets are {', '.join(BUDGETS)}")
    if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not 0 < amount < math.inf:
        raise ValueError(f"the {unit} budget must be a fraction up to 1 or a number above 0, not {amount!r}")
    if isinstance(amount, float) and amount > 1 and amount != int(amount):
        raise ValueError(f"the {unit} budget {amount!r} is neither a fraction up to 1.0 nor a whole number")
    return unit, amount


def _undominated(curve: Sequence[Option], unit: str) -> list[Option]:
    attribute = "params" if unit == "bytes" else unit
    choices = [Choice(getattr(option, attribute), option.error) for option in curve]
    return [curve[index] for index in pareto(choices)]


def _why(option: Option, options: Sequence[Option], site: Site) -> str:
    if option.format == DENSE:
        if len(options) == 1:
            return "no format costs less than dense"
        return "dense: within the budget no factorisation is worth its error"
    return f"error {option.error:.2%} at {option.macs / max(site.macs, 1):.0%} of its MACs"


def _constrain(
    model: nn.Module,
    source: Statistics | Sites,
    sites: Sites,
    curves: Mapping[str, Curve],
    metric: str,
    include: Sequence[str],
    ignore: Sequence[str],
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
    for bound, least in ((floor, True), (cap, False)):
        for pattern, value in bound.items():
            for site in sites.select([pattern]):
                curve, why = result[site.name]
                if not why:
                    result[site.name] = _bounded(site, curve, value, least), why
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
    return result


def _bounded(site: Site, curve: Curve, value: float, least: bool) -> Curve:
    word = "floor" if least else "cap"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value <= 0:
        raise ValueError(f"site {site.name!r}: the {word} must be a rank or a fraction up to 1.0, not {value!r}")
    kept = []
    for option in curve:
        if option.format == DENSE:
            if least:
                kept.append(option)
            continue
        limits = get_format(option.format).limits(site)
        bounds = [value * limit if isinstance(value, float) and value <= 1 else value for limit in limits]
        if all((rank >= bound) if least else (rank <= bound) for rank, bound in zip(option.ranks, bounds, strict=True)):
            kept.append(option)
    if not kept:
        raise ValueError(
            f"site {site.name!r}: no option has its ranks {'at least' if least else 'at most'} {value}; "
            f"change the {word}"
        )
    return tuple(kept)


def _pinned(model: nn.Module, source: Statistics | Sites, site: Site, wanted: Pin, metric: str) -> Option:
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
        if len(wanted) != 2 or not all(isinstance(rank, int) and not isinstance(rank, bool) for rank in ranks):
            raise error
    if not isinstance(name, str) or not name or (name == DENSE and ranks):
        raise error
    return name, ranks


def recount(plan: Plan, sites: Sites, dense: dict[str, int]) -> Plan:
    """The plan with the counts that its formats and ranks have on these sites, after a person edited it.

    Raises:
        ValueError: for a site that does not exist, an unknown format, or ranks that are not legal.
    """
    bias = plan.metric == "input"
    rows, planned = [], dict(dense)
    for row in plan.rows:
        if row.site not in sites:
            sites.select([row.site])  # raises, with near names
        site = sites[row.site]
        before = dense_option(site)
        if row.format == DENSE:
            rows.append(replace(row, params=before.params, macs=before.macs))
            continue
        format = get_format(row.format)
        if reason := format.refuses(site):
            raise ValueError(f"site {row.site!r} cannot have format {row.format!r}: {reason}")
        cost = format.cost(site, format.check(site, row.ranks), site.has_bias or bias)
        rows.append(replace(row, params=cost.params, macs=cost.macs))
        planned["params"] += cost.params - before.params
        planned["macs"] += cost.macs - before.macs
        width = torch.empty((), dtype=getattr(torch, site.dtype)).element_size()
        planned["bytes"] += (cost.params - before.params) * width
    return replace(plan, rows=tuple(rows), dense=dense, planned=planned)
